//! Rows so few that they read keys and values as they are stored.

use super::stored::{Pieces, Stored, bytes_at, values};
use super::{Attend, Page, Scratch, load_sums, put_scores, store_sums};
use crate::kv::{HeadLayout, SCALED};
use crate::ops::cpu::bytes::Bytes;
use crate::ops::cpu::lanes::{LANES, Lanes};
use std::ops::Range;

impl<C: Stored> Attend<'_, '_, C> {
    /// Scores of the `N` rows from `row` on.
    #[inline(always)]
    pub(super) fn score_few<L: Bytes, const N: usize, const S: usize>(&mut self, block: &Range<usize>, row: usize) {
        let layout = &self.kv.layout;
        let Scratch { q, scores, .. } = &mut *self.scratch;
        let q = &q[row * layout.head_dim..].as_chunks::<N>().0[..layout.head_dim];
        let scores = scores[row..].first_chunk_mut::<N>().expect("each row has some");
        for page in self.kv.pages_of(block) {
            // From the beginning of a tile: a window may begin inside.
            let (mut at, end) = (page.tokens.start / LANES * LANES, page.tokens.end);
            while at < end {
                let to = LANES + page.at + at - page.tokens.start;
                if end - at > LANES {
                    let sums = products::<L, C, N, S>(q, &page, layout, at);
                    for s in 0..S {
                        put_scores::<L, N>(&sums[s], scores, to + s * LANES);
                    }
                    at += S * LANES;
                } else {
                    let [sums] = products::<L, C, N, 1>(q, &page, layout, at);
                    put_scores::<L, N>(&sums, scores, to);
                    at += LANES;
                }
            }
        }
    }

    /// Adds the block's values by their weights to the sums of the `N` rows from `row` on, the tokens in order.
    #[inline(always)]
    pub(super) fn weigh_few<L: Bytes, const N: usize>(&mut self, block: &Range<usize>, row: usize) {
        let vectors = self.kv.layout.head_dim / LANES;
        let mut first = 0;
        while first < vectors {
            // What is read at once has whole cache lines.
            if first + 4 <= vectors {
                self.weigh_vectors::<L, N, 4>(block, row, first);
                first += 4;
            } else {
                self.weigh_vectors::<L, N, 1>(block, row, first);
                first += 1;
            }
        }
    }

    #[inline(always)]
    fn weigh_vectors<L: Bytes, const N: usize, const S: usize>(
        &mut self,
        block: &Range<usize>,
        row: usize,
        first: usize,
    ) {
        let (layout, dim) = (&self.kv.layout, self.kv.layout.head_dim);
        let weights = self.scratch.scores[row..].first_chunk::<N>().expect("each row has some");
        let mut sums = load_sums::<L, N, S>(&self.scratch.sums[row * dim..], dim, first);
        for page in self.kv.pages_of(block) {
            let (from, width) = (page.tokens.start * dim + first * LANES, S * LANES * C::BYTES);
            let pieces = Pieces::new(page.values, from * C::BYTES, dim * C::BYTES, page.tokens.len(), width);
            for (at, piece) in pieces.enumerate() {
                L::prefetch_bytes(piece.as_ptr().wrapping_offset(page.ahead), width);
                let v = values::<L, C, S>(layout, page.values, page.tokens.start + at, piece, first);
                for n in 0..N {
                    let weight = L::splat(weights[n].0[LANES + page.at + at]);
                    for s in 0..S {
                        sums[n][s] = L::fma(weight, v[s], sums[n][s]);
                    }
                }
            }
        }
        store_sums::<L, N, S>(&sums, &mut self.scratch.sums[row * dim..], dim, first);
    }
}

/// `q . k` of `N` rows and the `S` tiles of tokens from token `at` of a page on.
#[inline(always)]
fn products<L: Lanes, C: Stored, const N: usize, const S: usize>(
    q: &[[f32; N]],
    page: &Page<'_>,
    layout: &HeadLayout,
    at: usize,
) -> [[L::V; N]; S] {
    let (dim, tokens) = (layout.head_dim, layout.page_tokens);
    let mut sums = [[L::splat(0.0); N]; S];
    let mut totals = sums;
    let keys = page.keys;
    let mut tiles: [Pieces<'_>; S] = std::array::from_fn(|s| {
        let (from, width) = layout.tile(at + s * LANES);
        Pieces::new(keys, from * C::BYTES, width * C::BYTES, q.len(), LANES * C::BYTES)
    });
    let mut ahead = tiles[0].ahead(page.ahead);
    for (d, q) in q.iter().enumerate() {
        // The tiles lie one behind the other.
        L::prefetch_bytes(ahead, S * LANES * C::BYTES);
        ahead = ahead.wrapping_add(S * LANES * C::BYTES);
        let mut k = [L::splat(0.0); S];
        for s in 0..S {
            k[s] = C::read::<L>(tiles[s].next().expect("as many as dimensions"), 0);
        }
        for n in 0..N {
            let q = L::splat(q[n]);
            for s in 0..S {
                sums[s][n] = L::fma(q, k[s], sums[s][n]);
            }
        }
        if C::HAS_SCALES && (d % SCALED == SCALED - 1 || d == dim - 1) {
            for s in 0..S {
                let scales = layout.scales_at() + 2 * (d / SCALED * tokens + at + s * LANES);
                let scale = L::halves(bytemuck::cast_ref(bytes_at::<32>(keys, scales)));
                for n in 0..N {
                    totals[s][n] = L::fma(sums[s][n], scale, totals[s][n]);
                    sums[s][n] = L::splat(0.0);
                }
            }
        }
    }
    if C::HAS_SCALES { totals } else { sums }
}
