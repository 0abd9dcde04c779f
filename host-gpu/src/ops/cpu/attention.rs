//! Attention of some tokens' query heads over the KV pages of their sequence.
//!
//! All query heads that share a KV head, of some neighbouring tokens, are the rows of two small matrix products: with
//! the keys, which gives scores, a vector of tokens at a time; and with the values, a vector of dimensions at a time.
//! Scores are there for a block of tokens at a time: their weights are relative to the largest score so far, and what was summed
//! before is made so, too, when a larger one comes (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
//! Each row's sums are made in the order of dimensions, then of tokens and blocks, whatever rows are computed beside it.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::bytes::Bytes;
use super::lanes::{LANES, Lanes};
use super::vector::{exp2, soft_cap};
use super::{Cpu, Task};
use crate::kv::{HeadLayout, KvType};
use crate::ops::pool::View;
use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;
use stored::{F16, F32, Q8, Stored};

mod few;
mod many;
mod stored;
#[cfg(test)]
mod tests;

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
            let next = pages.get(n + 1).unwrap_or(page);
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

/// Tokens whose scores are there at a time. Blocks are counted from the beginning of the sequence, whatever is asked for, so that
/// each row's sums are made in the same order alone, in a batch, and at any chunking.
const BLOCK: usize = 512;
/// Rows that read keys and values as they are stored together, at most.
const FEW_TOGETHER: usize = 4;
/// Rows whose sums are made together, at most: those of floats fit the registers on any path.
const ROWS: usize = 6;
/// From one row's scores to the next one's: there is room for whole vectors before the first token and behind the last one.
const STRIDE: usize = LANES + BLOCK + 2 * LANES;

/// A vector in memory, within one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Vector([f32; LANES]);

/// The scores of a row, as exponents of two, then the weights, for a block's tokens; the first token's is number [`LANES`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Scores([f32; STRIDE]);

/// What is known of the scores of a row so far.
#[derive(Clone, Copy)]
struct Seen {
    /// Finite, whatever scores are: nothing becomes a difference of infinities that are equal.
    max: f32,
    /// Of `2^(score - max)`.
    sum: f32,
}

/// Memory for [`Cpu::attend`], kept for the next time.
#[derive(Default)]
pub struct Scratch {
    /// For each row.
    scores: Vec<Scores>,
    /// (rows, head_dim): queries, scaled; those of rows that go together (head_dim, rows)
    q: Vec<f32>,
    /// (rows, head_dim): sums of values by their weights
    sums: Vec<f32>,
    /// Keys or values as floats.
    wide: Vec<Vector>,
    /// For each row.
    seen: Vec<Seen>,
}

/// Calls a function with the number of rows that go together as a constant.
macro_rules! with_rows {
    ($rows:expr, $N:ident => $call:expr) => {
        match $rows {
            1 => with_rows!(@ $N, 1, $call),
            2 => with_rows!(@ $N, 2, $call),
            3 => with_rows!(@ $N, 3, $call),
            4 => with_rows!(@ $N, 4, $call),
            6 => with_rows!(@ $N, 6, $call),
            _ => unreachable!("so many rows do not go together"),
        }
    };
    (@ $N:ident, $n:expr, $call:expr) => {{
        const $N: usize = $n;
        $call
    }};
}
use with_rows;

struct Attend<'a, 'v, C> {
    stored: PhantomData<C>,
    queries: Queries<'a>,
    kv: KvHead<'a>,
    scoring: Scoring,
    scratch: &'a mut Scratch,
    out: View<'v>,
}

/// Brings queries side by side.
struct Beside<'x, 'a, 'v, C>(&'x mut Attend<'a, 'v, C>);
/// Makes scores of a block's tokens.
struct Score<'x, 'a, 'v, C>(&'x mut Attend<'a, 'v, C>, Range<usize>);
/// Makes weights of them. This is compiled apart from the others: its constants would take the registers of their sums.
struct Weights<'x, 'a, 'v, C>(&'x mut Attend<'a, 'v, C>, Range<usize>);
/// Sums the block's values by their weights.
struct Weigh<'x, 'a, 'v, C>(&'x mut Attend<'a, 'v, C>, Range<usize>);

impl<C: Stored> Task for Beside<'_, '_, '_, C> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let mut row = 0;
        while row < self.0.rows() {
            let n = self.0.together(row);
            with_rows!(n, N => self.0.beside::<N>(row));
            row += n;
        }
    }
}

impl<C: Stored> Task for Score<'_, '_, '_, C> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self(attend, block) = self;
        if !attend.are_few() {
            return attend.score_many::<L, S>(&block);
        }
        let mut row = 0;
        while row < attend.rows() {
            let n = attend.together(row);
            with_rows!(n, N => attend.score_few::<L, N, S>(&block, row));
            row += n;
        }
    }
}

