//! Floats to quantised blocks, rounded as ggml's reference code rounds them.

use super::quant::{BlockBf16, BlockF16, BlockF32, BlockQ4_0, BlockQ8_0, Quant};
use half::{bf16, f16};

/// What matrices of floats become when a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantize {
    /// 8.5 bits for a weight; the text hardly changes.
    Q8_0,
    /// 4.5 bits for a weight; embedding and head, which suffer most, become `Q8_0`.
    Q4_0,
}

impl Quantize {
    /// What a matrix becomes; `ends` says that it is the embedding or the head.
    pub fn of(self, ends: bool) -> Quant {
        match self {
            Self::Q4_0 if !ends => Quant::Q4_0,
            Self::Q4_0 | Self::Q8_0 => Quant::Q8_0,
        }
    }
}

impl std::str::FromStr for Quantize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "q8_0" => Ok(Self::Q8_0),
            "q4_0" => Ok(Self::Q4_0),
            _ => Err(format!("no quantisation is called `{text}`; give q8_0 or q4_0")),
        }
    }
}

/// Weights in a block.
const BLOCK: usize = 32;

/// Why a row cannot be quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

/// Quantises `from`, whole blocks of the float type `of`, to blocks of `to` that fill `out`.
///
/// # Errors
/// `NotFinite` for weights that are infinite, no numbers, or beyond what a block's scale can hold.
///
/// # Panics
/// If `of` is no float type, `to` is neither `Q8_0` nor `Q4_0`, or lengths do not fit.
pub fn quantize(of: Quant, from: &[u8], to: Quant, out: &mut [u8]) -> Result<(), NotFinite> {
    match to {
        Quant::Q8_0 => blocks(of, from, bytemuck::cast_slice_mut(out), q8_0),
        Quant::Q4_0 => blocks(of, from, bytemuck::cast_slice_mut(out), q4_0),
        _ => unreachable!("`Quantize` names no other type"),
    }
}

fn blocks<B>(of: Quant, from: &[u8], out: &mut [B], block: fn(&[f32; BLOCK]) -> Option<B>) -> Result<(), NotFinite> {
    let convert = |n: usize| match of {
        Quant::F32 => bytemuck::cast_slice::<u8, BlockF32>(from)[n].w.map(f32::from_le_bytes),
        Quant::F16 => bytemuck::cast_slice::<u8, BlockF16>(from)[n].w.map(|w| f16::from_le_bytes(w).to_f32()),
        Quant::Bf16 => bytemuck::cast_slice::<u8, BlockBf16>(from)[n].w.map(|w| bf16::from_le_bytes(w).to_f32()),
        _ => unreachable!("only floats are quantised"),
    };
    for (n, out) in out.iter_mut().enumerate() {
        *out = block(&convert(n)).ok_or(NotFinite)?;
    }
    Ok(())
}

/// `d` as a block stores it; `None` if it is too large or no number.
fn scale(d: f32) -> Option<[u8; 2]> {
    Some(f16::from_f32(d)).filter(|d| d.is_finite()).map(f16::to_le_bytes)
}

/// What weights are multiplied by: the inverse of the scale before it is rounded.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `quantize_row_q8_0_ref`: the largest weight becomes 127.
fn q8_0(w: &[f32; BLOCK]) -> Option<BlockQ8_0> {
    finite(w)?;
    let d = w.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
    let id = inverse(d);
    Some(BlockQ8_0 { d: scale(d)?, q: w.map(|w| (w * id).round() as i8) })
}

/// `quantize_row_q4_0_ref`: the largest weight becomes -8, which has no opposite.
fn q4_0(w: &[f32; BLOCK]) -> Option<BlockQ4_0> {
    finite(w)?;
    let largest = w.iter().fold(0.0f32, |most, w| if w.abs() > most.abs() { *w } else { most });
    let d = largest / -8.0;
    let id = inverse(d);
    let nibble = |w: f32| ((w * id + 8.5) as i8).min(15) as u8;
    let q = std::array::from_fn(|n| nibble(w[n]) | nibble(w[n + BLOCK / 2]) << 4);
    Some(BlockQ4_0 { d: scale(d)?, q })
}

fn finite(w: &[f32; BLOCK]) -> Option<()> {
    w.iter().all(|w| w.is_finite()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(w: &[f32]) -> Vec<u8> {
        w.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn made(w: &[f32], to: Quant) -> Result<Vec<u8>, NotFinite> {
        let row = to.row();
        let mut out = vec![0; w.len() / row.weights * row.bytes];
        quantize(Quant::F32, &bytes(w), to, &mut out).map(|()| out)
    }

    #[test]
    fn blocks_are_those_of_ggml() {
        // Worked by hand after the reference code.
        let mut w = [0.0f32; 32];
        (w[0], w[1], w[2], w[16], w[31]) = (127.0, -1.5, 2.5, -127.0, 0.49);
        let block = made(&w, Quant::Q8_0).unwrap();
        assert_eq!(block[..2], f16::from_f32(1.0).to_le_bytes());
        let q: Vec<i8> = block[2..].iter().map(|b| *b as i8).collect();
        assert_eq!((q[0], q[1], q[2], q[16], q[31]), (127, -2, 3, -127, 0), "halves round away from zero");
        (w[0], w[1], w[2], w[16], w[31]) = (-8.0, 8.0, 2.5, 1.0, -0.6);
        let block = made(&w, Quant::Q4_0).unwrap();
        assert_eq!(block[..2], f16::from_f32(1.0).to_le_bytes());
        let (first, second) = (block[2], block[17]);
        assert_eq!((first & 15, first >> 4), (0, 9), "weights 0 and 16");
        assert_eq!((block[3] & 15, block[4] & 15, second >> 4), (15, 11, 7), "8 does not fit; 2.5 becomes 3");
    }

    #[test]
    fn what_comes_back_is_within_half_a_step() {
        let mut seed = 1u64;
        for _ in 0..200 {
            let w: Vec<f32> = (0..64)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
                })
                .collect();
            let block = made(&w, Quant::Q8_0).unwrap();
            for (n, w) in w.iter().enumerate() {
                let block = &block[n / 32 * 34..][..34];
                let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
                let back = d * f32::from(block[2 + n % 32] as i8);
                assert!((back - w).abs() <= 0.51 * d + 0.001 * w.abs(), "{w} became {back}");
            }
        }
    }

    #[test]
    fn what_no_block_can_hold_is_refused_and_zeros_are_zeros() {
        for to in [Quant::Q8_0, Quant::Q4_0] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
                let mut w = [1.0; 64];
                w[40] = bad;
                assert_eq!(made(&w, to), Err(NotFinite), "{bad}");
            }
            let zeros = made(&[0.0; 32], to).unwrap();
            assert_eq!(f16::from_le_bytes([zeros[0], zeros[1]]), f16::ZERO);
            assert!(zeros[2..].iter().all(|q| *q == if to == Quant::Q8_0 { 0 } else { 0x88 }));
        }
    }

    #[test]
    fn halves_are_read_as_floats_are() {
        let w: Vec<f32> = (0..32).map(|n| (n as f32 - 16.0) / 8.0).collect();
        let want = made(&w, Quant::Q8_0).unwrap();
        let halves: Vec<u8> = w.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect();
        let brains: Vec<u8> = w.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
        for (of, from) in [(Quant::F16, halves), (Quant::Bf16, brains)] {
            let mut out = vec![0; 34];
            quantize(of, &from, Quant::Q8_0, &mut out).unwrap();
            assert_eq!(out, want);
        }
    }
}
