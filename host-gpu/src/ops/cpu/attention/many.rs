//! Rows so many that keys and values are widened for them first: some tokens' at a time, so few that they stay in the nearest cache.

use super::stored::{Pieces, Stored, bytes_at, values};
use super::{Attend, Scores, Scratch, Vector, load_sums, put_scores, store_sums, with_rows};
use crate::kv::SCALED;
use crate::ops::cpu::bytes::Bytes;
use crate::ops::cpu::lanes::{LANES, Lanes};
use std::ops::Range;

/// Vectors that are widened at a time, if that is enough for [`AT_ONCE`] tiles of keys.
const WIDE: usize = 512;
/// Tiles of keys, or vectors of values, that all rows take at once, where a vector is one of many registers.
const AT_ONCE: usize = 4;
/// Tiles of keys that are widened at a time, at most.
const TILES: usize = 8;

/// Vectors of a tile of keys: a number of each key, and the scales.
#[inline(always)]
fn tile_vectors<C: Stored>(dim: usize) -> usize {
    dim + if C::HAS_SCALES { dim.div_ceil(SCALED) } else { 0 }
}

/// Vectors that there is room for.
pub(super) fn wide<C: Stored>(dim: usize) -> usize {
    WIDE.max(AT_ONCE * tile_vectors::<C>(dim))
}

impl<C: Stored> Attend<'_, '_, C> {
    /// Scores of all rows.
    #[inline(always)]
    pub(super) fn score_many<L: Bytes, const S: usize>(&mut self, block: &Range<usize>) {
        let (kv, dim, each) = (self.kv, self.kv.layout.head_dim, tile_vectors::<C>(self.kv.layout.head_dim));
        let most = (WIDE / each / AT_ONCE * AT_ONCE).clamp(AT_ONCE, TILES);
        let (mut to, mut count) = ([0; TILES], 0);
        for page in kv.pages_of(block) {
            // From the beginning of a tile: a window may begin inside.
            for at in (page.tokens.start / LANES * LANES..page.tokens.end).step_by(LANES) {
                let wide = &mut self.scratch.wide[count * each..][..each];
                let (from, width) = kv.layout.tile(at);
                let keys = Pieces::new(page.keys, from * C::BYTES, width * C::BYTES, dim, LANES * C::BYTES);
                let mut ahead = keys.ahead(page.ahead);
                for (key, wide) in keys.zip(wide.iter_mut()) {
                    L::prefetch_bytes(ahead, LANES * C::BYTES);
                    ahead = ahead.wrapping_add(LANES * C::BYTES);
                    L::store(C::read::<L>(key, 0), &mut wide.0);
                }
                for (part, wide) in wide[dim..].iter_mut().enumerate() {
                    let scales = kv.layout.scales_at() + 2 * (part * kv.layout.page_tokens + at);
                    L::store(L::halves(bytemuck::cast_ref(bytes_at::<32>(page.keys, scales))), &mut wide.0);
                }
                to[count] = LANES + page.at + at - page.tokens.start;
                count += 1;
                if count == most {
                    self.score_tiles::<L, S>(&to[..count], block);
                    count = 0;
                }
            }
        }
        self.score_tiles::<L, S>(&to[..count], block);
    }

    /// Scores of the tokens in the tiles that are widened; of each it is said where its first token's go.
    #[inline(always)]
    fn score_tiles<L: Bytes, const S: usize>(&mut self, to: &[usize], block: &Range<usize>) {
        let dim = self.kv.layout.head_dim;
        let mut row = 0;
        while row < self.rows() {
            let n = self.together(row);
            if self.attends(row..row + n, block) {
                let Scratch { q, scores, wide, .. } = &mut *self.scratch;
                let (q, scores) = (&q[row * dim..], &mut scores[row..]);
                with_rows!(n, N => score_rows::<L, C, N, S>((q, wide), dim, to, scores));
            }
            row += n;
        }
    }

    /// Whether any of these rows attends to some of the block.
    #[inline(always)]
    fn attends(&self, rows: Range<usize>, block: &Range<usize>) -> bool {
        let token = |row: usize| self.queries.range(row / self.queries.group);
        token(rows.start).start < block.end && token(rows.end - 1).end > block.start
    }

    /// Adds the block's values by their weights to the sums of all rows, the tokens in order.
    #[inline(always)]
    pub(super) fn weigh_many<L: Bytes, const S: usize>(&mut self, block: &Range<usize>) {
        let (kv, dim) = (self.kv, self.kv.layout.head_dim);
        let (vectors, width) = (dim / LANES, dim * C::BYTES);
        let most = WIDE / vectors;
        for first in block.clone().step_by(most) {
            let tokens = first..block.end.min(first + most);
            for page in kv.pages_of(&tokens) {
                let pieces = Pieces::new(page.values, page.tokens.start * width, width, page.tokens.len(), width);
                let wide = self.scratch.wide[page.at * vectors..].chunks_exact_mut(vectors);
                for ((piece, wide), at) in pieces.zip(wide).zip(page.tokens.clone()) {
                    L::prefetch_bytes(piece.as_ptr().wrapping_offset(page.ahead), width);
                    let parts = piece.chunks_exact(LANES * C::BYTES);
                    for ((part, wide), first) in parts.zip(wide).zip(0..) {
                        let [v] = values::<L, C, 1>(&kv.layout, page.values, at, part, first);
                        L::store(v, &mut wide.0);
                    }
                }
            }
            let (mut row, from) = (0, LANES + first - block.start);
            while row < self.rows() {
                let n = self.together(row);
                if self.attends(row..row + n, block) {
                    let Scratch { scores, sums, wide, .. } = &mut *self.scratch;
                    let wide = &wide[..tokens.len() * vectors];
                    let (scores, sums) = (&scores[row..], &mut sums[row * dim..]);
                    with_rows!(n, N => weigh_rows::<L, N, S>((scores, from), wide, vectors, sums));
                }
                row += n;
            }
        }
    }
}

