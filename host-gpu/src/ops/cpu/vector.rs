//! Operations on one row at a time: norm, rotation, gate, soft cap.

use super::lanes::{LANES, Lanes};
use super::{Cpu, Task};

/// `e^x` to two units in the last place, without a branch so that loops of it vectorise.
#[inline(always)]
pub(super) fn exp<L: Lanes>(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = L::fma1(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that `n * ln 2` is exact enough.
    let r = L::fma1(n, -0.693_359_4, x);
    let r = L::fma1(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = L::fma1(p, r, c);
    }
    let e = L::fma1(p, r * r, r) + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    e * f32::from_bits(power)
}

/// `2^x` for `x` that is not above zero, to six parts in ten million; below -126 it is `2^-126`.
#[inline(always)]
pub(super) fn exp2<L: Lanes>(x: f32) -> f32 {
    // As in `exp`.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    // Of all with `2^0 = 1` the one whose largest relative error is least.
    let mut p = 1.112_551e-3;
    for c in [9.666_283e-3, 5.557_400_4e-2, 0.240_223_51, 0.693_142_83, 1.0] {
        p = L::fma1(p, r, c);
    }
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

/// The hyperbolic tangent to some units in the last place, without a branch.
#[inline(always)]
fn tanh<L: Lanes>(x: f32) -> f32 {
    let far = 1.0 - 2.0 / (exp::<L>(2.0 * x) + 1.0);
    // Near zero that difference cancels: x - x^3/3 + 2x^5/15 - 17x^7/315 + 62x^9/2835.
    let s = x * x;
    let mut p = 62.0 / 2835.0;
    for c in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        p = L::fma1(p, s, c);
    }
    let near = L::fma1(p * s, x, x);
    if s < 0.0625 { near } else { far }
}

/// `x = cap * tanh(x / cap)`.
#[inline(always)]
pub(super) fn soft_cap<L: Lanes>(x: &mut [f32], cap: f32) {
    for x in x.iter_mut() {
        *x = cap * tanh::<L>(*x / cap);
    }
}

/// The dot product of rows whose length is a multiple of sixteen.
#[inline(always)]
pub(super) fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = L::splat(0.0);
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        sum = L::fma(L::load(a), L::load(b), sum);
    }
    L::sum(sum)
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

/// `1 / rms(x)`.
#[inline(always)]
fn rms_scale<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    let mean = dot::<L>(x, x) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

impl Task for RmsNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        let scale = rms_scale::<L>(self.x, self.eps);
        for ((out, x), w) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * w;
        }
    }
}

struct RmsNormInPlace<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Task for RmsNormInPlace<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        let scale = rms_scale::<L>(self.x, self.eps);
        for (x, w) in self.x.iter_mut().zip(self.weight) {
            *x = *x * scale * w;
        }
    }
}

/// Which numbers of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// 0 and 1, 2 and 3, and so on.
    Neighbours,
    /// The first of each half of what turns, then the second of each, and so on.
    Halves,
}

struct Rope<'a> {
    pairs: Pairs,
    x: &'a mut [f32],
    turns: &'a [[f32; 2]],
}

impl Task for Rope<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        match self.pairs {
            Pairs::Neighbours => {
                for (pair, [cos, sin]) in self.x.as_chunks_mut::<2>().0.iter_mut().zip(self.turns) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
            Pairs::Halves => {
                let (first, second) = self.x.split_at_mut(self.turns.len());
                for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(self.turns) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Task for SoftCap<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        soft_cap::<L>(self.x, self.cap);
    }
}

struct GeluTanhMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Task for GeluTanhMul<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        // gelu(x) = x (1 + tanh(y)) / 2 = x sigmoid(2y), y = sqrt(2 / pi) (x + 0.044715 x^3).
        const DOUBLE: f32 = 1.595_769;
        for ((out, x), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            let y = DOUBLE * L::fma1(0.044_715 * x * x, *x, *x);
            *out = x / (1.0 + exp::<L>(-y)) * up;
        }
    }
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Task for SiluMul<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + exp::<L>(-gate)) * up;
        }
    }
}

struct LayerNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Task for LayerNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        let len = self.x.len() as f32;
        let mut sum = L::splat(0.0);
        for x in self.x.as_chunks::<LANES>().0 {
            sum = L::add(sum, L::load(x));
        }
        let mean = L::sum(sum) / len;
        for x in self.x.iter_mut() {
            *x -= mean;
        }
        let scale = 1.0 / (dot::<L>(self.x, self.x) / len + self.eps).sqrt();
        for ((x, w), b) in self.x.iter_mut().zip(self.weight).zip(self.bias) {
            *x = L::fma1(*x * scale, *w, *b);
        }
    }
}

struct Gelu<'a> {
    x: &'a mut [f32],
}

impl Task for Gelu<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        // gelu(x) = x (1 + erf(x / sqrt 2)) / 2; erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
        for x in self.x.iter_mut() {
            let y = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
            let t = 1.0 / L::fma1(0.327_591_1, y, 1.0);
            let mut p = 1.061_405_4;
            for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
                p = L::fma1(p, t, c);
            }
            // Half of what erfc is where x is positive.
            let half = 0.5 * p * t * exp::<L>(-y * y);
            *x *= if *x < 0.0 { half } else { 1.0 - half };
        }
    }
}

impl Cpu {
    /// `x = (x - mean(x)) / deviation(x) * weight + bias`; all of one length, a multiple of sixteen.
    pub fn layer_norm(self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        assert!(x.len() == weight.len() && x.len() == bias.len(), "one length");
        assert!(x.len().is_multiple_of(LANES), "whole vectors");
        self.run(LayerNorm { x, weight, bias, eps });
    }

