use super::super::woven::weave;
use super::super::{CodePath, reference};
use super::*;
use crate::format::quant::TYPES;

fn all() -> impl Iterator<Item = Quant> {
    TYPES.iter().filter_map(|row| row.quant)
}

/// Where the f16 of a block stand.
fn scales_at(quant: Quant) -> &'static [usize] {
    match quant {
        Quant::F32 | Quant::Bf16 => &[],
        Quant::F16 | Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0 | Quant::Iq4Nl | Quant::Iq4Xs => &[0],
        Quant::Q4_1 | Quant::Q5_1 | Quant::Q4K | Quant::Q5K => &[0, 2],
        Quant::Q2K => &[80, 82],
        Quant::Q3K => &[108],
        Quant::Q6K => &[208],
    }
}

/// `cols`, rounded up to whole blocks.
fn whole(quant: Quant, cols: usize) -> usize {
    cols.next_multiple_of(quant.row().weights)
}

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
        match quant {
            Quant::F32 => block = value.to_le_bytes().to_vec(),
            Quant::Bf16 => block = half::bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => {
                // The integer scales of a superblock multiply by up to 128: its sums would be too
                // large for a tolerance that small ones notice.
                let value = if row.weights == 256 { value / 32.0 } else { value };
                for at in scales_at(quant) {
                    block[*at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
                }
            }
        }
        bytes.extend(block);
    }
    bytes
}

/// Every code path, with both kinds of activations.
fn cpus() -> impl Iterator<Item = Cpu> {
    let paths = CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path)));
    paths.flat_map(|cpu| [Activations::F32, Activations::Q8].map(|a| cpu.with_activations(a)))
}

fn activations(tokens: usize, cols: usize) -> Vec<f32> {
    (0..tokens * cols).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
}

#[test]
fn every_type_path_and_shape_agrees_with_the_reference() {
    let mut pool = Pool::new(2).unwrap();
    for quant in all() {
        for (rows, cols) in [(1, 32), (7, 64), (19, 96), (61, 576), (112, 160)] {
            let cols = whole(quant, cols);
            let bytes = random_weights(quant, rows, cols);
            let w = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
            for tokens in [1, 2, 3, 4, 5, 6, 7, 13] {
                let x = activations(tokens, cols);
                for cpu in cpus() {
                    let mut want = vec![0.0; tokens * rows];
                    match cpu.multiplies_bytes(quant) {
                        true => reference::matmul(&w, &reference::quantised(&x), &mut want),
                        false => reference::matmul(&w, &x, &mut want),
                    }
                    let mut scratch = Tiles::default();
                    let input = Input::new(cpu, &mut pool, &x, cols, &[w], &mut scratch);
                    let mut out = vec![1.0; tokens * rows];
                    cpu.matmul(&mut pool, &[w], &input, true, &mut out);
                    for (a, b) in out.iter().zip(&want) {
                        let error = (a - b - 1.0).abs();
                        assert!(error < 1e-4 * cols as f32, "{quant:?} {} {} {a} {b}", cpu.path(), cpu.activations());
                    }
                }
            }
        }
    }
}

#[test]
fn weaving_changes_no_bit() {
    let mut pool = Pool::new(2).unwrap();
    for quant in all().filter(|quant| can_weave(*quant, 96)) {
        let (rows, cols) = (96, whole(quant, 288));
        let bytes = random_weights(quant, rows, cols);
        let plain = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
        let mut other = vec![0; bytes.len()];
        weave(quant, plain.row_bytes(), &bytes, &mut other);
        assert!(other != bytes);
        let pieces = [Piece::of(0..rows, Some(&other))];
        let woven = Matrix { copies: &pieces, ..plain };
        for cpu in cpus().filter(|cpu| cpu.activations() == Activations::Q8) {
            for tokens in [1, 2, 7] {
                let x = activations(tokens, cols);
                let mut run = |w: Matrix<'_>| {
                    let (mut scratch, mut out) = (Tiles::default(), vec![0.0; tokens * rows]);
                    let input = Input::new(cpu, &mut pool, &x, cols, &[w], &mut scratch);
                    cpu.matmul(&mut pool, &[w], &input, false, &mut out);
                    out
                };
                assert!(run(plain) == run(woven), "{quant:?} {} {tokens}", cpu.path());
            }
            for row in [0, 17, 95] {
                let (mut a, mut b) = (vec![0.0; cols], vec![1.0; cols]);
                cpu.decode(plain, row, &mut a);
                cpu.decode(woven, row, &mut b);
                assert!(a == b, "{quant:?} row {row}");
            }
        }
    }
}

