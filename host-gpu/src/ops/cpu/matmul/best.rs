//! The largest products of a matrix, without reading all of it.
//!
//! A model's head has a row for each token of its vocabulary; it can be most of what is read for a token, and nearly all of its rows are far
//! from being chosen. So of weights in halves ([`BlockQ8Halved`](super::super::woven::BlockQ8Halved)), `w = d (16 u + l - 128)`, the upper ones
//! are multiplied first, with 7.5 for each lower one. That leaves out, of a row, the sum of `d (l - 7.5) x`. The lower halves of weights are as
//! good as random, whatever the row is about: of variance 21.25, so that what is left out, a sum of hundreds, has `sum of d^2 x^2` times
//! that and a normal distribution. More than seven times its deviation is seen in one of 10^12 rows. Rows that are not among the best even
//! with that much are done with. The others are multiplied whole, to the same bits as ever.
//!
//! Weights can be made whose lower halves are not random. So it is looked at whether the products that are then known are within
//! five and a half deviations of what was expected; if not, all are computed.

use super::int::{Bounds, Rough, terms};
use super::{CHUNK_WEIGHTS_MAX, Cpu, Input, LANES, Matrix, SCRATCH, Scratch, by_piece};
use crate::format::quant::Quant;
use crate::ops::pool::Pool;
use std::collections::TryReserveError;
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
    done: u64,
}