impl<C: Stored> Task for Weights<'_, '_, '_, C> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        for row in 0..self.0.rows() {
            self.0.weights::<L>(row, &self.1);
        }
    }
}

impl<C: Stored> Task for Weigh<'_, '_, '_, C> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self(attend, block) = self;
        if !attend.are_few() {
            return attend.weigh_many::<L, S>(&block);
        }
        let mut row = 0;
        while row < attend.rows() {
            let n = attend.together(row);
            with_rows!(n, N => attend.weigh_few::<L, N>(&block, row));
            row += n;
        }
    }
}

impl<C: Stored> Attend<'_, '_, C> {
    fn rows(&self) -> usize {
        self.queries.tokens * self.queries.group
    }

    /// Whether rows read keys and values as they are stored. More have them widened to floats first, some at a time, so that each is read once
    /// for all rows.
    fn are_few(&self) -> bool {
        self.rows() <= C::FEW_ROWS
    }

    /// How many rows go together from `row` on: what remains is not alone, if that can be.
    fn together(&self, row: usize) -> usize {
        match (self.rows() - row, self.are_few()) {
            (5, _) | (6, true) => 3,
            (7 | 8, _) => 4,
            (left, true) => left.min(FEW_TOGETHER),
            (left, false) => left.min(ROWS),
        }
    }

    fn run(mut self, cpu: Cpu) {
        let q = self.queries;
        let all = q.range(0).start..q.range(q.tokens - 1).end;
        self.prepare();
        cpu.run(Beside(&mut self));
        let mut start = all.start;
        while start < all.end {
            let block = start..all.end.min(start / BLOCK * BLOCK + BLOCK);
            cpu.run(Score(&mut self, block.clone()));
            cpu.run(Weights(&mut self, block.clone()));
            cpu.run(Weigh(&mut self, block.clone()));
            start = block.end;
        }
        let dim = self.kv.layout.head_dim;
        for (row, (sums, seen)) in self.scratch.sums.chunks_exact(dim).zip(&self.scratch.seen).enumerate() {
            let (by, out) = (1.0 / seen.sum, self.out.row(row / q.group));
            let out = &mut out[row % q.group * dim..][..dim];
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * by);
        }
    }

    /// Makes room.
    fn prepare(&mut self) {
        let (dim, rows, few) = (self.kv.layout.head_dim, self.rows(), self.are_few());
        let Scratch { scores, q, sums, wide, seen } = &mut *self.scratch;
        grow(scores, rows, Scores([0.0; STRIDE]));
        grow(q, rows * dim, 0.0);
        grow(sums, rows * dim, 0.0);
        sums[..rows * dim].fill(0.0);
        seen.clear();
        seen.resize(rows, Seen { max: f32::MIN, sum: 0.0 });
        if !few {
            grow(wide, many::wide::<C>(dim), Vector([0.0; LANES]));
        }
    }

    /// Brings the queries of the `N` rows from `row` on side by side, scaled.
    #[inline(always)]
    fn beside<const N: usize>(&mut self, row: usize) {
        let (queries, dim) = (self.queries, self.kv.layout.head_dim);
        let mut from = [&queries.q[..dim]; N];
        for n in 0..N {
            let (token, head) = ((row + n) / queries.group, (row + n) % queries.group);
            from[n] = &queries.q[token * queries.stride + head * dim..][..dim];
        }
        // Scores are exponents of two, but those that have a cap.
        let scale = self.scoring.scale * if self.scoring.cap.is_some() { 1.0 } else { LOG2_E };
        let to = &mut self.scratch.q[row * dim..].as_chunks_mut::<N>().0[..dim];
        for d in 0..dim {
            for n in 0..N {
                to[d][n] = from[n][d] * scale;
            }
        }
    }

    /// What `row` attends to of a block, counted from its beginning.
    #[inline(always)]
    fn own(&self, row: usize, block: &Range<usize>) -> Range<usize> {
        let own = self.queries.range(row / self.queries.group);
        let end = own.end.clamp(block.start, block.end);
        own.start.clamp(block.start, end) - block.start..end - block.start
    }

    /// Makes weights, relative to the largest score so far, of the scores of `row`, and brings its sums up to date.
    #[inline(always)]
    fn weights<L: Bytes>(&mut self, row: usize, block: &Range<usize>) {
        let own = self.own(row, block);
        let Scratch { scores, sums, seen, .. } = &mut *self.scratch;
        let scores = &mut scores[row].0[LANES..];
        if own.is_empty() {
            return scores[..block.len()].fill(0.0);
        }
        let vectors = own.len().div_ceil(LANES);
        scores[own.end..own.start + vectors * LANES].fill(f32::NEG_INFINITY);
        let vectors = &mut scores[own.start..].as_chunks_mut::<LANES>().0[..vectors];
        let mut max = L::splat(f32::NEG_INFINITY);
        for scores in vectors.iter_mut() {
            if let Some(cap) = self.scoring.cap {
                soft_cap::<L>(scores, cap);
                scores.iter_mut().for_each(|score| *score *= LOG2_E);
            }
            max = L::max(max, L::load(scores));
        }
        let (seen, max) = (&mut seen[row], largest::<L>(max));
        let max = if max > seen.max { max } else { seen.max };
        for scores in vectors.iter_mut() {
            for score in scores {
                *score = exp2::<L>(*score - max);
            }
        }
        // What others attend to counts nothing here.
        let behind = own.start + vectors.len() * LANES;
        scores[..own.start].fill(0.0);
        scores[own.end..behind.max(block.len())].fill(0.0);
        let mut sum = L::splat(0.0);
        for weights in scores[own.start..behind].as_chunks::<LANES>().0 {
            sum = L::add(sum, L::load(weights));
        }
        let factor = exp2::<L>(seen.max - max);
        if factor != 1.0 {
            let dim = self.kv.layout.head_dim;
            sums[row * dim..][..dim].iter_mut().for_each(|x| *x *= factor);
        }
        *seen = Seen { max, sum: seen.sum * factor + L::sum(sum) };
    }
}