    /// `x = gelu(x)`, with the error function itself.
    pub fn gelu(self, x: &mut [f32]) {
        self.run(Gelu { x });
    }

    /// `out = x / rms(x) * weight`; all of one length, a multiple of sixteen.
    pub fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len(), "one length");
        assert!(x.len().is_multiple_of(LANES), "whole vectors");
        self.run(RmsNorm { x, weight, eps, out });
    }

    /// `x = x / rms(x) * weight`; both of one length, a multiple of sixteen.
    pub fn rms_norm_in_place(self, x: &mut [f32], weight: &[f32], eps: f32) {
        assert!(x.len() == weight.len() && x.len().is_multiple_of(LANES), "one length of whole vectors");
        self.run(RmsNormInPlace { x, weight, eps });
    }

    /// Turns each pair in `x` by its angle: `turns[i]` is (cos, sin) of pair `i`. The rest stays.
    pub fn rope(self, pairs: Pairs, x: &mut [f32], turns: &[[f32; 2]]) {
        assert!(turns.len() * 2 <= x.len(), "a pair for each turn");
        self.run(Rope { pairs, x, turns });
    }

    /// `x = cap * tanh(x / cap)`.
    pub fn soft_cap(self, x: &mut [f32], cap: f32) {
        self.run(SoftCap { x, cap });
    }

    /// `out = gelu(gate) * up`, where gelu has a tanh for the error function.
    pub fn gelu_tanh_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "one length");
        self.run(GeluTanhMul { gate, up, out });
    }

    /// `out = silu(gate) * up`.
    pub fn silu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "one length");
        self.run(SiluMul { gate, up, out });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CodePath, reference};
    use super::*;

    fn paths() -> impl Iterator<Item = Cpu> {
        CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path)))
    }

    fn close(a: &[f32], b: &[f32], tolerance: f32) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} and {b}");
        }
    }

    #[test]
    fn every_path_agrees_with_the_reference() {
        for cpu in paths() {
            for len in [16, 32, 48, 576] {
                let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
                let w: Vec<f32> = (0..len).map(|i| (i % 7) as f32 / 3.0 - 1.0).collect();
                let (mut out, mut want) = (vec![0.0; len], vec![0.0; len]);
                cpu.rms_norm(&x, &w, 1e-5, &mut out);
                reference::rms_norm(&x, &w, 1e-5, &mut want);
                close(&out, &want, 1e-5);
                cpu.silu_mul(&x, &w, &mut out);
                reference::silu_mul(&x, &w, &mut want);
                close(&out, &want, 1e-6);
                let bias: Vec<f32> = (0..len).map(|i| (i % 5) as f32 - 2.0).collect();
                let mut normed = x.clone();
                cpu.layer_norm(&mut normed, &w, &bias, 1e-12);
                want.copy_from_slice(&x);
                reference::layer_norm(&mut want, &w, &bias, 1e-12);
                close(&normed, &want, 1e-5);
                let mut gated = x.clone();
                cpu.gelu(&mut gated);
                want.copy_from_slice(&x);
                reference::gelu(&mut want);
                close(&gated, &want, 3e-7);
                let turns: Vec<_> = (0..len / 2).map(|i| [(i as f32).cos(), (i as f32).sin()]).collect();
                let mut normed = x.clone();
                cpu.rms_norm_in_place(&mut normed, &w, 1e-5);
                reference::rms_norm(&x, &w, 1e-5, &mut want);
                close(&normed, &want, 1e-5);
                cpu.gelu_tanh_mul(&x, &w, &mut out);
                reference::gelu_tanh_mul(&x, &w, &mut want);
                close(&out, &want, 1e-6);
                for cap in [0.3, 5.0, 50.0] {
                    let (mut a, mut b) = (x.clone(), x.clone());
                    cpu.soft_cap(&mut a, cap);
                    reference::soft_cap(&mut b, cap);
                    close(&a, &b, 1e-6);
                }
                // All of a head may turn, or its beginning.
                for (pairs, turns) in [Pairs::Neighbours, Pairs::Halves]
                    .into_iter()
                    .flat_map(|pairs| [(pairs, &turns[..]), (pairs, &turns[..len / 8]), (pairs, &turns[..3])])
                {
                    let (mut a, mut b) = (x.clone(), x.clone());
                    cpu.rope(pairs, &mut a, turns);
                    reference::rope(pairs, &mut b, turns);
                    close(&a, &b, 1e-6);
                }
            }
        }
    }

    #[test]
    fn powers_are_powers() {
        struct All;
        impl Task for All {
            #[inline(always)]
            fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
                for i in -8700..8800 {
                    let x = i as f32 / 100.0;
                    let (got, want) = (f64::from(exp::<L>(x)), f64::from(x).exp());
                    assert!((got / want - 1.0).abs() < 3e-7, "{x}: {got} {want}");
                }
                assert!(exp::<L>(-1e30) < 1e-37 && exp::<L>(1e30).is_finite());
                for i in 0..126_000 {
                    let x = -(i as f32) / 1000.0;
                    let (got, want) = (f64::from(exp2::<L>(x)), f64::from(x).exp2());
                    assert!((got / want - 1.0).abs() < 6e-7, "{x}: {got} {want}");
                }
                assert!(exp2::<L>(0.0) == 1.0 && exp2::<L>(f32::NEG_INFINITY) < 1e-37 && exp2::<L>(f32::NAN).is_nan());
            }
        }
        for cpu in paths() {
            cpu.run(All);
        }
    }
}
