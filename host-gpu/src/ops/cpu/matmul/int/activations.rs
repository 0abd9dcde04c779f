//! Activations as bytes, with a scale for each 32.

use super::super::super::bytes::Bytes;
use super::super::super::groups::Groups;
use super::super::super::lanes::{LANES, Lanes};
use super::super::super::{Cpu, Task};
use super::super::{Matrix, can_weave};
use crate::ops::pool::Pool;

/// Words of a token's group of 32 activations: eight of bytes, the scale, the sum of what the bytes stand for, and, as
/// integers, the bytes' sum and those of both halves, negative.
pub(super) const WORDS: usize = 13;
pub(super) const SCALE: usize = 8;
pub(super) const SUM: usize = 9;
pub(super) const LESS: usize = 10;
pub(super) const HALF_LESS: usize = 11;
/// Up to this many tokens are multiplied without a panel.
const DIRECT_TOKENS: usize = 2;
/// Woven blocks of one scale are unpacked as they are multiplied for so many tiles, too: that takes less than a panel does.
const STRAIGHT_TILES: usize = 6;
/// Activations are these many steps at most, so that a product of two and a sum of pairs fit the paths' instructions.
const STEPS: f32 = 127.0;

/// Quantised activations: (tiles, cols / 32, WORDS, tile).
#[derive(Clone, Copy)]
pub(in super::super) struct Tiles<'a> {
    pub(super) words: &'a [u32],
    pub(super) tile: usize,
    pub(super) tokens: usize,
}

impl<'a> Tiles<'a> {
    /// Quantises `rows` of `cols` values into `scratch`.
    pub(in super::super) fn new(
        cpu: Cpu,
        pool: &mut Pool,
        rows: &[f32],
        cols: usize,
        scratch: &'a mut Vec<u32>,
    ) -> Self {
        let tokens = rows.len() / cols;
        let tile = if tokens <= DIRECT_TOKENS { tokens } else { cpu.tile_tokens(tokens) };
        let size = tile * cols / 32 * WORDS;
        scratch.resize(tokens.div_ceil(tile.max(1)) * size, 0);
        pool.rows(scratch, size.max(1), |n, out| {
            let rows = &rows[n * tile * cols..rows.len().min((n + 1) * tile * cols)];
            cpu.run(Quantise { rows, cols, tile, out });
        });
        Self { words: scratch, tile, tokens }
    }

    /// Whether weights are unpacked in registers.
    pub(in super::super) fn direct(&self) -> bool {
        self.tokens <= DIRECT_TOKENS
    }

    /// Whether woven blocks of type `B` need no panel.
    #[inline(always)]
    pub(super) fn straight<B: Groups>(&self) -> bool {
        B::GROUPS == 1 && self.tokens <= STRAIGHT_TILES * self.tile
    }

    /// The same of all of `w`.
    pub(in super::super) fn goes_straight(&self, w: &Matrix<'_>) -> bool {
        w.quant.row().weights == 32
            && self.tokens <= STRAIGHT_TILES * self.tile
            && can_weave(w.quant, w.rows)
            && !w.copies.is_empty()
    }
}

/// One tile of tokens; `out` (cols / 32, WORDS, tile).
struct Quantise<'a> {
    rows: &'a [f32],
    cols: usize,
    tile: usize,
    out: &'a mut [u32],
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        for t in 0..self.tile {
            let groups = self.out.chunks_exact_mut(WORDS * self.tile);
            match self.rows.get(t * self.cols..(t + 1) * self.cols) {
                Some(row) => {
                    for (out, x) in groups.zip(row.as_chunks::<32>().0) {
                        let words = quantise::<L>(x);
                        for n in 0..WORDS {
                            out[n * self.tile + t] = words[n];
                        }
                    }
                }
                // Tokens beyond the last are zero: their products are never read.
                None => groups.for_each(|out| (0..WORDS).for_each(|n| out[n * self.tile + t] = 0)),
            }
        }
    }
}

/// `x = d * q` with `d = max |x| / 127`, `q` rounded to the nearest.
#[inline(always)]
fn quantise<L: Lanes>(x: &[f32; 32]) -> [u32; WORDS] {
    let (halves, _) = x.as_chunks::<LANES>();
    let d = L::max_abs(L::load(&halves[0]), L::load(&halves[1])) / STEPS;
    let by = L::splat(if d > 0.0 { 1.0 / d } else { 0.0 });
    let (mut q, mut sums) = ([0i8; 32], [0i32; 2]);
    for (n, q) in q.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        *q = L::rounded(L::mul(L::load(&halves[n]), by));
        for q in q {
            sums[n] += i32::from(*q);
        }
    }
    let mut out = [0; WORDS];
    for (out, four) in out.iter_mut().zip(bytemuck::cast::<_, [[u8; 4]; 8]>(q)) {
        *out = u32::from_le_bytes(four);
    }
    out[SCALE] = d.to_bits();
    out[SUM] = (d * (sums[0] + sums[1]) as f32).to_bits();
    out[LESS] = -(sums[0] + sums[1]) as u32;
    out[HALF_LESS] = -sums[0] as u32;
    out[HALF_LESS + 1] = -sums[1] as u32;
    out
}

/// What quantising leaves of `x`.
pub(in super::super) struct Leaves<'a> {
    pub(in super::super) x: &'a [f32],
    pub(in super::super) rest: &'a mut [f32],
}

impl Task for Leaves<'_> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        for (rest, x) in self.rest.as_chunks_mut::<32>().0.iter_mut().zip(self.x.as_chunks::<32>().0) {
            let words = quantise::<L>(x);
            let (d, mut q) = (f32::from_bits(words[SCALE]), [0i8; 32]);
            for (q, word) in q.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *q = word.to_le_bytes().map(|byte| byte as i8);
            }
            for i in 0..32 {
                rest[i] = L::fma1(-d, f32::from(q[i]), x[i]);
            }
        }
    }
}
