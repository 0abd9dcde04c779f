//! Quantised weights times f32 activations.
//!
//! `out[t][r] = sum over c of w[r][c] * x[t][c]`: w (rows, cols) stays quantised, x (tokens, cols).
//! Few tokens: each block is decoded in registers and used at once, which reads the weights once
//! and nothing else. Many tokens: a chunk of rows is decoded once into a panel that stays in
//! cache, then multiplied with every tile of tokens. Both add the products of one output in the
//! same order into one vector, so both give the same bits.

use super::blocks::Block;
use super::lanes::{LANES, Lanes};
use super::{Cpu, SMALL_TILE, Task};
use crate::format::quant::*;
use crate::ops::pool::{Pool, View};
use std::cell::RefCell;
use std::ops::Range;

/// Weights of about this many entries are one chunk of work: some microseconds.
const CHUNK_WEIGHTS: usize = 32 * 1024;
/// A chunk of few tokens' work may grow to this many.
const CHUNK_WEIGHTS_MAX: usize = 256 * 1024;
/// Bytes that a prefetch brings.
const CACHE_LINE: usize = 64;
/// How far ahead of the weights being decoded memory is asked for: some rows.
const AHEAD: usize = 2048;
/// Up to this many tokens are multiplied without a panel.
const DIRECT_TOKENS: usize = 4;

/// A weight matrix: its bytes lie in the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How numbers are stored.
    pub quant: Quant,
    /// Outputs.
    pub rows: usize,
    /// Inputs; a multiple of 32 and of the weights in a block.
    pub cols: usize,
    /// `rows` rows of blocks.
    pub bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let row = self.quant.row();
        self.cols / row.weights * row.bytes
    }

    fn rows_bytes(&self, rows: &Range<usize>) -> &'a [u8] {
        let size = self.row_bytes();
        &self.bytes[rows.start * size..rows.end * size]
    }
}

/// Activations (tokens, cols), and the same again in tiles when there are many tokens.
pub struct Input<'a> {
    rows: &'a [f32],
    cols: usize,
    /// (tiles, cols / 16, tile, 16); empty for few tokens.
    packed: &'a [f32],
    /// Tokens in a tile.
    tile: usize,
}

impl<'a> Input<'a> {
    /// Prepares `rows` of `cols` values; `scratch` keeps the tiles.
    pub fn new(cpu: Cpu, pool: &mut Pool, rows: &'a [f32], cols: usize, scratch: &'a mut Vec<f32>) -> Self {
        assert!(cols.is_multiple_of(32) && rows.len().is_multiple_of(cols), "whole rows");
        let tokens = rows.len() / cols;
        if tokens <= DIRECT_TOKENS {
            return Self { rows, cols, packed: &[], tile: 1 };
        }
        let tile = cpu.tile_tokens(tokens);
        scratch.resize(tokens.div_ceil(tile) * tile * cols, 0.0);
        pool.rows(scratch, tile * cols, |n, out| {
            for (step, group) in out.as_chunks_mut::<LANES>().0.chunks_mut(tile).enumerate() {
                for (t, to) in group.iter_mut().enumerate() {
                    // Tokens beyond the last are zero: their products are never read.
                    *to = match rows.get((n * tile + t) * cols + step * LANES..) {
                        Some(from) if !from.is_empty() => *from.first_chunk().unwrap_or(&[0.0; LANES]),
                        _ => [0.0; LANES],
                    };
                }
            }
        });
        Self { rows, cols, packed: scratch, tile }
    }

    fn tokens(&self) -> usize {
        self.rows.len() / self.cols
    }
}

thread_local! {
    /// A thread's panel of decoded weights and its products, kept between operations.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    panel: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// `part[t][r - rows.start] = w[r] . x[t]`.
struct Product<'a> {
    w: Matrix<'a>,
    rows: Range<usize>,
    x: &'a Input<'a>,
    panel: &'a mut Vec<f32>,
    /// (tokens, rows of the range)
    part: &'a mut [f32],
}

