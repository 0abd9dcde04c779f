//! What a card is asked once before it is trusted: whether its kernels compute what they should, and how fast it copies.
//!
//! The tests of the repository say more; this needs nothing but the program and a driver.

use super::matrix::{DeviceMatrix, Input};
use super::{Buffer, CudaError, Device};
use crate::format::quant::{Quant, TYPES};
use crate::ops::cpu::matmul::Matrix;
use crate::ops::cpu::reference;
use std::time::Instant;

/// One kernel's result beside the reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// What was computed.
    pub what: String,
    /// The root of the mean square of the errors over that of the results.
    pub error: f64,
    /// What is allowed.
    pub most: f64,
}

impl Checked {
    /// Whether it is close enough.
    pub fn holds(&self) -> bool {
        self.error < self.most
    }
}

/// How fast bytes move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyRates {
    /// From one place of the card to another: bytes read, and as many written, a second.
    pub within: f64,
    /// From memory of this process that the driver has locked.
    pub pinned: f64,
    /// From any other memory.
    pub pageable: f64,
}

/// Products of each type of weights, for few tokens and for many.
///
/// # Errors
/// What the driver says.
pub fn kernels(device: &Device) -> Result<Vec<Checked>, CudaError> {
    let mut all = Vec::new();
    for row in TYPES {
        let Some(quant) = row.quant else { continue };
        for tokens in [1, 5, 40] {
            let most = if quant_is_float(quant) && tokens > 8 { 1e-3 } else { 1e-5 };
            let error = product(device, quant, tokens)?;
            all.push(Checked { what: format!("{} times {tokens} tokens", row.name), error, most });
        }
    }
    Ok(all)
}

fn quant_is_float(quant: Quant) -> bool {
    matches!(quant, Quant::F32 | Quant::F16 | Quant::Bf16)
}

/// Arbitrary bits, the same each time.
fn bits(n: usize) -> u64 {
    let z = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn product(device: &Device, quant: Quant, tokens: usize) -> Result<f64, CudaError> {
    let (rows, cols, row) = (100, 1024, quant.row());
    let mut bytes: Vec<u8> = (0..rows * cols / row.weights * row.bytes).map(|n| (bits(n) >> 32) as u8).collect();
    // The upper byte of what is read as a float makes it a moderate number; those of 32 bits have longer exponents.
    let moderate = |at: &mut u8| *at = (*at & 0x87) | 0x30;
    let longer = |at: &mut u8| *at = (*at & 0x81) | 0x3e;
    match quant {
        Quant::F32 => bytes.iter_mut().skip(3).step_by(4).for_each(longer),
        Quant::Bf16 => bytes.iter_mut().skip(1).step_by(2).for_each(longer),
        Quant::F16 => bytes.iter_mut().skip(1).step_by(2).for_each(moderate),
        _ => {
            let scales: &[usize] = match quant {
                Quant::Q4_1 | Quant::Q5_1 | Quant::Q4K | Quant::Q5K => &[1, 3],
                Quant::Q2K => &[81, 83],
                Quant::Q3K => &[109],
                Quant::Q6K => &[209],
                _ => &[1],
            };
            for block in bytes.chunks_exact_mut(row.bytes) {
                scales.iter().for_each(|at| moderate(&mut block[*at]));
            }
        }
    }
    let host = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
    let card = DeviceMatrix::upload(device, &host)?;
    let x: Vec<f32> = (0..tokens * cols).map(|n| (bits(n + 7) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
    let input = Input::new(device, tokens, cols)?;
    device.write(input.floats.view(), &x)?;
    let seen = match card.takes_bytes() {
        true => {
            device.quantise(input.floats.view(), cols, tokens, false, &input)?;
            reference::quantised(&x)
        }
        false => x,
    };
    let out = device.buffer::<f32>(tokens * rows)?;
    device.product(&[&card], &input, tokens, out.view())?;
    let got = device.get(out.view())?;
    let (mut error, mut size) = (0.0, 0.0);
    for r in 0..rows {
        let weights = reference::decode(&host, r);
        for t in 0..tokens {
            let x = &seen[t * cols..][..cols];
            let want: f64 = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            error += (f64::from(got[t * rows + r]) - want).powi(2);
            size += want * want;
        }
    }
    Ok((error / size).sqrt())
}

/// So much is copied at a time.
const COPIED: usize = 256 << 20;

/// Copies of 256 MiB, the best of some.
///
/// # Errors
/// `NoMemory`, or what the driver says.
pub fn copy_rates(device: &Device) -> Result<CopyRates, CudaError> {
    let (from, to): (Buffer<u8>, Buffer<u8>) = (device.buffer(COPIED)?, device.buffer(COPIED)?);
    let pageable = vec![1u8; COPIED];
    let pinned = device.pinned(COPIED)?;
    let best = |copy: &dyn Fn() -> Result<(), CudaError>| -> Result<f64, CudaError> {
        let mut best = 0.0f64;
        for _ in 0..5 {
            let started = Instant::now();
            copy()?;
            device.wait()?;
            best = best.max(COPIED as f64 / started.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    Ok(CopyRates {
        within: 2.0 * best(&|| device.copy(from.view(), to.view()))?,
        pinned: best(&|| device.write(to.view(), pinned.bytes()))?,
        pageable: best(&|| device.write(to.view(), &pageable))?,
    })
}
