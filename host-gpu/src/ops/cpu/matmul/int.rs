//! Products of integers: quantised weights times activations that were quantised to bytes.
//!
//! Sixteen rows of weights are a strip, with a lane for each row. Of each group of 32 weights the integer products are
//! exact; the floats they are scaled to are added in the order of the groups, so a token gets the same bits whatever is
//! computed beside it. Few tokens are multiplied [`straight`], many with a [`panel`].

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::super::bytes::Bytes;
use super::super::groups::Groups;
use super::super::lanes::{LANES, Lanes};
use super::super::woven::{BlockQ8Halved, Woven};
use super::super::{Cpu, SMALL_TILE, Task};
use super::Matrix;
use crate::format::quant::*;
use crate::ops::pool::View;
use activations::{HALF_LESS, LESS, SCALE, SUM, WORDS};
use panel::{PanelProduct, lines, pack_all};
use std::ops::Range;
use straight::{WovenStrips, direct_all};
use strips::{Rows, Strip, WovenRows};

mod activations;
mod panel;
mod rough;
mod straight;
mod strips;

pub(super) use activations::{Leaves, Tiles};
pub(super) use panel::Line;
pub(super) use rough::{Bounds, Rough, terms};

/// `out[t][r - rows.start] = w[r] . x[t]`.
pub(super) struct Product<'a, 'v, B, const N: usize> {
    /// (rows, per_row)
    pub(super) blocks: Blocks<'a, B>,
    pub(super) per_row: usize,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<Line>,
    pub(super) out: Out<'a, 'v>,
}

/// Whole rows of blocks, as the file has them or [woven](Matrix::copies).
pub(super) enum Blocks<'a, B> {
    Rows(&'a [B]),
    Woven(Woven<'a>),
}

impl<B: Groups, const N: usize> Task for Product<'_, '_, B, N> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self { blocks, per_row, x, panel, mut out } = self;
        let out = &mut out;
        match blocks {
            Blocks::Woven(blocks) => {
                let woven = WovenStrips { blocks, per_row };
                if B::GROUPS == 1 && !x.direct() && x.straight::<B>() {
                    return match x.tile {
                        SMALL_TILE => woven.multiply::<L, B, SMALL_TILE, S>(x, out),
                        _ => woven.multiply::<L, B, T, S>(x, out),
                    };
                }
                let strips = (0..woven.count::<B>()).map(|n| WovenRows(woven.strip::<B>(n)));
                all_strips::<L, B, _, N>(strips, per_row, x, panel, out);
            }
            Blocks::Rows(blocks) => {
                let strips = blocks.chunks(LANES * per_row).map(|strip| Rows::new(strip, per_row));
                all_strips::<L, B, _, N>(strips, per_row, x, panel, out);
            }
        }
    }
}

/// What a product computes on: weights, activations, and where the result goes.
pub(super) struct Work<'a, 'v> {
    pub(super) w: Matrix<'a>,
    pub(super) rows: Range<usize>,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<Line>,
    pub(super) out: Out<'a, 'v>,
}

impl Work<'_, '_> {
    /// Does it. Each type is a task of its own: one function with all of them would be compiled for minutes.
    pub(super) fn run(self, cpu: Cpu) {
        match self.w.quant {
            Quant::F32 | Quant::F16 | Quant::Bf16 => unreachable!("weights that are floats are multiplied as such"),
            Quant::Q4_0 => self.of::<BlockQ4_0, { lines::<BlockQ4_0>() }>(cpu),
            Quant::Q4_1 => self.of::<BlockQ4_1, { lines::<BlockQ4_1>() }>(cpu),
            Quant::Q5_0 => self.of::<BlockQ5_0, { lines::<BlockQ5_0>() }>(cpu),
            Quant::Q5_1 => self.of::<BlockQ5_1, { lines::<BlockQ5_1>() }>(cpu),
            Quant::Q8_0 if self.w.halved_at(&self.rows) => self.of::<BlockQ8Halved, { lines::<BlockQ8Halved>() }>(cpu),
            Quant::Q8_0 => self.of::<BlockQ8_0, { lines::<BlockQ8_0>() }>(cpu),
            Quant::Q2K => self.of::<BlockQ2K, { lines::<BlockQ2K>() }>(cpu),
            Quant::Q3K => self.of::<BlockQ3K, { lines::<BlockQ3K>() }>(cpu),
            Quant::Q4K => self.of::<BlockQ4K, { lines::<BlockQ4K>() }>(cpu),
            Quant::Q5K => self.of::<BlockQ5K, { lines::<BlockQ5K>() }>(cpu),
            Quant::Q6K => self.of::<BlockQ6K, { lines::<BlockQ6K>() }>(cpu),
            Quant::Iq4Nl => self.of::<BlockIq4Nl, { lines::<BlockIq4Nl>() }>(cpu),
            Quant::Iq4Xs => self.of::<BlockIq4Xs, { lines::<BlockIq4Xs>() }>(cpu),
        }
    }