/// At least `len` values.
fn grow<T: Clone>(values: &mut Vec<T>, len: usize, value: T) {
    if values.len() < len {
        values.resize(len, value);
    }
}

/// The largest lane.
#[inline(always)]
fn largest<L: Lanes>(v: L::V) -> f32 {
    let mut lanes = [0.0; LANES];
    L::store(v, &mut lanes);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
        }
    }
    lanes[0]
}

/// `S` vectors of dimensions of the sums of `N` rows, from vector `first` on.
#[inline(always)]
fn load_sums<L: Lanes, const N: usize, const S: usize>(from: &[f32], dim: usize, first: usize) -> [[L::V; S]; N] {
    let mut sums = [[L::splat(0.0); S]; N];
    for n in 0..N {
        let from = from[n * dim..].as_chunks::<LANES>().0;
        for s in 0..S {
            sums[n][s] = L::load(&from[first + s]);
        }
    }
    sums
}

#[inline(always)]
fn store_sums<L: Lanes, const N: usize, const S: usize>(
    sums: &[[L::V; S]; N],
    to: &mut [f32],
    dim: usize,
    first: usize,
) {
    for n in 0..N {
        let to = to[n * dim..].as_chunks_mut::<LANES>().0;
        for s in 0..S {
            L::store(sums[n][s], &mut to[first + s]);
        }
    }
}

/// Stores a vector of scores for each of `N` rows, from number `to` on; what is beyond the tokens meant is
/// overwritten by the next vector or not looked at.
#[inline(always)]
fn put_scores<L: Lanes, const N: usize>(sums: &[L::V; N], scores: &mut [Scores; N], to: usize) {
    for n in 0..N {
        L::store(sums[n], scores[n].0[to..].first_chunk_mut().expect("there is room behind the last token"));
    }
}

impl Cpu {
    /// `out[t][h] = softmax(cap * tanh(q[t][h] . k * scale / cap)) v` for the query heads that share one
    /// KV head; without a cap `softmax(q[t][h] . k * scale) v`.
    ///
    /// out (tokens, group * head_dim); what was in `scratch` means nothing.
    pub fn attend(self, queries: Queries<'_>, kv: KvHead<'_>, scoring: Scoring, scratch: &mut Scratch, out: View<'_>) {
        assert!(queries.tokens > 0 && out.range().len() == queries.group * kv.layout.head_dim, "whole heads");
        assert!(kv.layout.head_dim.is_multiple_of(LANES), "whole vectors");
        let end = queries.position + queries.tokens;
        assert!(end <= kv.pages.len() * kv.layout.page_tokens, "tokens have pages");
        match kv.layout.kind {
            KvType::F32 => Attend::<F32> { stored: PhantomData, queries, kv, scoring, scratch, out }.run(self),
            KvType::F16 => Attend::<F16> { stored: PhantomData, queries, kv, scoring, scratch, out }.run(self),
            KvType::Q8_0 => Attend::<Q8> { stored: PhantomData, queries, kv, scoring, scratch, out }.run(self),
        }
    }
}
