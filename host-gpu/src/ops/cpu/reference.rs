//! What each operation means, in loops that can be read beside the paper. Tests compare the
//! kernels with these; nothing here is on the path that runs.

use super::matmul::Matrix;
use super::vector::Pairs;
use crate::format::quant::{CODEBOOK, Quant};
use half::{bf16, f16};

/// Row `row` of `w` as floats.
pub fn decode(w: &Matrix<'_>, row: usize) -> Vec<f32> {
    let bytes = &w.bytes[row * w.row_bytes()..][..w.row_bytes()];
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    let nibble = |q: &[u8], i: usize| i32::from(if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 });
    let mut out = Vec::with_capacity(w.cols);
    for block in bytes.chunks_exact(w.quant.row().bytes) {
        let each = |f: &dyn Fn(usize) -> f32| (0..w.quant.row().weights).map(f).collect::<Vec<f32>>();
        out.extend(match w.quant {
            Quant::F32 => vec![f32::from_le_bytes(block.try_into().expect("four bytes"))],
            Quant::F16 => vec![half(block)],
            Quant::Bf16 => vec![bf16::from_le_bytes([block[0], block[1]]).to_f32()],
            Quant::Q4_0 => each(&|i| half(block) * (nibble(&block[2..], i) - 8) as f32),
            Quant::Q4_1 => each(&|i| half(block) * nibble(&block[4..], i) as f32 + half(&block[2..])),
            Quant::Q5_0 => each(&|i| {
                let fifth = i32::from(block[2 + i / 8] >> (i % 8) & 1) << 4;
                half(block) * ((nibble(&block[6..], i) | fifth) - 16) as f32
            }),
            Quant::Q5_1 => each(&|i| {
                let fifth = i32::from(block[4 + i / 8] >> (i % 8) & 1) << 4;
                half(block) * (nibble(&block[8..], i) | fifth) as f32 + half(&block[2..])
            }),
            Quant::Q2K => each(&|i| {
                let scale = block[i / 16];
                let q = block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
                let (d, dmin) = (half(&block[80..]), half(&block[82..]));
                d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4)
            }),
            Quant::Q3K => each(&|i| {
                let s = i / 16;
                let lower = if s < 8 { block[96 + s] & 15 } else { block[96 + s - 8] >> 4 };
                let upper = block[104 + s % 4] >> (s / 4 * 2) & 3;
                let third = block[i % 32] >> (i / 32) & 1;
                let q = block[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3 | third << 2;
                half(&block[108..]) * (f32::from(lower | upper << 4) - 32.0) * (f32::from(q) - 4.0)
            }),
            Quant::Q4K => each(&|i| affine(block, i, k_nibble(&block[16..], i))),
            Quant::Q5K => each(&|i| {
                let fifth = block[16 + i % 32] >> (i / 32) & 1;
                affine(block, i, k_nibble(&block[48..], i) | fifth << 4)
            }),
            Quant::Q6K => each(&|i| {
                let byte = block[i / 128 * 64 + i % 64];
                let lower = if i % 128 < 64 { byte & 15 } else { byte >> 4 };
                let upper = block[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                let scale = f32::from(block[192 + i / 16] as i8);
                half(&block[208..]) * scale * (f32::from(lower | upper << 4) - 32.0)
            }),
            Quant::Iq4Nl => each(&|i| half(block) * f32::from(CODEBOOK[nibble(&block[2..], i) as usize])),
            Quant::Iq4Xs => each(&|i| {
                let g = i / 32;
                let lower = block[4 + g / 2] >> (g % 2 * 4) & 15;
                let upper = block[2 + g / 4] >> (g % 4 * 2) & 3;
                let scale = half(block) * (f32::from(lower | upper << 4) - 32.0);
                scale * f32::from(CODEBOOK[nibble(&block[8 + g * 16..], i % 32) as usize])
            }),
            Quant::Q8_0 => each(&|i| half(block) * f32::from(block[2 + i] as i8)),
        });
    }
    out
}

