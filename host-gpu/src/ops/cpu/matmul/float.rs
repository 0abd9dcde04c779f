//! Products of floats: weights decoded to floats times activations as they are.
//!
//! Few tokens: each block is decoded in registers and used at once, which reads the weights once
//! and nothing else. Many tokens: a chunk of rows is decoded once into a panel that stays in
//! cache, then multiplied with every tile of tokens. Both add the products of one output in the
//! same order into one vector, so both give the same bits.

use super::super::blocks::Block;
use super::super::bytes::Bytes;
use super::super::lanes::{LANES, Lanes};
use super::super::woven::{unweave, unweave_halves};
use super::super::{Cpu, SMALL_TILE, Task};
use super::Matrix;
use crate::format::quant::*;
use crate::ops::pool::Pool;
use std::ops::Range;

/// How far ahead of the weights being decoded memory is asked for: some rows.
const AHEAD: usize = 2048;
/// Up to this many tokens are multiplied without a panel.
const DIRECT_TOKENS: usize = 4;

/// Activations (tokens, cols), and the same again in tiles when there are many tokens.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    rows: &'a [f32],
    cols: usize,
    /// (tiles, cols / 16, tile, 16); empty for few tokens.
    packed: &'a [f32],
    /// Tokens in a tile.
    tile: usize,
}

impl<'a> Tiles<'a> {
    /// Prepares `rows` of `cols` values; `scratch` keeps the tiles.
    pub(super) fn new(cpu: Cpu, pool: &mut Pool, rows: &'a [f32], cols: usize, scratch: &'a mut Vec<f32>) -> Self {
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

    /// Whether weights are decoded in registers.
    pub(super) fn direct(&self) -> bool {
        self.packed.is_empty()
    }

    fn tokens(&self) -> usize {
        self.rows.len() / self.cols
    }
}

/// What a product computes on: weights, activations, and where the result goes.
pub(super) struct Work<'a> {
    pub(super) w: Matrix<'a>,
    pub(super) rows: Range<usize>,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<f32>,
    /// (tokens, rows of the range)
    pub(super) part: &'a mut [f32],
}

impl Work<'_> {
    /// Does it. Each type is a task of its own: one function with all of them would be compiled for minutes.
    pub(super) fn run(self, cpu: Cpu) {
        match self.w.quant {
            Quant::F32 => self.of::<BlockF32>(cpu),
            Quant::F16 => self.of::<BlockF16>(cpu),
            Quant::Bf16 => self.of::<BlockBf16>(cpu),
            Quant::Q4_0 => self.of::<BlockQ4_0>(cpu),
            Quant::Q4_1 => self.of::<BlockQ4_1>(cpu),
            Quant::Q5_0 => self.of::<BlockQ5_0>(cpu),
            Quant::Q8_0 => self.of::<BlockQ8_0>(cpu),
            Quant::Q5_1 => self.of::<BlockQ5_1>(cpu),
            Quant::Q2K => self.of::<BlockQ2K>(cpu),
            Quant::Q3K => self.of::<BlockQ3K>(cpu),
            Quant::Q4K => self.of::<BlockQ4K>(cpu),
            Quant::Q5K => self.of::<BlockQ5K>(cpu),
            Quant::Q6K => self.of::<BlockQ6K>(cpu),
            Quant::Iq4Nl => self.of::<BlockIq4Nl>(cpu),
            Quant::Iq4Xs => self.of::<BlockIq4Xs>(cpu),
        }
    }

    fn of<B: Block>(self, cpu: Cpu) {
        let Self { w, rows, x, panel, part } = self;
        let blocks: &[B] = bytemuck::cast_slice(w.rows_bytes(&rows));
        let per_row = w.cols / (32 * B::GROUPS);
        cpu.run(Product { blocks, per_row, x, panel, part });
    }
}

/// `part[t][r] = w[r] . x[t]`.
struct Product<'a, B> {
    /// (rows, per_row)
    blocks: &'a [B],
    per_row: usize,
    x: Tiles<'a>,
    panel: &'a mut Vec<f32>,
    /// (tokens, rows)
    part: &'a mut [f32],
}

