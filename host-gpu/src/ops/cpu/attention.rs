//! Attention of some tokens' query heads over the KV pages of their sequence.
//!
//! All query heads that share a KV head, of some neighbouring tokens, are the rows of two small matrix products: with
//! the keys, which gives scores, a vector of tokens at a time; and with the values, a vector of dimensions at a time.
//! Each row's sums are made in the order of dimensions, then of tokens, whatever rows are computed beside it.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::bytes::Bytes;
use super::lanes::{LANES, Lanes};
use super::vector::{soft_cap, softmax};
use super::{Cpu, Task};
use crate::kv::{HeadLayout, KvType, SCALED};
use crate::ops::pool::View;
use std::marker::PhantomData;
use std::ops::Range;

/// Keys are read in whole vectors. What follows the last one in memory may be read, too, and means nothing: the arena
/// goes on for this many bytes behind its last page.
pub const READ_BEYOND: usize = 2 * 4 * LANES;

/// The keys and values of one layer and one KV head, spread over pages.
#[derive(Clone, Copy, Debug)]
pub struct KvHead<'a> {
    /// All pages of the engine, `page_bytes` each, and [`READ_BEYOND`] bytes.
    pub arena: &'a [u8],
    /// The sequence's pages in order.
    pub pages: &'a [u32],
    /// Bytes in a page.
    pub page_bytes: usize,
    /// Where in a page this head begins.
    pub offset: usize,
    /// How the head's part of a page is used; its `head_dim` is a multiple of 16.
    pub layout: HeadLayout,
}

/// The keys and values of one page, and which of its tokens are meant.
struct Page<'a> {
    keys: &'a [u8],
    values: &'a [u8],
    tokens: Range<usize>,
    /// The first of these tokens, counted from the beginning of the range asked for.
    at: usize,
    /// From this page in memory to the next one: what comes next is asked for in time, since no processor can guess it.
    ahead: isize,
}

impl<'a> KvHead<'a> {
    /// The pages that have `tokens`, in order.
    #[inline(always)]
    fn pages_of(&self, tokens: &Range<usize>) -> impl Iterator<Item = Page<'a>> {
        let Self { arena, pages, page_bytes, offset, layout } = *self;
        let (Range { start, end }, size, side) = (tokens.clone(), layout.page_tokens, layout.side_bytes());
        let first = start / size;
        let in_use = &pages[first..end.div_ceil(size)];
        in_use.iter().zip(first..).map(move |(page, n)| {
            let next = in_use.get(n - first + 1).unwrap_or(page);
            let ahead = (*next as isize - *page as isize) * page_bytes as isize;
            let tokens = start.saturating_sub(n * size)..(end - n * size).min(size);
            let head = &arena[*page as usize * page_bytes + offset..];
            let (keys, values) = (&head[..side + READ_BEYOND], &head[side..2 * side]);
            Page { keys, values, at: n * size + tokens.start - start, tokens, ahead }
        })
    }
}

/// Neighbouring tokens of a sequence and one KV head's share of their query heads.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Begins with the first token's first head.
    pub q: &'a [f32],
    /// From one token's heads to the next one's.
    pub stride: usize,
    /// Query heads that share the KV head.
    pub group: usize,
    /// The first token's place in its sequence; it attends to itself and to those before it.
    pub position: usize,
    /// Each attends to all tokens before this one instead, also to those behind it.
    pub until: Option<usize>,
    /// How many tokens.
    pub tokens: usize,
    /// How many tokens, itself included, each attends to, if not all.
    pub window: Option<usize>,
}

impl Queries<'_> {
    /// What token `n` attends to.
    #[inline(always)]
    fn range(&self, n: usize) -> Range<usize> {
        let end = self.until.unwrap_or(self.position + n + 1);
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// How scores are made of products.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// Products are multiplied by this.
    pub scale: f32,
    /// Then they become `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
}

/// How numbers are stored, and how a vector of them is read.
trait Stored {
    /// Whether each [`SCALED`] numbers have a scale, for [`scales`] to read.
    const HAS_SCALES: bool;
    /// Bytes of a number.
    const BYTES: usize;
    /// Sixteen numbers from number `at` on.
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V;
}

