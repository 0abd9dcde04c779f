//! What a card is asked once before it is trusted: whether its kernels compute what they should, and how fast it multiplies and
//! copies.
//!
//! The tests of the repository say more; this needs nothing but the program and a driver.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::device::{int, shape};
use super::draw::Draw;
use super::matrix::{DeviceMatrix, Input};
use super::{Buffer, CudaError, Device};
use crate::ask::{Ask, Prompt, Sampling};
use crate::format::quant::{Quant, TYPES};
use crate::ops::cpu::matmul::Matrix;
use crate::ops::cpu::reference;
use crate::sampling::Sampler;
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

/// How fast tensor cores multiply: multiplications and additions a second, two for each pair of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixRates {
    /// Halves, added up as f32.
    pub f16: f64,
    /// Bytes, added up as integers.
    pub s8: f64,
}

/// Products of each type of weights, for few tokens and for many; draws of tokens.
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
    let filters = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.01, ..Sampling::default() };
    for (what, options) in [
        ("the likeliest token", Sampling::default()),
        ("a token of all", Sampling { temperature: 1.0, ..Sampling::default() }),
        ("a token of few", filters),
    ] {
        // Two tokens between which a draw falls may change places: exponentials are rounded.
        all.push(Checked { what: what.into(), error: draws(device, options)?, most: 0.1 });
    }
    Ok(all)
}

/// Which part of some draws is not the processor's.
fn draws(device: &Device, options: Sampling) -> Result<f64, CudaError> {
    const ROWS: usize = 32;
    let n = 5000;
    let logits: Vec<f32> = (0..ROWS * n).map(|at| (bits(at + 11) >> 40) as f32 / (1 << 20) as f32).collect();
    let samplers = (0..ROWS as u64).map(|row| {
        let sampling = Sampling { seed: Some(row), ..options };
        Sampler::new(&Ask { sampling, ..Ask::new(Prompt::Tokens(Vec::new())) }, &[], row)
    });
    let (mut here, there): (Vec<Sampler>, Vec<Draw>) = samplers
        .map(|sampler| (sampler.clone(), sampler))
        .map(|(here, mut there)| (here, there.draw_on_card()))
        .unzip();
    let (on, how, ids) = (device.put(&logits)?, device.put(&there)?, device.buffer::<u32>(ROWS)?);
    device.draw((on.view(), n), how.view(), ids.view())?;
    let same = here.iter_mut().zip(logits.chunks_exact(n)).zip(device.get(ids.view())?);
    let wrong = same.filter_map(|((sampler, row), id)| (sampler.choose_in(row, None).0 != id).then_some(())).count();
    Ok(wrong as f64 / ROWS as f64)
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

/// What tensor cores do with nothing else to do, the best of some runs: each warp multiplies ones in its registers, eight times `steps`
/// times. On a card, [`RATE_STEPS`] takes some milliseconds.
///
/// # Errors
/// `Shape` if a product was wrong, or for more steps than floats count exactly; what the driver says.
pub fn matrix_rates(device: &Device, steps: usize) -> Result<MatrixRates, CudaError> {
    if steps == 0 || steps > RATE_STEPS {
        return Err(shape(format!("{steps} steps")));
    }
    // Enough for every multiprocessor to be full.
    let blocks = device.card().multiprocessors.max(1) as usize * 8;
    let out = device.buffer::<f32>(blocks * 256)?;
    // (16, k) by (k, 8), eight times in each of eight warps of a block
    let rate = |kernel: &str, k: usize| -> Result<f64, CudaError> {
        let (operations, mut best) = ((blocks * 8 * steps * 8 * 2 * 16 * k * 8) as f64, 0.0f64);
        for _ in 0..4 {
            let arguments: [Arg; 2] = [(&out).into(), int(steps)?.into()];
            let started = Instant::now();
            // SAFETY: in the order of both kernels; `out` has a place for each thread.
            unsafe { device.launch(kernel, [blocks, 1, 1], 256, &arguments)? };
            device.wait()?;
            best = best.max(operations / started.elapsed().as_secs_f64());
        }
        let want = (steps * 8 * 4 * k) as f32;
        match device.get(out.view())?.iter().all(|sum| *sum == want) {
            true => Ok(best),
            false => Err(shape(format!("products of ones with {kernel}: the sums are not {want}"))),
        }
    };
    Ok(MatrixRates { f16: rate("rate_f16", 16)?, s8: rate("rate_s8", 32)? })
}

/// The most steps of [`matrix_rates`]: f32 counts as far exactly.
pub const RATE_STEPS: usize = 1 << 14;