/// Scores of the `N` rows that `q` and `scores` begin with and the tiles that `wide` begins with.
#[inline(always)]
fn score_rows<L: Bytes, C: Stored, const N: usize, const S: usize>(
    (q, wide): (&[f32], &[Vector]),
    dim: usize,
    to: &[usize],
    scores: &mut [Scores],
) {
    let q = &q.as_chunks::<N>().0[..dim];
    let scores = scores.first_chunk_mut::<N>().expect("each row has some");
    let mut at = 0;
    while at < to.len() {
        let (wide, left) = (&wide[at * tile_vectors::<C>(dim)..], to.len() - at);
        // Where products have scales there are twice as many sums.
        at += if S > 1 && !C::HAS_SCALES && left >= AT_ONCE {
            products_to::<L, C, N, AT_ONCE>(q, wide, &to[at..], scores)
        } else if S > 1 && left >= 2 {
            products_to::<L, C, N, 2>(q, wide, &to[at..], scores)
        } else {
            products_to::<L, C, N, 1>(q, wide, &to[at..], scores)
        };
    }
}

/// Scores of `N` rows and the first `S` tiles.
#[inline(always)]
fn products_to<L: Bytes, C: Stored, const N: usize, const S: usize>(
    q: &[[f32; N]],
    wide: &[Vector],
    to: &[usize],
    scores: &mut [Scores; N],
) -> usize {
    let sums = products::<L, C, N, S>(q, wide);
    for s in 0..S {
        put_scores::<L, N>(&sums[s], scores, to[s]);
    }
    S
}

/// `q . k` of `N` rows and the `S` tiles that `wide` begins with.
#[inline(always)]
fn products<L: Lanes, C: Stored, const N: usize, const S: usize>(q: &[[f32; N]], wide: &[Vector]) -> [[L::V; N]; S] {
    let (dim, each) = (q.len(), tile_vectors::<C>(q.len()));
    let mut sums = [[L::splat(0.0); N]; S];
    let mut totals = sums;
    let mut tiles: [&[Vector]; S] = [&[]; S];
    let mut scales = tiles;
    for s in 0..S {
        (tiles[s], scales[s]) = wide[s * each..][..each].split_at(dim);
    }
    for d in 0..dim {
        let mut k = [L::splat(0.0); S];
        for s in 0..S {
            k[s] = L::load(&tiles[s][d].0);
        }
        for n in 0..N {
            let q = L::splat(q[d][n]);
            for s in 0..S {
                sums[s][n] = L::fma(q, k[s], sums[s][n]);
            }
        }
        if C::HAS_SCALES && (d % SCALED == SCALED - 1 || d == dim - 1) {
            for s in 0..S {
                let scale = L::load(&scales[s][d / SCALED].0);
                for n in 0..N {
                    totals[s][n] = L::fma(sums[s][n], scale, totals[s][n]);
                    sums[s][n] = L::splat(0.0);
                }
            }
        }
    }
    if C::HAS_SCALES { totals } else { sums }
}

/// Adds the values in `wide` to the sums of the `N` rows that `scores` and `sums` begin with; the weights begin with number `from`.
#[inline(always)]
fn weigh_rows<L: Lanes, const N: usize, const S: usize>(
    (scores, from): (&[Scores], usize),
    wide: &[Vector],
    vectors: usize,
    sums: &mut [f32],
) {
    let weights = (scores.first_chunk::<N>().expect("each row has some"), from);
    let mut first = 0;
    while first < vectors {
        if S > 1 && first + AT_ONCE <= vectors {
            weigh_vectors::<L, N, AT_ONCE>(weights, wide, (vectors, first), sums);
            first += AT_ONCE;
        } else {
            weigh_vectors::<L, N, 1>(weights, wide, (vectors, first), sums);
            first += 1;
        }
    }
}

/// The same for `S` vectors of dimensions, from vector `first` of `vectors` on.
#[inline(always)]
fn weigh_vectors<L: Lanes, const N: usize, const S: usize>(
    (weights, from): (&[Scores; N], usize),
    wide: &[Vector],
    (vectors, first): (usize, usize),
    to: &mut [f32],
) {
    let mut sums = load_sums::<L, N, S>(to, vectors * LANES, first);
    for (at, values) in wide.chunks_exact(vectors).enumerate() {
        let mut v = [L::splat(0.0); S];
        for s in 0..S {
            v[s] = L::load(&values[first + s].0);
        }
        for n in 0..N {
            let weight = L::splat(weights[n].0[from + at]);
            for s in 0..S {
                sums[n][s] = L::fma(weight, v[s], sums[n][s]);
            }
        }
    }
    store_sums::<L, N, S>(&sums, to, vectors * LANES, first);
}