/// Pieces of a side at equal distances. That all lie inside is checked when it is made, and not again for each.
struct Pieces<'a> {
    next: *const u8,
    step: usize,
    left: usize,
    width: usize,
    side: PhantomData<&'a [u8]>,
}

impl<'a> Pieces<'a> {
    /// `count` pieces of `width` bytes, `step` bytes from one to the next, the first at `from`.
    ///
    /// # Panics
    /// If one is not inside.
    #[inline(always)]
    fn new(side: &'a [u8], from: usize, step: usize, count: usize, width: usize) -> Self {
        assert!(count == 0 || from + (count - 1) * step + width <= side.len(), "pieces are inside");
        Self { next: side.as_ptr().wrapping_add(from), step, left: count, width, side: PhantomData }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let piece = self.next;
        self.next = piece.wrapping_add(self.step);
        #[expect(unsafe_code, reason = "a check for each vector would take as long as what is computed with it")]
        // SAFETY: it is one of the pieces that `new` found to be inside the slice, which is borrowed for as long.
        Some(unsafe { std::slice::from_raw_parts(piece, self.width) })
    }
}

/// `N` bytes from `at` on.
#[inline(always)]
fn bytes_at<const N: usize>(side: &[u8], at: usize) -> &[u8; N] {
    side[at..].first_chunk().expect("vectors are read where READ_BEYOND allows")
}

struct F32;
struct F16;
struct Q8;

impl Stored for F32 {
    const HAS_SCALES: bool = false;
    const BYTES: usize = 4;
    #[inline(always)]
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V {
        L::floats(bytemuck::cast_ref(bytes_at::<64>(side, 4 * at)))
    }
}

impl Stored for F16 {
    const HAS_SCALES: bool = false;
    const BYTES: usize = 2;
    #[inline(always)]
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V {
        L::halves(bytemuck::cast_ref(bytes_at::<32>(side, 2 * at)))
    }
}

impl Stored for Q8 {
    const HAS_SCALES: bool = true;
    const BYTES: usize = 1;
    #[inline(always)]
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V {
        L::bytes(bytemuck::cast_ref(bytes_at::<16>(side, at)))
    }
}

struct Attend<'a, 'v, C> {
    stored: PhantomData<C>,
    queries: Queries<'a>,
    kv: KvHead<'a>,
    scoring: Scoring,
    scores: &'a mut Vec<f32>,
    out: View<'v>,
}

/// Calls `$each` with the number of rows that go together, from row `$at` of `$rows` on, until none is left.
macro_rules! rows_together {
    ($T:ident, $at:ident, $rows:expr, $each:ident $args:tt) => {
        while $at < $rows {
            let left = $rows - $at;
            if left >= $T {
                rows_together!(@ $each, $T, $at, $args);
            } else if $T > 4 && left >= 4 {
                rows_together!(@ $each, 4, $at, $args);
            } else if $T > 3 && left >= 3 {
                rows_together!(@ $each, 3, $at, $args);
            } else {
                rows_together!(@ $each, 1, $at, $args);
            }
        }
    };
    (@ $each:ident, $N:tt, $at:ident, ($self:ident, $L:ident, $S:ident, $($arg:expr),*)) => {{
        $self.$each::<$L, $N, $S>($at, $($arg),*);
        $at += $N;
    }};
}

impl<C: Stored> Task for Attend<'_, '_, C> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(mut self) {
        let q = self.queries;
        let all = q.range(0).start..q.range(q.tokens - 1).end;
        // Room for whole vectors before the first token and behind the last one.
        let stride = LANES + all.len().next_multiple_of(LANES) + S * LANES;
        let rows = q.tokens * q.group;
        let needed = rows * stride + T * self.kv.layout.head_dim;
        if self.scores.len() < needed {
            self.scores.resize(needed, 0.0);
        }
        let mut row = 0;
        rows_together!(T, row, rows, score(self, L, S, &all, stride));
        for (row, scores) in self.scores.chunks_exact_mut(stride).enumerate().take(rows) {
            let own = q.range(row / q.group);
            let own = own.start - all.start..own.end - all.start;
            let scores = &mut scores[LANES..][..all.len()];
            if let Some(cap) = self.scoring.cap {
                soft_cap::<L>(&mut scores[own.clone()], cap);
            }
            softmax::<L>(&mut scores[own.clone()]);
            // What others attend to counts nothing here.
            scores[..own.start].fill(0.0);
            scores[own.end..].fill(0.0);
        }
        let mut row = 0;
        rows_together!(T, row, rows, weigh(self, L, S, &all, stride));
    }
}