#[test]
fn pieces_that_are_there_are_read_and_the_rest_is_where_it_was() {
    let mut pool = Pool::new(2).unwrap();
    let cpu = Cpu::new(None).unwrap();
    let (quant, rows, cols) = (Quant::Q4_0, 192, 288);
    let bytes = random_weights(quant, rows, cols);
    let plain = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
    let mut other = vec![0; bytes.len()];
    weave(quant, plain.row_bytes(), &bytes, &mut other);
    let x = activations(1, cols);
    let mut run = |w: Matrix<'_>| {
        let (mut scratch, mut out) = (Tiles::default(), vec![0.0; 2 * rows + 32]);
        let input = Input::new(cpu, &mut pool, &x, cols, &[w], &mut scratch);
        // Chunks begin where the matrix before has ended, not where pieces do.
        let first = Matrix { rows: 32, bytes: &bytes[..32 * plain.row_bytes()], copies: &[], ..w };
        cpu.matmul(&mut pool, &[first, w, w], &input, false, &mut out[..2 * rows + 32]);
        let mut gated = vec![0.0; rows];
        cpu.matmul_gated(&mut pool, w, w, &input, &mut gated);
        let mut row = vec![0.0; cols];
        cpu.decode(w, 70, &mut row);
        (out, gated, row)
    };
    let want = run(plain);
    for there in [[true, true, true], [true, false, true], [false, true, false]] {
        let size = plain.row_bytes();
        let rows = [0..32, 32..128, 128..192];
        let bytes = |rows: &Range<usize>| &other[rows.start * size..rows.end * size];
        let pieces: Vec<Piece> =
            rows.iter().zip(there).map(|(rows, there)| Piece::of(rows.clone(), there.then_some(bytes(rows)))).collect();
        assert!(run(Matrix { copies: &pieces, ..plain }) == want, "{there:?}");
    }
}

#[test]
fn what_cannot_be_woven_is_copied_as_it_is() {
    let mut pool = Pool::new(2).unwrap();
    for (quant, rows) in [(Quant::F16, 96), (Quant::Bf16, 33), (Quant::Q8_0, 40)] {
        let cols = 64;
        let bytes = random_weights(quant, rows, cols);
        let plain = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
        let size = plain.row_bytes();
        // Nothing but the copies has the numbers.
        let zeros = vec![0; bytes.len()];
        let pieces = [0..32, 32..rows].map(|rows| {
            let copy = &bytes[rows.start * size..rows.end * size];
            Piece::of(rows, Some(copy))
        });
        let copied = Matrix { bytes: &zeros, copies: &pieces, ..plain };
        for cpu in cpus() {
            for tokens in [1, 9] {
                let x = activations(tokens, cols);
                let mut run = |w: Matrix<'_>| {
                    let (mut scratch, mut out) = (Tiles::default(), vec![0.0; tokens * rows]);
                    let input = Input::new(cpu, &mut pool, &x, cols, &[w], &mut scratch);
                    cpu.matmul(&mut pool, &[w], &input, false, &mut out);
                    let mut row = vec![0.0; cols];
                    cpu.decode(w, rows - 1, &mut row);
                    (out, row)
                };
                assert!(run(copied) == run(plain), "{quant:?} {} {tokens}", cpu.path());
            }
        }
    }
}

