//! Products of integers: quantised weights times activations that were quantised to bytes.
//!
//! Sixteen rows of weights are a strip, with a lane for each row. Of each group of 32 weights the integer products are
//! exact; the floats they are scaled to are added in the order of the groups, so a token gets the same bits whatever is
//! computed beside it. Few tokens are multiplied [`straight`], many with a [`panel`].

use super::super::bytes::Bytes;
use super::super::groups::Groups;
use super::super::lanes::{LANES, Lanes};
use super::super::{Cpu, SMALL_TILE, Task};
use super::Matrix;
use crate::format::quant::*;
use activations::{HALF_SUM, SUM};
use panel::{LINES, LINES_OF_TWO, PanelProduct, pack_all};
use std::ops::Range;
use straight::{WovenStrips, direct_all};
use strips::{Rows, Strip, WovenRows};

mod activations;
mod panel;
mod straight;
mod strips;

pub(super) use activations::{Leaves, Tiles};
pub(super) use panel::Line;

/// `part[t][r - rows.start] = w[r] . x[t]`.
pub(super) struct Product<'a, B, const N: usize> {
    /// (rows, per_row)
    pub(super) blocks: &'a [B],
    pub(super) per_row: usize,
    /// Whether these are [`woven`](Matrix::woven).
    pub(super) woven: bool,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<Line>,
    /// (tokens, rows)
    pub(super) part: &'a mut [f32],
}

impl<B: Groups, const N: usize> Task for Product<'_, B, N> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self { blocks, per_row, woven, x, panel, part } = self;
        let strips = blocks.chunks(LANES * per_row);
        match woven {
            true => {
                if B::GROUPS == 1 && !x.direct() && x.straight::<B>() {
                    let woven = WovenStrips { blocks: bytemuck::cast_slice(blocks), per_row };
                    return match x.tile {
                        SMALL_TILE => woven.multiply::<L, B, SMALL_TILE, S>(x, part),
                        _ => woven.multiply::<L, B, T, S>(x, part),
                    };
                }
                let strips = strips.map(|strip| WovenRows(bytemuck::cast_slice(strip)));
                all_strips::<L, B, _, N>(strips, per_row, x, panel, part);
            }
            false => {
                let strips = strips.map(|strip| Rows::new(strip, per_row));
                all_strips::<L, B, _, N>(strips, per_row, x, panel, part);
            }
        }
    }
}

/// What a product computes on: weights, activations, and where the result goes.
pub(super) struct Work<'a> {
    pub(super) w: Matrix<'a>,
    pub(super) rows: Range<usize>,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<Line>,
    /// (tokens, rows of the range)
    pub(super) part: &'a mut [f32],
}

impl Work<'_> {
    /// Does it. Each type is a task of its own: one function with all of them would be compiled for minutes.
    pub(super) fn run(self, cpu: Cpu) {
        match self.w.quant {
            Quant::F32 | Quant::F16 | Quant::Bf16 => unreachable!("weights that are floats are multiplied as such"),
            Quant::Q4_0 => self.of::<BlockQ4_0, LINES>(cpu),
            Quant::Q4_1 => self.of::<BlockQ4_1, LINES>(cpu),
            Quant::Q5_0 => self.of::<BlockQ5_0, LINES>(cpu),
            Quant::Q5_1 => self.of::<BlockQ5_1, LINES>(cpu),
            Quant::Q8_0 => self.of::<BlockQ8_0, LINES>(cpu),
            Quant::Q2K => self.of::<BlockQ2K, LINES_OF_TWO>(cpu),
            Quant::Q3K => self.of::<BlockQ3K, LINES_OF_TWO>(cpu),
            Quant::Q4K => self.of::<BlockQ4K, LINES>(cpu),
            Quant::Q5K => self.of::<BlockQ5K, LINES>(cpu),
            Quant::Q6K => self.of::<BlockQ6K, LINES_OF_TWO>(cpu),
            Quant::Iq4Nl => self.of::<BlockIq4Nl, LINES>(cpu),
            Quant::Iq4Xs => self.of::<BlockIq4Xs, LINES>(cpu),
        }
    }

    fn of<B: Groups, const N: usize>(self, cpu: Cpu) {
        let Self { w, rows, x, panel, part } = self;
        let (bytes, woven) = match w.woven_bytes(&rows) {
            Some(woven) => (woven, true),
            None => (w.rows_bytes(&rows), false),
        };
        let (blocks, per_row): (&[B], usize) = (bytemuck::cast_slice(bytes), w.cols / (32 * B::GROUPS));
        cpu.run(Product::<B, N> { blocks, per_row, woven, x, panel, part });
        if !(x.direct() || woven && x.straight::<B>()) {
            let (rows, groups) = (rows.len(), per_row * B::GROUPS);
            match B::SIGNED {
                true => cpu.run(PanelProduct::<true, N> { rows, groups, x, panel, part }),
                false => cpu.run(PanelProduct::<false, N> { rows, groups, x, panel, part }),
            }
        }
    }
}

/// Multiplies strips at once, or unpacks them.
#[inline(always)]
fn all_strips<L: Bytes, B: Groups, S: Strip<B>, const N: usize>(
    strips: impl ExactSizeIterator<Item = S>,
    per_row: usize,
    x: Tiles<'_>,
    panel: &mut Vec<Line>,
    part: &mut [f32],
) {
    match (x.direct(), x.tile) {
        (true, 1) => direct_all::<L, B, S, 1>(strips, per_row, x.words, part),
        (true, _) => direct_all::<L, B, S, 2>(strips, per_row, x.words, part),
        (false, _) => pack_all::<L, B, S, N>(strips, per_row, panel),
    }
}

/// Adds four weights of each row times four activations.
#[inline(always)]
fn dot<L: Bytes, const SIGNED: bool>(sum: L::I, w: L::B, x: u32) -> L::I {
    if SIGNED { L::dot_signed(sum, w, x as i32) } else { L::dot(sum, w, x as i32) }
}

/// `sum + s * d * ints + b * x`, where `x` is the sum of the activations.
#[inline(always)]
fn scale<L: Bytes>(sum: L::V, ints: L::I, [s, b]: [L::V; 2], d: u32, x: u32) -> L::V {
    let sum = L::fma(L::floats_of(ints), L::mul(s, L::splat(f32::from_bits(d))), sum);
    L::fma(b, L::splat(f32::from_bits(x)), sum)
}

/// Where the sum of the activations of part `n` of `parts` stands.
#[inline(always)]
fn sum_at(n: usize, parts: usize) -> usize {
    if parts == 1 { SUM } else { HALF_SUM + n }
}

/// Stores the lanes that `out` has room for.
#[inline(always)]
fn put<L: Lanes>(v: L::V, out: &mut [f32]) {
    match out.first_chunk_mut::<LANES>() {
        Some(out) => L::store(v, out),
        None => {
            let mut all = [0.0; LANES];
            L::store(v, &mut all);
            out.copy_from_slice(&all[..out.len()]);
        }
    }
}

/// Stores the sums of `tokens` tokens from strip `strip` on; `part` (tokens, rows).
#[inline(always)]
fn put_all<L: Lanes, const T: usize, const S: usize>(
    sums: &[[L::V; T]; S],
    (rows, strip): (usize, usize),
    tokens: usize,
    part: &mut [f32],
) {
    for s in 0..S {
        for t in 0..tokens {
            put::<L>(sums[s][t], &mut part[t * rows..(t + 1) * rows][(strip + s) * LANES..]);
        }
    }
}
