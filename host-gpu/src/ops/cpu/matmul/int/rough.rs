//! What the upper halves of weights say of a product: see [`best`](super::super::best).

use super::super::super::Task;
use super::super::super::bytes::Bytes;
use super::super::super::groups::nibble;
use super::super::super::lanes::LANES;
use super::super::super::woven::{HALVES, Woven};
use super::activations::{LESS, SCALE, SUM, Tiles, WORDS};

/// In deviations of what is left out: what is allowed for, and beyond what it is not as it should be.
const SIGMAS: [f32; 2] = [7.0, 5.5];
/// The mean of the lower halves, and their variance: sixteen numbers that are equally likely.
const MEAN: f32 = 7.5;
const VARIANCE: f32 = 21.25;

/// What the largest product of sixteen rows is at least and at most, and what it is unless something is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Bounds {
    pub(in super::super) allowed: [f32; 2],
    pub(in super::super) expected: [f32; 2],
}

/// What is the same for all rows of a group of 32 activations `d q`, and `terms[0] * ints + terms[1]` its rough product but for the scale of the weights.
/// `terms[2]` times the square of that scale is the variance of what is left out.
pub(in super::super) fn terms(x: Tiles<'_>, out: &mut Vec<[f32; 3]>) {
    out.clear();
    for group in x.words.chunks_exact(WORDS * x.tile) {
        let word = |n: usize| group[n * x.tile];
        let bytes = (0..SCALE).flat_map(|n| word(n).to_le_bytes().map(|q| f32::from(q as i8)));
        let (d, sum) = (f32::from_bits(word(SCALE)), f32::from_bits(word(SUM)));
        out.push([16.0 * d, MEAN * sum, VARIANCE * d * d * bytes.map(|q| q * q).sum::<f32>()]);
    }
}

/// Bounds of each of the strips, of the first token.
pub(in super::super) struct Rough<'a> {
    /// The upper halves of woven strips of [`BlockQ8Halved`](super::super::super::woven::BlockQ8Halved).
    pub(in super::super) strips: &'a [u8],
    pub(in super::super) x: Tiles<'a>,
    /// One for each group.
    pub(in super::super) terms: &'a [[f32; 3]],
    pub(in super::super) out: &'a mut [Bounds],
}

impl Task for Rough<'_> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        match self.x.tile {
            1 => self.bound::<L, 1>(),
            _ => self.bound::<L, 2>(),
        }
    }
}

impl Rough<'_> {
    #[inline(always)]
    fn bound<L: Bytes, const T: usize>(self) {
        let Self { strips, x, terms, out } = self;
        let groups = &x.words.as_chunks::<T>().0.as_chunks::<WORDS>().0[..terms.len()];
        let upper = HALVES[0];
        for (strip, out) in strips.chunks_exact(upper * terms.len()).zip(out) {
            let (mut sums, mut variances) = (L::splat(0.0), L::splat(0.0));
            for (k, (x, [by, mean, variance])) in groups.iter().zip(terms).enumerate() {
                let block = Woven { fields: &strip[k * upper..][..upper], lower: &[] };
                block.ask_ahead::<L>();
                // Upper halves are raised by eight.
                let mut ints = L::splat_shifted(x[LESS][0], 3);
                for j in 0..8 {
                    ints = L::dot(ints, nibble::<L>(block, 2, j), x[j][0] as i32);
                }
                let d = block.halves::<L>(0);
                let product = L::fma(L::floats_of(ints), L::splat(*by), L::splat(*mean));
                sums = L::fma(d, product, sums);
                variances = L::fma(L::mul(d, d), L::splat(*variance), variances);
            }
            let mut deviations = [0.0; LANES];
            L::store(variances, &mut deviations);
            for deviation in &mut deviations {
                *deviation = deviation.sqrt();
            }
            let width = L::load(&deviations);
            let within =
                |sigmas: f32| [-sigmas, sigmas].map(|sigmas| largest::<L>(L::fma(width, L::splat(sigmas), sums)));
            *out = Bounds { allowed: within(SIGMAS[0]), expected: within(SIGMAS[1]) };
        }
    }
}

/// The largest lane. In pairs of halves, which are vectors themselves: one comparison need not wait for fifteen others.
#[inline(always)]
fn largest<L: Bytes>(v: L::V) -> f32 {
    let mut lanes = [0.0; LANES];
    L::store(v, &mut lanes);
    let mut half = LANES / 2;
    while half > 0 {
        for n in 0..half {
            lanes[n] = if lanes[n] > lanes[n + half] { lanes[n] } else { lanes[n + half] };
        }
        half /= 2;
    }
    lanes[0]
}