impl<B: Block> Task for Product<'_, B> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self { blocks, per_row, x, panel, part } = self;
        if x.direct() {
            direct_all::<L, B>(blocks, per_row, x.rows, part);
        } else {
            let rows = blocks.len() / per_row;
            match x.tile {
                SMALL_TILE => panel_all::<L, B, R, SMALL_TILE>(blocks, per_row, rows, x, panel, part),
                _ => panel_all::<L, B, R, T>(blocks, per_row, rows, x, panel, part),
            }
        }
    }
}

/// Few tokens, `part` (tokens, rows).
#[inline(always)]
fn direct_all<L: Lanes, B: Block>(blocks: &[B], per_row: usize, x: &[f32], part: &mut [f32]) {
    let cols = per_row * 32 * B::GROUPS;
    let rows = blocks.len() / per_row;
    let pairs = x.len() / (2 * cols);
    for (x, part) in x.chunks_exact(2 * cols).zip(part.chunks_exact_mut(2 * rows)) {
        direct_rows::<L, B, 4, 2>(blocks, per_row, x, part);
    }
    let (x, part) = (&x[pairs * 2 * cols..], &mut part[pairs * 2 * rows..]);
    if !x.is_empty() {
        direct_rows::<L, B, 4, 1>(blocks, per_row, x, part);
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
        L::prefetch_bytes(ahead, step);
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
    x: Tiles<'_>,
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

/// Decodes row `row` of `w` to `out`.
pub(super) fn decode(cpu: Cpu, w: Matrix<'_>, row: usize, out: &mut [f32]) {
    match w.quant {
        Quant::F32 => decode_as::<BlockF32>(cpu, w, row, out),
        Quant::F16 => decode_as::<BlockF16>(cpu, w, row, out),
        Quant::Bf16 => decode_as::<BlockBf16>(cpu, w, row, out),
        Quant::Q4_0 => decode_as::<BlockQ4_0>(cpu, w, row, out),
        Quant::Q4_1 => decode_as::<BlockQ4_1>(cpu, w, row, out),
        Quant::Q5_0 => decode_as::<BlockQ5_0>(cpu, w, row, out),
        Quant::Q8_0 => decode_as::<BlockQ8_0>(cpu, w, row, out),
        Quant::Q5_1 => decode_as::<BlockQ5_1>(cpu, w, row, out),
        Quant::Q2K => decode_as::<BlockQ2K>(cpu, w, row, out),
        Quant::Q3K => decode_as::<BlockQ3K>(cpu, w, row, out),
        Quant::Q4K => decode_as::<BlockQ4K>(cpu, w, row, out),
        Quant::Q5K => decode_as::<BlockQ5K>(cpu, w, row, out),
        Quant::Q6K => decode_as::<BlockQ6K>(cpu, w, row, out),
        Quant::Iq4Nl => decode_as::<BlockIq4Nl>(cpu, w, row, out),
        Quant::Iq4Xs => decode_as::<BlockIq4Xs>(cpu, w, row, out),
    }
}

fn decode_as<B: Block>(cpu: Cpu, w: Matrix<'_>, row: usize, out: &mut [f32]) {
    let strip = row / LANES * LANES;
    let rows = strip..strip + LANES;
    if let Some(strip) = w.woven(&rows) {
        let row = match w.halved_at(&rows) {
            true => unweave_halves(strip, row % LANES),
            false => unweave(w.quant, strip.fields, row % LANES),
        };
        return cpu.run(Decode::<B> { blocks: bytemuck::cast_slice(&row), out });
    }
    let blocks: &[B] = bytemuck::cast_slice(w.rows_bytes(&(row..row + 1)));
    cpu.run(Decode { blocks, out });
}

struct Decode<'a, B> {
    blocks: &'a [B],
    out: &'a mut [f32],
}

impl<B: Block> Task for Decode<'_, B> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        decode_row::<L, B, 1>(self.blocks, 0, self.out);
    }
}