impl<C: Stored> Attend<'_, '_, C> {
    /// Scores of `N` rows from `row` on: scores (rows, stride), where the first token's is number [`LANES`].
    #[inline(always)]
    fn score<L: Bytes, const N: usize, const S: usize>(&mut self, row: usize, all: &Range<usize>, stride: usize) {
        let (queries, dim) = (self.queries, self.kv.layout.head_dim);
        let (scores, q) = self.scores.split_at_mut(queries.tokens * queries.group * stride);
        // By dimension: what is multiplied with one vector of keys lies side by side.
        let q = &mut q.as_chunks_mut::<N>().0[..dim];
        for n in 0..N {
            let (token, head) = ((row + n) / queries.group, (row + n) % queries.group);
            let from = &queries.q[token * queries.stride + head * dim..][..dim];
            q.iter_mut().zip(from).for_each(|(q, x)| q[n] = *x);
        }
        let scores = &mut scores[row * stride..(row + N) * stride];
        let scale = L::splat(self.scoring.scale);
        for page in self.kv.pages_of(all) {
            // From the beginning of a tile: a window may begin inside.
            let (mut at, end) = (page.tokens.start / LANES * LANES, page.tokens.end);
            while at < end {
                let to = LANES + page.at + at - page.tokens.start;
                if end - at > LANES {
                    let sums = products::<L, C, N, S>(q, &page, &self.kv.layout, at);
                    put_scores::<L, N, S>(&sums, scale, scores, stride, to);
                    at += S * LANES;
                } else {
                    let sums = products::<L, C, N, 1>(q, &page, &self.kv.layout, at);
                    put_scores::<L, N, 1>(&sums, scale, scores, stride, to);
                    at += LANES;
                }
            }
        }
    }

    /// `out = sum over tokens of p[t] * v[t]` for `N` rows from `row` on, the tokens in order.
    #[inline(always)]
    fn weigh<L: Bytes, const N: usize, const S: usize>(&mut self, row: usize, all: &Range<usize>, stride: usize) {
        let vectors = self.kv.layout.head_dim / LANES;
        let mut first = 0;
        while first < vectors {
            // What is read at once has whole cache lines; six rows and more have too many sums for that elsewhere.
            if (N <= 4 || S > 1) && first + 4 <= vectors {
                self.weigh_vectors::<L, N, 4>(row, all, stride, first);
                first += 4;
            } else if first + S <= vectors {
                self.weigh_vectors::<L, N, S>(row, all, stride, first);
                first += S;
            } else {
                self.weigh_vectors::<L, N, 1>(row, all, stride, first);
                first += 1;
            }
        }
    }