#[test]
fn fine_activations_come_a_hundred_times_closer_to_floats() {
    let mut pool = Pool::new(2).unwrap();
    let (quant, rows, cols) = (Quant::Q8_0, 40, 576);
    let bytes = random_weights(quant, rows, cols);
    let w = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
    for tokens in [1, 2, 3, 9] {
        let x = activations(tokens, cols);
        let mut want = vec![0.0; tokens * rows];
        reference::matmul(&w, &x, &mut want);
        for cpu in cpus() {
            let (mut scratch, mut errors) = (Tiles::default(), [0.0, 0.0f32]);
            for (fine, error) in [false, true].into_iter().zip(&mut errors) {
                let input = match fine {
                    true => Input::fine(cpu, &mut pool, &x, cols, &[w], &mut scratch),
                    false => Input::new(cpu, &mut pool, &x, cols, &[w], &mut scratch),
                };
                let mut out = vec![0.0; tokens * rows];
                cpu.matmul(&mut pool, &[w], &input, false, &mut out);
                *error = out.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
            }
            let [coarse, fine] = errors;
            match cpu.activations() {
                Activations::Q8 => assert!(fine < coarse / 100.0, "{} {tokens}: {coarse} {fine}", cpu.path()),
                Activations::F32 => assert!(fine == coarse, "floats are as fine as it gets"),
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_in_any_batch() {
    let mut pool = Pool::new(2).unwrap();
    for quant in all() {
        let (rows, cols) = (75, whole(quant, 160));
        let bytes = random_weights(quant, rows, cols);
        let w = Matrix { quant, rows, cols, bytes: &bytes, copies: &[] };
        let x = activations(33, cols);
        for cpu in cpus() {
            let mut run = |x: &[f32]| {
                let mut scratch = Tiles::default();
                let input = Input::new(cpu, &mut pool, x, cols, &[w], &mut scratch);
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
    let size = Matrix { quant: Quant::Q8_0, rows: 1, cols, bytes: &bytes, copies: &[] }.row_bytes();
    let part = |from: usize, rows: usize| Matrix {
        quant: Quant::Q8_0,
        rows,
        cols,
        bytes: &bytes[from * size..(from + rows) * size],
        copies: &[],
    };
    let x = activations(5, cols);
    let mut scratch = Tiles::default();
    let input = Input::new(cpu, &mut pool, &x, cols, &[part(0, 92)], &mut scratch);
    let (mut one, mut three) = (vec![0.0; 5 * 92], vec![0.0; 5 * 92]);
    cpu.matmul(&mut pool, &[part(0, 92)], &input, false, &mut one);
    cpu.matmul(&mut pool, &[part(0, 50), part(50, 9), part(59, 33)], &input, false, &mut three);
    assert!(one == three);
}

#[test]
fn decoding_is_exact() {
    for quant in all() {
        let cols = whole(quant, 96);
        let bytes = random_weights(quant, 3, cols);
        let w = Matrix { quant, rows: 3, cols, bytes: &bytes, copies: &[] };
        for cpu in cpus() {
            let mut out = vec![0.0; cols];
            cpu.decode(w, 2, &mut out);
            for (a, b) in out.iter().zip(reference::decode(&w, 2)) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{quant:?} {a} {b}");
            }
        }
    }
}

/// One type's blocks and what they mean, in hexadecimal; floats are little-endian.
#[derive(serde::Deserialize)]
struct Golden {
    bytes: String,
    weights: String,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |d: u8| (d as char).to_digit(16).expect("hexadecimal") as u8;
    text.as_bytes().as_chunks::<2>().0.iter().map(|[a, b]| digit(*a) << 4 | digit(*b)).collect()
}

/// The same number, or both none. Zeros may differ in sign: `d * q + m` has none where `d * (q - 8)` has.
fn same(a: f32, b: f32) -> bool {
    a == b || a.is_nan() && b.is_nan()
}

#[test]
fn every_type_and_path_decodes_the_golden_blocks_exactly() {
    let text = include_str!("../../../../../tests/golden/quants.json");
    let golden: std::collections::BTreeMap<String, Golden> = serde_json::from_str(text).unwrap();
    for quant in all() {
        let golden = &golden[quant.row().name];
        let (bytes, want) = (unhex(&golden.bytes), unhex(&golden.weights));
        let want: Vec<f32> = want.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let w = Matrix { quant, rows: 1, cols: want.len(), bytes: &bytes, copies: &[] };
        let reference = reference::decode(&w, 0);
        for (i, want) in want.iter().enumerate() {
            assert!(same(reference[i], *want), "{quant:?} reference {i}: {} {want}", reference[i]);
        }
        for cpu in cpus() {
            let mut out = vec![0.0; want.len()];
            cpu.decode(w, 0, &mut out);
            for (i, want) in want.iter().enumerate() {
                assert!(same(out[i], *want), "{quant:?} {} {i}: {} {want}", cpu.path(), out[i]);
            }
        }
    }
}
