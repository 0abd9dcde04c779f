//! Products with every type of weights, embeddings, and activations as bytes.

use super::{Noise, apart, device};
use hob_gpu::format::mapped::Mapped;
use hob_gpu::format::quant::{Quant, TYPES};
use hob_gpu::ops::cpu::matmul::Matrix;
use hob_gpu::ops::cpu::reference;
use hob_gpu::ops::cuda::CudaError;
use hob_gpu::ops::cuda::copies::Copies;
use hob_gpu::ops::cuda::matrix::{DeviceMatrix, Input};
use hob_gpu::ops::cuda::upload::{Cut, Raw, upload};
use std::sync::Mutex;

/// Where a block has its scales, f16.
fn scales(quant: Quant) -> &'static [usize] {
    match quant {
        Quant::F32 | Quant::F16 | Quant::Bf16 => &[],
        Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0 | Quant::Iq4Nl | Quant::Iq4Xs => &[0],
        Quant::Q4_1 | Quant::Q5_1 | Quant::Q4K | Quant::Q5K => &[0, 2],
        Quant::Q2K => &[80, 82],
        Quant::Q3K => &[108],
        Quant::Q6K => &[208],
    }
}

/// Arbitrary weights: any bits, but scales of a sensible size.
pub fn weights(noise: &mut Noise, quant: Quant, rows: usize, cols: usize) -> Vec<u8> {
    let row = quant.row();
    let mut bytes: Vec<u8> = (0..rows * cols / row.weights * row.bytes).map(|_| noise.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(row.bytes) {
        match quant {
            Quant::F32 => block.copy_from_slice(&noise.one().to_le_bytes()),
            Quant::F16 => block.copy_from_slice(&half::f16::from_f32(noise.one()).to_le_bytes()),
            Quant::Bf16 => block.copy_from_slice(&half::bf16::from_f32(noise.one()).to_le_bytes()),
            _ => {
                for at in scales(quant) {
                    let scale = half::f16::from_f32(0.01 + 0.01 * noise.one());
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
    }
    bytes
}

fn is_float(quant: Quant) -> bool {
    matches!(quant, Quant::F32 | Quant::F16 | Quant::Bf16)
}

/// Columns of an odd number of blocks, and what leaves lanes and tiles without work.
fn widths(quant: Quant) -> [usize; 2] {
    if quant.row().weights == 256 { [256, 1280] } else { [32, 1120] }
}

#[test]
fn products_of_every_type_are_those_of_double_precision() {
    let Some(device) = device() else { return };
    let mut noise = Noise(1);
    for row in TYPES {
        let quant = row.quant.unwrap();
        let (mut worst, mut alone) = (0.0f64, Vec::new());
        for cols in widths(quant) {
            // Three matrices at once, of which none is whole tiles.
            let sizes = [37, 66, 5];
            let bytes: Vec<Vec<u8>> = sizes.iter().map(|rows| weights(&mut noise, quant, *rows, cols)).collect();
            let host: Vec<Matrix<'_>> =
                bytes.iter().zip(sizes).map(|(bytes, rows)| Matrix { quant, rows, cols, bytes, copies: &[] }).collect();
            let rows: Vec<Vec<f32>> = host
                .iter()
                .flat_map(|w| (0..w.rows).map(|row| reference::decode(w, row)).collect::<Vec<_>>())
                .collect();
            let card: Vec<DeviceMatrix> = host.iter().map(|w| DeviceMatrix::upload(&device, w).unwrap()).collect();
            let x = noise.many(70 * cols);
            let seen = if is_float(quant) { x.clone() } else { reference::quantised(&x) };
            for tokens in [1, 2, 3, 5, 8, 9, 70] {
                let input = Input::new(&device, tokens, cols).unwrap();
                device.write(input.floats.view(), &x[..tokens * cols]).unwrap();
                if !is_float(quant) {
                    device.quantise(input.floats.view(), cols, tokens, false, &input).unwrap();
                }
                let out = device.buffer::<f32>(tokens * rows.len()).unwrap();
                device.write(out.view(), &vec![f32::NAN; out.len()]).unwrap();
                device.product(&card.iter().collect::<Vec<_>>(), &input, tokens, out.view()).unwrap();
                let got = device.get(out.view()).unwrap();
                let want: Vec<f64> = (0..tokens * rows.len())
                    .map(|n| {
                        let (x, w) = (&seen[n / rows.len() * cols..][..cols], &rows[n % rows.len()]);
                        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
                    })
                    .collect();
                let error = apart(&got, &want);
                let most = if is_float(quant) && tokens > 8 { 5e-4 } else { 1e-6 };
                assert!(error < most, "{} {tokens} tokens of {cols}: {error:.1e}", row.name);
                worst = worst.max(error / most);
                // The same bits in any batch that the same kernels serve.
                let first = &got[..rows.len()];
                match tokens {
                    1 | 9 => alone = first.to_vec(),
                    _ => assert!(first == alone, "{} {tokens} tokens of {cols}", row.name),
                }
            }
        }
        println!("{}: at most {:.0} % of what is allowed", row.name, 100.0 * worst);
    }
}

#[test]
fn embeddings_are_rows() {
    let Some(device) = device() else { return };
    let mut noise = Noise(2);
    for row in TYPES {
        let quant = row.quant.unwrap();
        for cols in widths(quant) {
            let bytes = weights(&mut noise, quant, 11, cols);
            let host = Matrix { quant, rows: 11, cols, bytes: &bytes, copies: &[] };
            let card = DeviceMatrix::upload(&device, &host).unwrap();
            let tokens = [10u32, 0, 3, 3];
            let (ids, x) = (device.put(&tokens).unwrap(), device.buffer::<f32>(4 * cols).unwrap());
            device.embed(&card, ids.view(), 1.5, x.view()).unwrap();
            let want: Vec<f64> = tokens
                .iter()
                .flat_map(|token| reference::decode(&host, *token as usize))
                .map(|w| f64::from(w) * 1.5)
                .collect();
            let error = apart(&device.get(x.view()).unwrap(), &want);
            assert!(error < 1e-6, "{} {cols}: {error:.1e}", row.name);
        }
    }
}

#[test]
fn weights_arrive_whole_in_pieces_of_any_size() {
    let Some(device) = device() else { return };
    let mut noise = Noise(5);
    // Blocks that become planes, and one that stays as it is.
    let kinds = [(Quant::Q4_0, 96), (Quant::Q6K, 512), (Quant::F16, 64), (Quant::Q8_0, 32)];
    let sizes = |n: usize| (kinds[n % 4].0, 3 + 7 * n, kinds[n % 4].1);
    let bytes: Vec<Vec<u8>> = (0..9).map(sizes).map(|(q, rows, cols)| weights(&mut noise, q, rows, cols)).collect();
    let host: Vec<Matrix<'_>> = (0..9)
        .map(|n| (sizes(n), &bytes[n]))
        .map(|((quant, rows, cols), bytes)| Matrix { quant, rows, cols, bytes, copies: &[] })
        .collect();
    let total: u64 = bytes.iter().map(|bytes| bytes.len() as u64).sum();
    // The same, one after the other, in a file.
    let home = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let path = home.path().join("weights");
    std::fs::write(&path, bytes.concat()).unwrap();
    let file = Mapped::open(&path).unwrap();
    let begins = |n: usize| bytes[..n].iter().map(Vec::len).sum::<usize>();
    for (cut, from_file) in [
        (Cut { threads: 1, bytes: 1, past_cache: None }, false),
        (Cut { threads: 3, bytes: 700, past_cache: Some(true) }, true),
        (Cut { threads: 1, bytes: 5000, past_cache: Some(false) }, true),
        (Cut { threads: 2, bytes: 1 << 20, past_cache: None }, false),
    ] {
        let card: Vec<DeviceMatrix> = host.iter().map(|w| DeviceMatrix::empty(&device, w).unwrap()).collect();
        let raw = |n: usize| Raw { bytes: &bytes[n], file: from_file.then(|| (&file, begins(n))) };
        let pairs: Vec<_> = card.iter().enumerate().map(|(n, card)| (card, raw(n))).collect();
        let seen = Mutex::new(Vec::new());
        let follow = |done, of| {
            seen.lock().unwrap().push(done);
            of == total
        };
        upload(&device, &pairs, cut, None, &follow).unwrap();
        assert_eq!(seen.into_inner().unwrap().into_iter().max(), Some(total), "{cut:?}");
        for (card, host) in card.iter().zip(&host) {
            let ids: Vec<u32> = (0..host.rows as u32).collect();
            let (ids, x) = (device.put(&ids).unwrap(), device.buffer::<f32>(host.rows * host.cols).unwrap());
            device.embed(card, ids.view(), 1.0, x.view()).unwrap();
            let want: Vec<f64> = (0..host.rows).flat_map(|row| reference::decode(host, row)).map(f64::from).collect();
            let error = apart(&device.get(x.view()).unwrap(), &want);
            assert!(error < 1e-6, "{:?} by {cut:?}: {error:.1e}", host.quant);
        }
        let cut_off = upload(&device, &[(&card[0], bytes[0][18..].into())], cut, None, &|_, _| true);
        assert!(matches!(cut_off, Err(CudaError::Shape { .. })), "a block is missing: {cut_off:?}");
        // Somebody has had enough.
        let stopped = upload(&device, &pairs, cut, None, &|done, _| done < total / 2);
        assert_eq!(stopped, Err(CudaError::Stopped), "{cut:?}");
    }
}

#[test]
fn what_is_copied_is_not_read_again() {
    let Some(device) = device() else { return };
    let (mut noise, rows, cols) = (Noise(6), 40, 256);
    let bytes = weights(&mut noise, Quant::Q4K, rows, cols);
    let wrong = vec![0; bytes.len()];
    let copies = Copies::new(bytes.len() as u64);
    let cut = Cut { threads: 2, bytes: 300, past_cache: None };
    let host = Matrix { quant: Quant::Q4K, rows, cols, bytes: &bytes, copies: &[] };
    let bring = |bytes: &[u8], most: u64| {
        let card = DeviceMatrix::empty(&device, &host).unwrap();
        let copy = copies.of("a", bytes.len() as u64).unwrap();
        let sent = upload(&device, &[(&card, bytes.into())], cut, Some(&copy), &|done, _| done < most);
        copies.note("a", sent.is_ok());
        sent.map(|()| device.get(card.data()).unwrap())
    };
    // One that was stopped is not taken for a whole one.
    assert_eq!(bring(&wrong, 600), Err(CudaError::Stopped));
    assert!(!copies.has("a"));
    let first = bring(&bytes, u64::MAX).unwrap();
    assert!(copies.has("a") && first != wrong);
    assert_eq!(bring(&wrong, u64::MAX).unwrap(), first, "the file was not looked at");
    // Another way of cutting is another copy.
    let copy = copies.of("a", 0).unwrap();
    let card = DeviceMatrix::empty(&device, &host).unwrap();
    let other = Cut { bytes: 1000, ..cut };
    let refused = upload(&device, &[(&card, bytes[..].into())], other, Some(&copy), &|_, _| true);
    assert!(matches!(refused, Err(CudaError::Shape { .. })), "{refused:?}");
}

#[test]
fn a_launch_that_does_not_fit_is_refused() {
    let Some(device) = device() else { return };
    let mut noise = Noise(3);
    let bytes = weights(&mut noise, Quant::Q8_0, 8, 64);
    let host = Matrix { quant: Quant::Q8_0, rows: 8, cols: 64, bytes: &bytes, copies: &[] };
    let card = DeviceMatrix::upload(&device, &host).unwrap();
    let input = Input::new(&device, 2, 64).unwrap();
    let out = device.buffer::<f32>(15).unwrap();
    for (tokens, places) in [(2, 15), (3, 15), (0, 15), (1, 7)] {
        let refused = device.product(&[&card], &input, tokens, out.part(0..places)).unwrap_err().to_string();
        assert!(refused.contains("cannot do this"), "{refused}");
    }
    assert!(DeviceMatrix::upload(&device, &Matrix { rows: 9, ..host }).is_err());
    device.product(&[&card], &input, 1, out.view()).unwrap();
    device.wait().unwrap();
}