    #[inline(always)]
    fn weigh_vectors<L: Bytes, const N: usize, const S: usize>(
        &mut self,
        row: usize,
        all: &Range<usize>,
        stride: usize,
        first: usize,
    ) {
        let HeadLayout { head_dim: dim, .. } = self.kv.layout;
        let mut p: [&[f32]; N] = [&[]; N];
        for (n, p) in p.iter_mut().enumerate() {
            *p = &self.scores[(row + n) * stride + LANES..][..all.len()];
        }
        let mut sums = [[L::splat(0.0); S]; N];
        for page in self.kv.pages_of(all) {
            let mut page_p = [&p[0][..0]; N];
            for n in 0..N {
                page_p[n] = &p[n][page.at..][..page.tokens.len()];
            }
            let (from, width) = (page.tokens.start * dim + first * LANES, S * LANES * C::BYTES);
            let pieces = Pieces::new(page.values, from * C::BYTES, dim * C::BYTES, page.tokens.len(), width);
            for (at, piece) in pieces.enumerate() {
                L::prefetch_bytes(piece.as_ptr().wrapping_offset(page.ahead), width);
                let mut v = [L::splat(0.0); S];
                for s in 0..S {
                    v[s] = C::read::<L>(piece, s * LANES);
                    if C::HAS_SCALES {
                        let blocks = dim.div_ceil(SCALED);
                        let scale = (page.tokens.start + at) * blocks + (first + s) * LANES / SCALED;
                        let scale = L::half(*bytes_at(page.values, self.kv.layout.scales_at() + 2 * scale));
                        v[s] = L::mul(v[s], L::splat(scale));
                    }
                }
                for n in 0..N {
                    let p = L::splat(page_p[n][at]);
                    for s in 0..S {
                        sums[n][s] = L::fma(p, v[s], sums[n][s]);
                    }
                }
            }
        }
        for n in 0..N {
            let (token, head) = ((row + n) / self.queries.group, (row + n) % self.queries.group);
            let out = &mut self.out.row(token)[head * dim + first * LANES..][..S * LANES];
            for (s, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                L::store(sums[n][s], out);
            }
        }
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
    let mut ahead = tiles[0].next.wrapping_offset(page.ahead);
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

/// Stores `S` vectors of scores for each of `N` rows, from token `to` on; what is beyond the tokens meant is
/// overwritten by the next vector or not looked at.
#[inline(always)]
fn put_scores<L: Lanes, const N: usize, const S: usize>(
    sums: &[[L::V; N]; S],
    scale: L::V,
    scores: &mut [f32],
    stride: usize,
    to: usize,
) {
    for n in 0..N {
        let out = &mut scores[n * stride + to..][..S * LANES];
        for (s, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            L::store(L::mul(sums[s][n], scale), out);
        }
    }
}

impl Cpu {
    /// `out[t][h] = softmax(cap * tanh(q[t][h] . k * scale / cap)) v` for the query heads that share one
    /// KV head; without a cap `softmax(q[t][h] . k * scale) v`.
    ///
    /// out (tokens, group * head_dim); `scores` is scratch.
    pub fn attend(self, queries: Queries<'_>, kv: KvHead<'_>, scoring: Scoring, scores: &mut Vec<f32>, out: View<'_>) {
        assert!(queries.tokens > 0 && out.range().len() == queries.group * kv.layout.head_dim, "whole heads");
        assert!(kv.layout.head_dim.is_multiple_of(LANES), "whole vectors");
        let end = queries.position + queries.tokens;
        assert!(end <= kv.pages.len() * kv.layout.page_tokens, "tokens have pages");
        match kv.layout.kind {
            KvType::F32 => self.run(Attend::<F32> { stored: PhantomData, queries, kv, scoring, scores, out }),
            KvType::F16 => self.run(Attend::<F16> { stored: PhantomData, queries, kv, scoring, scores, out }),
            KvType::Q8_0 => self.run(Attend::<Q8> { stored: PhantomData, queries, kv, scoring, scores, out }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CodePath, reference};
    use super::*;
    use crate::ops::pool::Pool;

    /// Pages with random keys and values, and the same token by token.
    struct Fixture {
        arena: Vec<u8>,
        pages: Vec<u32>,
        page_bytes: usize,
        keys: Vec<f32>,
        values: Vec<f32>,
        q: Vec<f32>,
        until: Option<usize>,
    }

    const OFFSET: usize = 32;
    const GROUP: usize = 3;

    fn fixture(layout: HeadLayout, tokens: usize) -> Fixture {
        let dim = layout.head_dim;
        let page_bytes = OFFSET + 2 * layout.side_bytes() + 16;
        let pages: Vec<u32> = (0..tokens.div_ceil(layout.page_tokens) as u32).rev().collect();
        let numbers = |seed: usize| -> Vec<f32> {
            (0..tokens * dim).map(|i| ((i * 7919 + seed) % 1000) as f32 / 500.0 - 1.0).collect()
        };
        let (keys, values) = (numbers(0), numbers(77));
        // What was there before must not matter.
        let mut arena = vec![0xff; pages.len() * page_bytes + READ_BEYOND];
        for t in 0..tokens {
            let page = pages[t / layout.page_tokens] as usize * page_bytes + OFFSET;
            let (key, value) = (&keys[t * dim..][..dim], &values[t * dim..][..dim]);
            let (keys, values) = arena[page..][..2 * layout.side_bytes()].split_at_mut(layout.side_bytes());
            layout.write_key(keys, t % layout.page_tokens, key);
            layout.write_value(values, t % layout.page_tokens, value);
        }
        let q = (0..tokens * GROUP * dim).map(|i| ((i * 31) % 17) as f32 / 9.0 - 1.0).collect();
        Fixture { arena, pages, page_bytes, keys, values, q, until: None }
    }

    impl Fixture {
        /// The tokens from `from` on, `chunk` at a time.
        fn run(
            &self,
            cpu: Cpu,
            layout: HeadLayout,
            scoring: Scoring,
            w: Option<usize>,
            from: usize,
            chunk: usize,
        ) -> Vec<f32> {
            let width = GROUP * layout.head_dim;
            let (arena, pages, page_bytes) = (&self.arena[..], &self.pages[..], self.page_bytes);
            let kv = KvHead { arena, pages, page_bytes, offset: OFFSET, layout };
            let tokens = self.q.len() / width;
            let mut out = vec![0.0; (tokens - from) * width];
            for position in (from..tokens).step_by(chunk) {
                let count = chunk.min(tokens - position);
                let q = &self.q[position * width..];
                let queries =
                    Queries { q, stride: width, group: GROUP, position, tokens: count, window: w, until: self.until };
                let out = &mut out[(position - from) * width..][..count * width];
                Pool::new(1).unwrap().columns(out, width, width, |view| {
                    cpu.attend(queries, kv, scoring, &mut vec![f32::NAN; 7], view);
                });
            }
            out
        }
    }

    #[test]
    fn tokens_may_attend_to_those_behind_them() {
        for (dim, page_tokens, tokens) in [(16, 3, 1), (32, 7, 20), (64, 40, 70)] {
            let layout = HeadLayout { kind: KvType::F32, page_tokens, head_dim: dim };
            let fixture = Fixture { until: Some(tokens), ..fixture(layout, tokens) };
            let mut want = vec![0.0; tokens * GROUP * dim];
            for (q, out) in fixture.q.chunks_exact(GROUP * dim).zip(want.chunks_exact_mut(GROUP * dim)) {
                let scoring = reference::Scoring { dim, scale: 0.125, cap: None, window: tokens };
                reference::attend(q, &fixture.keys, &fixture.values, &scoring, out);
            }
            for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
                for chunk in [1, 8, tokens] {
                    let got = fixture.run(cpu, layout, Scoring { scale: 0.125, cap: None }, None, 0, chunk);
                    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{} {dim}", cpu.path());
                }
            }
        }
    }

    #[test]
    fn pages_windows_chunks_types_and_paths_make_no_difference() {
        for (dim, page_tokens, tokens, window) in
            [(16, 3, 1, 1), (64, 5, 11, 100), (64, 5, 11, 4), (80, 40, 70, 8), (128, 33, 90, 90), (128, 7, 50, 23)]
        {
            for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
                let layout = HeadLayout { kind, page_tokens, head_dim: dim };
                let fixture = fixture(layout, tokens);
                for cap in [None, Some(0.5)] {
                    let width = GROUP * dim;
                    let mut want = vec![0.0; tokens * width];
                    for t in 0..tokens {
                        let scoring = reference::Scoring { dim, scale: 0.125, cap, window };
                        let kv = |all: &[f32]| all[..(t + 1) * dim].to_vec();
                        let (q, out) = (&fixture.q[t * width..][..width], &mut want[t * width..][..width]);
                        reference::attend(q, &kv(&fixture.keys), &kv(&fixture.values), &scoring, out);
                    }
                    for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
                        let scoring = Scoring { scale: 0.125, cap };
                        let whole = fixture.run(cpu, layout, scoring, Some(window), 0, tokens);
                        let tolerance = match kind {
                            KvType::F32 => 1e-5,
                            KvType::F16 => 1e-3,
                            KvType::Q8_0 => 2e-2,
                        };
                        for (a, b) in whole.iter().zip(&want) {
                            assert!((a - b).abs() < tolerance, "{kind} {} {dim}: {a} {b}", cpu.path());
                        }
                        for (from, chunk) in [(0, 1), (0, 3), (tokens / 2, 8)] {
                            let parts = fixture.run(cpu, layout, scoring, Some(window), from, chunk);
                            assert!(parts == whole[from * width..], "{kind} {} chunks of {chunk}", cpu.path());
                        }
                    }
                }
            }
        }
    }
}