impl Task for Product<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize>(self) {
        match self.w.quant {
            Quant::F32 => self.of::<L, BlockF32, R, T>(),
            Quant::F16 => self.of::<L, BlockF16, R, T>(),
            Quant::Bf16 => self.of::<L, BlockBf16, R, T>(),
            Quant::Q4_0 => self.of::<L, BlockQ4_0, R, T>(),
            Quant::Q4_1 => self.of::<L, BlockQ4_1, R, T>(),
            Quant::Q5_0 => self.of::<L, BlockQ5_0, R, T>(),
            Quant::Q8_0 => self.of::<L, BlockQ8_0, R, T>(),
            Quant::Q5_1 => self.of::<L, BlockQ5_1, R, T>(),
            Quant::Q2K => self.of::<L, BlockQ2K, R, T>(),
            Quant::Q3K => self.of::<L, BlockQ3K, R, T>(),
            Quant::Q4K => self.of::<L, BlockQ4K, R, T>(),
            Quant::Q5K => self.of::<L, BlockQ5K, R, T>(),
            Quant::Q6K => self.of::<L, BlockQ6K, R, T>(),
            Quant::Iq4Nl => self.of::<L, BlockIq4Nl, R, T>(),
            Quant::Iq4Xs => self.of::<L, BlockIq4Xs, R, T>(),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn of<L: Lanes, B: Block, const R: usize, const T: usize>(self) {
        let blocks: &[B] = bytemuck::cast_slice(self.w.rows_bytes(&self.rows));
        let per_row = self.w.cols / (32 * B::GROUPS);
        if self.x.packed.is_empty() {
            let x: &[f32] = self.x.rows;
            direct_all::<L, B>(blocks, per_row, x, self.part);
        } else {
            let (rows, x) = (self.rows.len(), self.x);
            match x.tile {
                SMALL_TILE => panel_all::<L, B, R, SMALL_TILE>(blocks, per_row, rows, x, self.panel, self.part),
                _ => panel_all::<L, B, R, T>(blocks, per_row, rows, x, self.panel, self.part),
            }
        }
    }
}

/// Few tokens, `part` (tokens, rows).
#[inline(always)]
fn direct_all<L: Lanes, B: Block>(blocks: &[B], per_row: usize, x: &[f32], part: &mut [f32]) {
    let cols = per_row * 32 * B::GROUPS;
    let rows = blocks.len() / per_row;
    let tokens = x.len() / cols;
    let mut t = 0;
    while t < tokens {
        let left = tokens - t;
        let n = if left >= 4 {
            4
        } else if left >= 2 {
            2
        } else {
            1
        };
        let x = &x[t * cols..(t + n) * cols];
        let part = &mut part[t * rows..(t + n) * rows];
        match n {
            4 => direct_rows::<L, B, 4, 4>(blocks, per_row, x, part),
            2 => direct_rows::<L, B, 8, 2>(blocks, per_row, x, part),
            _ => direct_rows::<L, B, 8, 1>(blocks, per_row, x, part),
        }
        t += n;
    }
}

#[inline(always)]
fn direct_rows<L: Lanes, B: Block, const R: usize, const T: usize>(
    blocks: &[B],
    per_row: usize,
    x: &[f32],
    part: &mut [f32],
) {
    let rows = blocks.len() / per_row;
    let mut groups = blocks.chunks_exact(per_row * R);
    let mut row = 0;
    for group in &mut groups {
        let sums = direct::<L, B, R, T>(group, per_row, x);
        for (r, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                part[t * rows + row + r] = *sum;
            }
        }
        row += R;
    }
    for group in groups.remainder().chunks_exact(per_row) {
        let [sums] = direct::<L, B, 1, T>(group, per_row, x);
        for (t, sum) in sums.iter().enumerate() {
            part[t * rows + row] = *sum;
        }
        row += 1;
    }
}

/// `R` rows times `T` tokens, decoded in registers.
#[inline(always)]
fn direct<L: Lanes, B: Block, const R: usize, const T: usize>(
    blocks: &[B],
    per_row: usize,
    x: &[f32],
) -> [[f32; T]; R] {
    let w: [&[B]; R] = std::array::from_fn(|r| &blocks[r * per_row..][..per_row]);
    let x: [&[[f32; 32]]; T] = std::array::from_fn(|t| {
        let groups = per_row * B::GROUPS;
        &x[t * groups * 32..].as_chunks::<32>().0[..groups]
    });
    let mut sums = [[L::splat(0.0); T]; R];
    // The rows of a group are short, so the processor does not see that the next group follows.
    let step = R * size_of::<B>();
    let mut ahead = blocks.as_ptr_range().end.cast::<u8>();
    for k in 0..per_row {
        for line in 0..step.div_ceil(CACHE_LINE) {
            L::prefetch(ahead.wrapping_add(line * CACHE_LINE));
        }
        ahead = ahead.wrapping_add(step);
        let mut heads = [w[0][k].head::<L>(); R];
        for r in 1..R {
            heads[r] = w[r][k].head::<L>();
        }
        for pair in 0..B::GROUPS.div_ceil(2) {
            for r in 0..R {
                for half in 0..B::GROUPS.min(2) {
                    let g = pair * 2 + half;
                    let [first, second] = w[r][k].group::<L>(&heads[r], g);
                    for t in 0..T {
                        let (halves, _) = x[t][k * B::GROUPS + g].as_chunks::<LANES>();
                        sums[r][t] = L::fma(first, L::load(&halves[0]), sums[r][t]);
                        sums[r][t] = L::fma(second, L::load(&halves[1]), sums[r][t]);
                    }
                }
            }
        }
    }
    lane_sums::<L, R, T>(&sums)
}