/// Nibble `i` of a superblock: 32 weights in low halves, the next 32 in high ones.
fn k_nibble(q: &[u8], i: usize) -> u8 {
    q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

/// `d * s * q - dmin * m` with the six-bit `s` and `m` of weight `i` of a `Q4_K` or `Q5_K` block.
fn affine(block: &[u8], i: usize, q: u8) -> f32 {
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    let (g, packed) = (i / 32, &block[4..16]);
    let (scale, min) = if g < 4 {
        (packed[g] & 63, packed[4 + g] & 63)
    } else {
        let (scale, min) = (packed[g - 4] >> 6, packed[g] >> 6);
        (packed[4 + g] & 15 | scale << 4, packed[4 + g] >> 4 | min << 4)
    };
    half(block) * f32::from(scale) * f32::from(q) - half(&block[2..]) * f32::from(min)
}

/// What is left of activations that become bytes: `d * round(x / d)` with `d = max |x| / 127` for each 32 of them.
pub fn quantised(x: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for group in x.chunks_exact(32) {
        let d = group.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
        let by = if d > 0.0 { 1.0 / d } else { 0.0 };
        out.extend(group.iter().map(|x| d * (x * by).round_ties_even()));
    }
    out
}

/// `out[t][r] = w[r] . x[t]`; x (tokens, cols), out (tokens, rows).
pub fn matmul(w: &Matrix<'_>, x: &[f32], out: &mut [f32]) {
    for r in 0..w.rows {
        let row = decode(w, r);
        for (t, x) in x.chunks_exact(w.cols).enumerate() {
            out[t * w.rows + r] = row.iter().zip(x).map(|(w, x)| w * x).sum();
        }
    }
}

/// `out = x / rms(x) * weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let rms = (mean + eps).sqrt();
    for i in 0..x.len() {
        out[i] = x[i] / rms * weight[i];
    }
}

/// Pair `i` turned by the angle whose (cos, sin) is `turns[i]`; the rest stays.
pub fn rope(pairs: Pairs, x: &mut [f32], turns: &[[f32; 2]]) {
    for (i, [cos, sin]) in turns.iter().enumerate() {
        let (first, second) = match pairs {
            Pairs::Neighbours => (2 * i, 2 * i + 1),
            Pairs::Halves => (i, i + turns.len()),
        };
        let (a, b) = (x[first], x[second]);
        x[first] = a * cos - b * sin;
        x[second] = a * sin + b * cos;
    }
}

/// `out = gate * sigmoid(gate) * up`.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for i in 0..gate.len() {
        out[i] = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
    }
}

/// `out = gelu(gate) * up`, where gelu has a tanh for the error function.
pub fn gelu_tanh_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for i in 0..gate.len() {
        let x = gate[i];
        let inner = std::f32::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x);
        out[i] = 0.5 * x * (1.0 + inner.tanh()) * up[i];
    }
}

/// `x = (x - mean(x)) / deviation(x) * weight + bias`.
pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mean = |of: &dyn Fn(f64) -> f64| x.iter().map(|x| of(f64::from(*x))).sum::<f64>() / x.len() as f64;
    let center = mean(&|x| x);
    let deviation = (mean(&|x| (x - center).powi(2)) + f64::from(eps)).sqrt();
    for i in 0..x.len() {
        x[i] = ((f64::from(x[i]) - center) / deviation) as f32 * weight[i] + bias[i];
    }
}

/// `x = x P(X <= x)` for a normal `X`, by the series of the error function where it converges well, and its continued
/// fraction beyond (Abramowitz and Stegun, 7.1.6 and 7.1.14).
pub fn gelu(x: &mut [f32]) {
    for x in x.iter_mut() {
        let z = f64::from(*x);
        let y = z.abs() / std::f64::consts::SQRT_2;
        let gauss = (-y * y).exp() / std::f64::consts::PI.sqrt();
        let erfc = if y < 3.0 {
            let (mut term, mut sum) = (2.0 * y, 0.0);
            for n in 1..200 {
                sum += term;
                term *= 2.0 * y * y / (2 * n + 1) as f64;
            }
            1.0 - gauss * sum
        } else {
            let fraction = (1..60).rev().fold(y, |f, n| y + n as f64 / 2.0 / f);
            gauss / fraction
        };
        let below = if z < 0.0 { erfc / 2.0 } else { 1.0 - erfc / 2.0 };
        *x = (z * below) as f32;
    }
}

/// `x = cap * tanh(x / cap)`.
pub fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
}

/// `scores = e^scores / sum of e^scores`.
pub fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// How attention scores are made.
pub struct Scoring {
    /// Length of a key.
    pub dim: usize,
    /// Products are multiplied by this.
    pub scale: f32,
    /// Limits what that gives.
    pub cap: Option<f32>,
    /// How many of the last tokens count.
    pub window: usize,
}

/// `out[h] = softmax(q[h] . k * scale) v`; q, out (heads, dim), k, v (tokens, dim).
pub fn attend(q: &[f32], k: &[f32], v: &[f32], scoring: &Scoring, out: &mut [f32]) {
    let Scoring { dim, scale, cap, window } = *scoring;
    let before = (k.len() / dim).saturating_sub(window);
    for (q, out) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * scale;
        let mut p: Vec<f32> = k.chunks_exact(dim).map(dot).collect();
        if let Some(cap) = cap {
            soft_cap(&mut p, cap);
        }
        p[..before].fill(f32::NEG_INFINITY);
        softmax(&mut p);
        out.fill(0.0);
        for (p, v) in p.iter().zip(v.chunks_exact(dim)) {
            out.iter_mut().zip(v).for_each(|(out, v)| *out += p * v);
        }
    }
}