    fn of<B: Groups, const N: usize>(self, cpu: Cpu) {
        let Self { w, rows, x, panel, mut out } = self;
        let blocks = match w.woven(&rows) {
            Some(woven) => Blocks::Woven(woven),
            None => Blocks::<B>::Rows(bytemuck::cast_slice(w.rows_bytes(&rows))),
        };
        let (woven, per_row) = (matches!(blocks, Blocks::Woven(_)), w.cols / (32 * B::GROUPS));
        cpu.run(Product::<B, N> { blocks, per_row, x, panel: &mut *panel, out: out.again() });
        if !(x.direct() || woven && x.straight::<B>()) {
            let (rows, groups) = (rows.len(), per_row * B::GROUPS);
            let raised = B::RAISED;
            match (B::SIGNED, B::MINIMUM) {
                (true, _) => cpu.run(PanelProduct::<true, false, N> { rows, groups, x, panel, out, raised }),
                (_, true) => cpu.run(PanelProduct::<false, true, N> { rows, groups, x, panel, out, raised }),
                _ => cpu.run(PanelProduct::<false, false, N> { rows, groups, x, panel, out, raised }),
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
    out: &mut Out<'_, '_>,
) {
    match (x.direct(), x.tile) {
        (true, 1) => direct_all::<L, B, S, 1>(strips, per_row, x.words, out),
        (true, _) => direct_all::<L, B, S, 2>(strips, per_row, x.words, out),
        (false, _) => pack_all::<L, B, S, N>(strips, per_row, panel),
    }
}

/// Adds four weights of each row times four activations.
#[inline(always)]
fn dot<L: Bytes, const SIGNED: bool>(sum: L::I, w: L::B, x: u32) -> L::I {
    if SIGNED { L::dot_signed(sum, w, x as i32) } else { L::dot(sum, w, x as i32) }
}

/// By which power of two the weights of type `B` are above what they stand for, as this path multiplies them.
#[inline(always)]
fn raised<L: Bytes, B: Groups>() -> u32 {
    if B::SIGNED { L::RAISED } else { B::RAISED }
}

/// What the integer sums of token `t` begin with, for part `n` of `parts`: weights that are `2^raised` above what they
/// stand for would count for too much by that times the sum of the activations.
#[inline(always)]
fn start<L: Bytes, const T: usize, const MINIMUM: bool>(
    x: &[[u32; T]; WORDS],
    t: usize,
    (n, parts): (usize, usize),
    raised: u32,
) -> L::I {
    if MINIMUM {
        return L::zero();
    }
    L::splat_shifted(x[if parts == 1 { LESS } else { HALF_LESS + n }][t], raised)
}

/// `sum + s * d * ints`, where `d` is the scale of the activations, and if there is a minimum `+ b` times their sum.
#[inline(always)]
fn scale<L: Bytes, const T: usize, const MINIMUM: bool>(
    sum: L::V,
    ints: L::I,
    [s, b]: [L::V; 2],
    x: &[[u32; T]; WORDS],
    t: usize,
    (n, parts): (usize, usize),
) -> L::V {
    let d = L::splat(f32::from_bits(x[SCALE][t]));
    let sum = L::fma(L::floats_of(ints), L::mul(s, d), sum);
    match (MINIMUM, parts) {
        (false, _) => sum,
        (true, 1) => L::fma(b, L::splat(f32::from_bits(x[SUM][t])), sum),
        (true, _) => {
            let half = -(x[HALF_LESS + n][t] as i32) as f32;
            L::fma(b, L::mul(d, L::splat(half)), sum)
        }
    }
}

/// Where the sums of some rows go: columns of a matrix that has a row for each token.
pub(super) struct Out<'a, 'v> {
    pub(super) view: &'a mut View<'v>,
    /// The first of the columns, in the view, and how many there are.
    pub(super) at: usize,
    pub(super) rows: usize,
    /// Whether sums are added to what is there.
    pub(super) add: bool,
    /// Whether each two tokens are two parts of one, to be added.
    pub(super) split: bool,
}

impl<'v> Out<'_, 'v> {
    /// The same, for another task.
    fn again(&mut self) -> Out<'_, 'v> {
        let Self { view, at, rows, add, split } = self;
        Out { view, at: *at, rows: *rows, add: *add, split: *split }
    }

    /// Takes sixteen sums of token `token`, from column `from` on; those beyond the last column are dropped.
    #[inline(always)]
    fn put<L: Lanes>(&mut self, token: usize, from: usize, v: L::V) {
        let (row, add) = match self.split {
            true => (token / 2, self.add || token % 2 == 1),
            false => (token, self.add),
        };
        let out = &mut self.view.row(row)[self.at..self.at + self.rows][from..];
        match out.first_chunk_mut::<LANES>() {
            Some(out) if add => L::store(L::add(L::load(out), v), out),
            Some(out) => L::store(v, out),
            None => {
                let mut all = [0.0; LANES];
                L::store(v, &mut all);
                for i in 0..out.len() {
                    out[i] = if add { out[i] + all[i] } else { all[i] };
                }
            }
        }
    }

    /// Takes the sums of `tokens` tokens from `token` on, and of the strips from `strip` on.
    #[inline(always)]
    fn put_all<L: Lanes, const T: usize, const S: usize>(
        &mut self,
        sums: &[[L::V; T]; S],
        strip: usize,
        (token, tokens): (usize, usize),
    ) {
        for t in 0..tokens {
            for s in 0..S {
                self.put::<L>(token + t, (strip + s) * LANES, sums[s][t]);
            }
        }
    }
}