/// The sum of each accumulator. Loops, not `map`: a closure is not inlined into code compiled for a path.
#[inline(always)]
fn lane_sums<L: Lanes, const R: usize, const T: usize>(sums: &[[L::V; T]; R]) -> [[f32; T]; R] {
    let mut out = [[0.0; T]; R];
    for r in 0..R {
        for t in 0..T {
            out[r][t] = L::sum(sums[r][t]);
        }
    }
    out
}

/// Many tokens, `part` (tokens, rows).
#[inline(always)]
fn panel_all<L: Lanes, B: Block, const R: usize, const T: usize>(
    blocks: &[B],
    per_row: usize,
    rows: usize,
    x: &Input<'_>,
    panel: &mut Vec<f32>,
    part: &mut [f32],
) {
    let cols = per_row * 32 * B::GROUPS;
    let groups = rows.div_ceil(R);
    if panel.len() < groups * R * cols {
        panel.resize(groups * R * cols, 0.0);
    }
    let panel = &mut panel[..groups * R * cols];
    if !rows.is_multiple_of(R) {
        panel[(groups - 1) * R * cols..].fill(0.0); // rows beyond the last count as zero
    }
    for (row, blocks) in blocks.chunks_exact(per_row).enumerate() {
        let group = &mut panel[row / R * R * cols..][..R * cols];
        decode_row::<L, B, R>(blocks, row % R, group);
    }
    let tokens = x.tokens();
    for (n, tile) in x.packed.chunks_exact(T * cols).enumerate() {
        let tile = tile.as_chunks::<LANES>().0.as_chunks::<T>().0;
        for (g, group) in panel.chunks_exact(R * cols).enumerate() {
            let sums = product::<L, R, T>(group.as_chunks::<LANES>().0.as_chunks::<R>().0, tile);
            for (r, sums) in sums.iter().enumerate().take(rows - g * R) {
                for (t, sum) in sums.iter().enumerate().take(tokens - n * T) {
                    part[(n * T + t) * rows + g * R + r] = *sum;
                }
            }
        }
    }
}

/// Decodes one row into its place in a group of `R` rows: (cols / 16, R, 16).
#[inline(always)]
fn decode_row<L: Lanes, B: Block, const R: usize>(blocks: &[B], r: usize, group: &mut [f32]) {
    let steps = group.as_chunks_mut::<LANES>().0.as_chunks_mut::<R>().0;
    for (block, steps) in blocks.iter().zip(steps.chunks_exact_mut(2 * B::GROUPS)) {
        L::prefetch(std::ptr::from_ref(block).cast::<u8>().wrapping_add(AHEAD));
        let head = block.head::<L>();
        for pair in 0..B::GROUPS.div_ceil(2) {
            for half in 0..B::GROUPS.min(2) {
                let g = pair * 2 + half;
                let [first, second] = block.group::<L>(&head, g);
                L::store(first, &mut steps[2 * g][r]);
                L::store(second, &mut steps[2 * g + 1][r]);
            }
        }
    }
}

/// `R` decoded rows times `T` tokens.
#[inline(always)]
fn product<L: Lanes, const R: usize, const T: usize>(
    w: &[[[f32; LANES]; R]],
    x: &[[[f32; LANES]; T]],
) -> [[f32; T]; R] {
    let mut sums = [[L::splat(0.0); T]; R];
    for (w, x) in w.iter().zip(x) {
        let mut rows = [L::splat(0.0); R];
        for r in 0..R {
            rows[r] = L::load(&w[r]);
        }
        for t in 0..T {
            let x = L::load(&x[t]);
            for r in 0..R {
                sums[r][t] = L::fma(rows[r], x, sums[r][t]);
            }
        }
    }
    lane_sums::<L, R, T>(&sums)
}

/// Rows of a chunk of work on a matrix of `rows` rows. Where weights are read once, large matrices get
/// larger chunks, whose beginning, which nothing prefetched, weighs less; a panel must stay in cache.
fn chunk_rows(rows: usize, x: &Input<'_>) -> usize {
    let most = if x.packed.is_empty() { CHUNK_WEIGHTS_MAX } else { CHUNK_WEIGHTS };
    let weights = (rows * x.cols / 128).clamp(CHUNK_WEIGHTS, most);
    (weights / x.cols).next_multiple_of(8).max(8)
}

