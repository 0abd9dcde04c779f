//! The largest products of a matrix, without reading all of it.
//!
//! A model's head has a row for each token of its vocabulary; it can be most of what is read for a token, and nearly all of its rows are far
//! from being chosen. So of weights in halves ([`BlockQ8Halved`](super::super::woven::BlockQ8Halved)), `w = d (16 u + l - 128)`, the upper ones
//! are multiplied first, with 7.5 for each lower one. That leaves out, of a row, the sum of `d (l - 7.5) x`. The lower halves of weights are as
//! good as random, whatever the row is about: of variance 21.25, so that what is left out has `sum of d^2 x^2` times that, and more than
//! ten times its deviation is never seen (by Hoeffding's inequality, in one of a hundred million rows at most; by the normal distribution in none). Rows that
//! are not among the best even with that much are done with. The others are multiplied whole, to the same bits as ever.
//!
//! Weights can be made whose lower halves are not random. So it is looked at whether the products that are then known are within
//! five deviations of what was expected; if not, all are computed.

use super::int::{Bounds, Rough, terms};
use super::{CHUNK_WEIGHTS_MAX, Cpu, Input, LANES, Matrix, SCRATCH, Scratch, by_piece, overlap};
use crate::format::quant::Quant;
use crate::ops::pool::Pool;
use std::ops::Range;

/// Where more than one of so many strips would be multiplied twice, nothing is gained.
const WORTH: usize = 4;
/// So many products are then computed whole before this is tried again.
const PATIENCE: u32 = 16;
/// Strips that are multiplied whole, or not, at a time.
const CHUNK_STRIPS: usize = 64;

/// Memory that [`Cpu::best`] works in, and what it found last.
#[derive(Default)]
pub struct Best {
    terms: Vec<[f32; 3]>,
    bounds: Vec<Bounds>,
    floors: Vec<f32>,
    /// Not worth trying for so many more products.
    patience: u32,
}

impl Cpu {
    /// As [`Cpu::matmul`] for one token and one matrix, but of all products only the `most` largest are there for certain, with some others;
    /// the rest are negative infinity. `false` if that cannot be had for less than all of them: `out` has nothing of meaning then.
    pub fn best(
        self,
        pool: &mut Pool,
        w: Matrix<'_>,
        x: &Input<'_>,
        most: usize,
        scratch: &mut Best,
        out: &mut [f32],
    ) -> bool {
        let Some(bytes) = x.bytes.filter(|_| w.quant == Quant::Q8_0 && self.multiplies_bytes(w.quant)) else {
            return false;
        };
        let strips = w.rows / LANES;
        if x.tokens != 1 || most == 0 || most > strips / WORTH || !w.is_halved() {
            return false;
        }
        assert!(w.cols == x.cols && out.len() == w.rows, "shapes agree");
        if scratch.patience > 0 {
            scratch.patience -= 1;
            return false;
        }
        let Best { terms: of_x, bounds, floors, patience } = scratch;
        terms(bytes, of_x);
        bounds.resize(strips, Bounds::default());
        let chunk = (CHUNK_WEIGHTS_MAX / (LANES * w.cols)).max(1);
        pool.columns(bounds, strips, chunk, |mut view| {
            let range = view.range();
            for rows in by_piece(range.start * LANES..range.end * LANES, &w) {
                let strips = w.woven_bytes(&rows).expect("it was seen to have them");
                let out = &mut view.row(0)[rows.start / LANES - range.start..][..rows.len() / LANES];
                self.run(Rough { strips, x: bytes, terms: of_x, out });
            }
        });
        // That many rows have a product of at least this.
        floors.clear();
        floors.extend(bounds.iter().map(|bounds| bounds.allowed[0]));
        let floor = *floors.select_nth_unstable_by(most - 1, |a, b| b.total_cmp(a)).1;
        let is_near = |strip: usize| bounds[strip].allowed[1] >= floor;
        let near = (0..strips).filter(|strip| is_near(*strip)).count();
        if !floor.is_finite() || near > strips / WORTH {
            *patience = PATIENCE;
            return false;
        }
        pool.columns(out, w.rows, CHUNK_STRIPS * LANES, |mut view| {
            let range = view.range();
            view.row(0).fill(f32::NEG_INFINITY);
            SCRATCH.with_borrow_mut(|Scratch { panels, .. }| {
                for run in runs(range.start / LANES..range.end / LANES, is_near) {
                    for rows in by_piece(run.start * LANES..run.end * LANES, &w) {
                        let at = rows.start - range.start;
                        self.product((w, rows), x, panels, (&mut view, at), false);
                    }
                }
            });
        });
        let is_expected = |strip: usize| {
            let largest = out[strip * LANES..][..LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let [least, most] = bounds[strip].expected;
            // Sums are rounded, too.
            let rounding = 1e-4 * (most - least);
            largest >= least - rounding && largest <= most + rounding
        };
        let done = (0..strips).filter(|strip| is_near(*strip)).all(is_expected);
        if !done {
            *patience = PATIENCE;
        }
        done
    }
}

impl Matrix<'_> {
    /// Whether all of it is there in halves.
    fn is_halved(&self) -> bool {
        !self.copies.is_empty() && self.copies.iter().all(|piece| piece.is_halved() && piece.copy().is_some())
    }
}

/// The ranges of neighbours in `range` that are all `is`.
fn runs(range: Range<usize>, is: impl Fn(usize) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut from = range.start;
    std::iter::from_fn(move || {
        let first = (from..range.end).find(|n| is(*n))?;
        let end = (first..range.end).find(|n| !is(*n)).unwrap_or(range.end);
        from = end;
        Some(first..end)
    })
}
