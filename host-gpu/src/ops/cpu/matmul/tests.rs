use super::super::{CodePath, reference};
use super::*;

const ALL: [Quant; 7] = [Quant::F32, Quant::F16, Quant::Bf16, Quant::Q4_0, Quant::Q4_1, Quant::Q5_0, Quant::Q8_0];

/// Random bytes with scales that are sane floats.
fn random_weights(quant: Quant, rows: usize, cols: usize) -> Vec<u8> {
    let row = quant.row();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut bytes = Vec::new();
    for _ in 0..rows * cols / row.weights {
        let mut block: Vec<u8> = (0..row.bytes).map(|_| byte()).collect();
        let value = f32::from(byte()) / 128.0 - 1.0;
        let half = half::f16::from_f32(value).to_le_bytes();
        match quant {
            Quant::F32 => block = value.to_le_bytes().to_vec(),
            Quant::Bf16 => block = half::bf16::from_f32(value).to_le_bytes().to_vec(),
            Quant::Q4_1 => {
                block[..2].copy_from_slice(&half);
                block[2..4].copy_from_slice(&half);
            }
            _ => block[..2].copy_from_slice(&half),
        }
        bytes.extend(block);
    }
    bytes
}

fn cpus() -> impl Iterator<Item = Cpu> {
    [CodePath::Avx512, CodePath::Avx2, CodePath::Portable].into_iter().filter_map(|p| Cpu::new(Some(p)))
}

fn activations(tokens: usize, cols: usize) -> Vec<f32> {
    (0..tokens * cols).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
}

#[test]
fn every_type_path_and_shape_agrees_with_the_reference() {
    let mut pool = Pool::new(2).unwrap();
    for quant in ALL {
        for (rows, cols) in [(1, 32), (7, 64), (19, 96), (61, 576)] {
            let bytes = random_weights(quant, rows, cols);
            let w = Matrix { quant, rows, cols, bytes: &bytes };
            for tokens in [1, 2, 3, 4, 5, 7, 13] {
                let x = activations(tokens, cols);
                let mut want = vec![0.0; tokens * rows];
                reference::matmul(&w, &x, &mut want);
                for cpu in cpus() {
                    let mut scratch = Vec::new();
                    let input = Input::new(cpu, &mut pool, &x, cols, &mut scratch);
                    let mut out = vec![1.0; tokens * rows];
                    cpu.matmul(&mut pool, &[w], &input, true, &mut out);
                    for (a, b) in out.iter().zip(&want) {
                        let error = (a - b - 1.0).abs();
                        assert!(error < 1e-4 * cols as f32, "{quant:?} {} {a} {b}", cpu.path());
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_in_any_batch() {
    let mut pool = Pool::new(2).unwrap();
    for quant in ALL {
        let (rows, cols) = (75, 160);
        let bytes = random_weights(quant, rows, cols);
        let w = Matrix { quant, rows, cols, bytes: &bytes };
        let x = activations(33, cols);
        for cpu in cpus() {
            let mut run = |x: &[f32]| {
                let mut scratch = Vec::new();
                let input = Input::new(cpu, &mut pool, x, cols, &mut scratch);
                let mut out = vec![0.0; x.len() / cols * rows];
                cpu.matmul(&mut pool, &[w], &input, false, &mut out);
                out
            };
            let all = run(&x);
            for size in [1, 2, 3, 4, 6, 11] {
                let parts: Vec<f32> = x.chunks(size * cols).flat_map(&mut run).collect();
                assert!(all == parts, "{quant:?} {} batches of {size}", cpu.path());
            }
        }
    }
}

#[test]
fn stacked_matrices_are_one_product() {
    let mut pool = Pool::new(2).unwrap();
    let cpu = Cpu::new(None).unwrap();
    let cols = 1024; // chunks of 32 rows: they straddle the matrices
    let bytes = random_weights(Quant::Q8_0, 50 + 9 + 33, cols);
    let size = Matrix { quant: Quant::Q8_0, rows: 1, cols, bytes: &bytes }.row_bytes();
    let part = |from: usize, rows: usize| Matrix {
        quant: Quant::Q8_0,
        rows,
        cols,
        bytes: &bytes[from * size..(from + rows) * size],
    };
    let x = activations(5, cols);
    let mut scratch = Vec::new();
    let input = Input::new(cpu, &mut pool, &x, cols, &mut scratch);
    let (mut one, mut three) = (vec![0.0; 5 * 92], vec![0.0; 5 * 92]);
    cpu.matmul(&mut pool, &[part(0, 92)], &input, false, &mut one);
    cpu.matmul(&mut pool, &[part(0, 50), part(50, 9), part(59, 33)], &input, false, &mut three);
    assert!(one == three);
}

#[test]
fn decoding_is_exact() {
    for quant in ALL {
        let bytes = random_weights(quant, 3, 96);
        let w = Matrix { quant, rows: 3, cols: 96, bytes: &bytes };
        for cpu in cpus() {
            let mut out = vec![0.0; 96];
            cpu.decode(w, 2, &mut out);
            for (a, b) in out.iter().zip(reference::decode(&w, 2)) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{quant:?} {a} {b}");
            }
        }
    }
}