impl Cpu {
    fn product(self, w: Matrix<'_>, rows: Range<usize>, x: &Input<'_>, panel: &mut Vec<f32>, part: &mut Vec<f32>) {
        assert!(w.cols == x.cols && w.bytes.len() == w.rows * w.row_bytes(), "shapes agree");
        part.resize(x.tokens() * rows.len(), 0.0);
        self.run(Product { w, rows, x, panel, part });
    }

    /// `out[t] = (w0 x[t], w1 x[t], ...)`, or added to what `out` has; out (tokens, sum of rows).
    pub fn matmul(self, pool: &mut Pool, weights: &[Matrix<'_>], x: &Input<'_>, add: bool, out: &mut [f32]) {
        let width = weights.iter().map(|w| w.rows).sum();
        assert!(out.len() == x.tokens() * width, "a row for each token");
        pool.columns(out, width, chunk_rows(width, x), |mut view| {
            SCRATCH.with_borrow_mut(|Scratch { panel, first: part, .. }| {
                let mut begin = 0;
                for w in weights {
                    let rows = overlap(view.range(), begin, w.rows);
                    if !rows.is_empty() {
                        self.product(*w, rows.clone(), x, panel, part);
                        let at = begin + rows.start - view.range().start;
                        put(&mut view, at, rows.len(), part, add);
                    }
                    begin += w.rows;
                }
            });
        });
    }

    /// `out[t] = silu(gate x[t]) * (up x[t])`; out (tokens, rows).
    pub fn matmul_gated(self, pool: &mut Pool, gate: Matrix<'_>, up: Matrix<'_>, x: &Input<'_>, out: &mut [f32]) {
        assert!(gate.rows == up.rows && out.len() == x.tokens() * gate.rows, "shapes agree");
        pool.columns(out, gate.rows, chunk_rows(gate.rows, x), |mut view| {
            SCRATCH.with_borrow_mut(|Scratch { panel, first, second }| {
                let rows = view.range();
                self.product(gate, rows.clone(), x, panel, first);
                self.product(up, rows.clone(), x, panel, second);
                let parts = first.chunks_exact(rows.len()).zip(second.chunks_exact(rows.len()));
                for (token, (gate, up)) in parts.enumerate() {
                    self.silu_mul(gate, up, view.row(token));
                }
            });
        });
    }

    /// Decodes row `row` of `w` to `out`.
    pub fn decode(self, w: Matrix<'_>, row: usize, out: &mut [f32]) {
        assert!(out.len() == w.cols, "one row");
        self.run(Decode { w, row, out });
    }
}

/// The part of `range` that lies in `begin..begin + len`, counted from `begin`.
fn overlap(range: Range<usize>, begin: usize, len: usize) -> Range<usize> {
    let start = range.start.max(begin) - begin;
    let end = range.end.min(begin + len).saturating_sub(begin);
    start..end.max(start)
}

fn put(view: &mut View<'_>, at: usize, rows: usize, part: &[f32], add: bool) {
    for (token, from) in part.chunks_exact(rows).enumerate() {
        let to = &mut view.row(token)[at..at + rows];
        if add {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        } else {
            to.copy_from_slice(from);
        }
    }
}

struct Decode<'a> {
    w: Matrix<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Task for Decode<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize>(self) {
        match self.w.quant {
            Quant::F32 => self.of::<L, BlockF32>(),
            Quant::F16 => self.of::<L, BlockF16>(),
            Quant::Bf16 => self.of::<L, BlockBf16>(),
            Quant::Q4_0 => self.of::<L, BlockQ4_0>(),
            Quant::Q4_1 => self.of::<L, BlockQ4_1>(),
            Quant::Q5_0 => self.of::<L, BlockQ5_0>(),
            Quant::Q8_0 => self.of::<L, BlockQ8_0>(),
            Quant::Q5_1 => self.of::<L, BlockQ5_1>(),
            Quant::Q2K => self.of::<L, BlockQ2K>(),
            Quant::Q3K => self.of::<L, BlockQ3K>(),
            Quant::Q4K => self.of::<L, BlockQ4K>(),
            Quant::Q5K => self.of::<L, BlockQ5K>(),
            Quant::Q6K => self.of::<L, BlockQ6K>(),
            Quant::Iq4Nl => self.of::<L, BlockIq4Nl>(),
            Quant::Iq4Xs => self.of::<L, BlockIq4Xs>(),
        }
    }
}

impl Decode<'_> {
    #[inline(always)]
    fn of<L: Lanes, B: Block>(self) {
        let blocks: &[B] = bytemuck::cast_slice(self.w.rows_bytes(&(self.row..self.row + 1)));
        decode_row::<L, B, 1>(blocks, 0, self.out);
    }
}

#[cfg(test)]
mod tests;