impl Best {
    /// Room for products of a matrix of `rows` and `cols`: they then allocate nothing.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), TryReserveError> {
        let strips = rows / LANES;
        self.terms.try_reserve_exact((cols / 32).saturating_sub(self.terms.len()))?;
        self.bounds.try_reserve_exact(strips.saturating_sub(self.bounds.len()))?;
        self.floors.try_reserve_exact(strips.saturating_sub(self.floors.len()))
    }

    /// How often [`Cpu::best`] did it.
    pub fn done(&self) -> u64 {
        self.done
    }
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
        let Best { terms: of_x, bounds, floors, patience, done: count } = scratch;
        terms(bytes, of_x);
        bounds.resize(strips, Bounds::default());
        let chunk = (CHUNK_WEIGHTS_MAX / (LANES * w.cols)).max(1);
        pool.columns(bounds, strips, chunk, |mut view| {
            let range = view.range();
            for rows in by_piece(range.start * LANES..range.end * LANES, &w) {
                let strips = w.woven(&rows).expect("it was seen to be there").fields;
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
        match done {
            true => *count += 1,
            false => *patience = PATIENCE,
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

#[cfg(test)]
mod tests {
    use super::super::super::CodePath;
    use super::super::super::woven::weave_halves;
    use super::super::Tiles;
    use super::*;
    use crate::format::huge::Piece;

    const ROWS: usize = 2048;
    const COLS: usize = 288;

    fn cpus() -> impl Iterator<Item = Cpu> {
        CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path)))
    }

    /// Rows of random weights, of which `lower` changes the bytes.
    fn weights(lower: impl Fn(u8) -> u8) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::new();
        for n in 0..ROWS * COLS / 32 {
            bytes.extend(half::f16::from_f32(0.01 + (n % 7) as f32 / 1000.0).to_le_bytes());
            for _ in 0..32 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes.push(lower((state >> 56) as u8));
            }
        }
        bytes
    }

    /// The same in halves, in two pieces.
    fn halves(bytes: &[u8]) -> [Piece; 2] {
        let row = bytes.len() / ROWS;
        [0..96, 96..ROWS].map(|rows| {
            let from = &bytes[rows.start * row..rows.end * row];
            let mut copy = vec![0; from.len()];
            weave_halves(row, from, &mut copy);
            Piece::of(rows, Some(&copy)).in_halves()
        })
    }

    /// Close to some rows, the third most of all.
    fn activations(cpu: Cpu, w: Matrix<'_>) -> Vec<f32> {
        let (mut x, mut row) = (vec![0.0; COLS], vec![0.0; COLS]);
        for (of, by) in [(3, 1.0), (1040, 0.8), (700, 0.9), (95, 0.7), (2047, 0.6)] {
            cpu.decode(w, of, &mut row);
            x.iter_mut().zip(&row).for_each(|(x, w)| *x += by * w);
        }
        x
    }

    #[test]
    fn halves_change_no_bit() {
        let (bytes, mut pool) = (weights(|byte| byte), Pool::new(2).unwrap());
        let pieces = halves(&bytes);
        let plain = Matrix { quant: Quant::Q8_0, rows: ROWS, cols: COLS, bytes: &bytes, copies: &[] };
        let halved = Matrix { copies: &pieces, ..plain };
        for cpu in cpus() {
            for tokens in [1, 2, 7, 50] {
                let x: Vec<f32> = (0..tokens * COLS).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
                let mut run = |w: Matrix<'_>| {
                    let (mut scratch, mut out) = (Tiles::default(), vec![0.0; tokens * ROWS]);
                    let input = Input::new(cpu, &mut pool, &x, COLS, &[w], &mut scratch);
                    cpu.matmul(&mut pool, &[w], &input, false, &mut out);
                    out
                };
                assert!(run(halved) == run(plain), "{} {tokens}", cpu.path());
            }
            let (mut a, mut b) = (vec![0.0; COLS], vec![1.0; COLS]);
            cpu.decode(plain, 97, &mut a);
            cpu.decode(halved, 97, &mut b);
            assert!(a == b);
        }
    }

    #[test]
    fn the_best_are_those_of_all() {
        let (bytes, mut pool) = (weights(|byte| byte), Pool::new(2).unwrap());
        let pieces = halves(&bytes);
        let w = Matrix { quant: Quant::Q8_0, rows: ROWS, cols: COLS, bytes: &bytes, copies: &pieces };
        for cpu in cpus() {
            let x = activations(cpu, w);
            for fine in [false, true] {
                let mut scratch = Tiles::default();
                let prepare = if fine { Input::fine } else { Input::new };
                let input = prepare(cpu, &mut pool, &x, COLS, &[w], &mut scratch);
                let (mut all, mut some) = (vec![0.0; ROWS], vec![0.0; ROWS]);
                cpu.matmul(&mut pool, &[w], &input, false, &mut all);
                let mut sorted = all.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                for most in [1, 2, 5] {
                    let mut scratch = Best::default();
                    let done = cpu.best(&mut pool, w, &input, most, &mut scratch, &mut some);
                    assert!(done, "{} {most} {fine} {:?}", cpu.path(), &scratch.bounds[..2]);
                    let known = some.iter().filter(|product| product.is_finite()).count();
                    assert!((most..ROWS / 8).contains(&known), "{known} for {most}");
                    for (some, all) in some.iter().zip(&all) {
                        assert!(some == all || *some == f32::NEG_INFINITY && *all < sorted[most - 1], "{some} {all}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_worth_it_or_not_random_is_not_done() {
        let (bytes, mut pool) = (weights(|byte| byte), Pool::new(2).unwrap());
        let (pieces, cpu) = (halves(&bytes), Cpu::new(None).unwrap());
        let plain = Matrix { quant: Quant::Q8_0, rows: ROWS, cols: COLS, bytes: &bytes, copies: &[] };
        let (halved, mut best, mut out) = (Matrix { copies: &pieces, ..plain }, Best::default(), vec![0.0; 2 * ROWS]);
        let near = activations(cpu, plain);
        let mut run = |w: Matrix<'_>, x: &[f32], most: usize, best: &mut Best| {
            let mut scratch = Tiles::default();
            let input = Input::new(cpu, &mut pool, x, COLS, &[w], &mut scratch);
            cpu.best(&mut pool, w, &input, most, best, &mut out[..x.len() / COLS * ROWS])
        };
        assert!(!run(plain, &near, 1, &mut best), "no copy");
        assert!(!run(halved, &[&near[..], &near[..]].concat(), 1, &mut best), "two tokens");
        assert!(!run(halved, &near, ROWS / LANES, &mut best), "as many as there are strips");
        assert!(!run(halved, &vec![f32::NAN; COLS], 1, &mut Best::default()));
        assert!(run(halved, &near, 1, &mut best));
        // All products are alike: after that it is not tried for a while.
        assert!(!run(halved, &vec![0.0; COLS], 1, &mut best));
        for _ in 0..PATIENCE {
            assert!(!run(halved, &near, 1, &mut best));
        }
        assert!(run(halved, &near, 1, &mut best));
        // Lower halves that all say the same.
        let bytes = weights(|byte| byte | 15);
        let pieces = halves(&bytes);
        let odd = Matrix { bytes: &bytes, copies: &pieces, ..plain };
        let positive: Vec<f32> = activations(cpu, odd).iter().map(|x| x.abs()).collect();
        assert!(!run(odd, &positive, 1, &mut Best::default()));
    }
}
