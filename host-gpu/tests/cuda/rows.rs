//! Norms, gates, logits, bytes of activations, and memory.

use super::{Noise, apart, device};
use hob_gpu::model::architecture::Gate;
use hob_gpu::ops::cpu::reference;
use hob_gpu::ops::cuda::draw::Draw;
use hob_gpu::ops::cuda::matrix::Input;
use hob_gpu::ops::cuda::rows::{Forms, Joins};
use hob_gpu::ops::cuda::{CudaError, Device};

const BOTH: Forms = Forms { floats: true, bytes: true };

/// What bytes and scales stand for, once it was seen that sums are sums.
fn from_bytes(device: &Device, input: &Input, count: usize) -> Vec<f32> {
    let bytes = device.get(input.bytes.part(0..count)).unwrap();
    let scales = device.get(input.scales.part(0..count / 32)).unwrap();
    let mut all = Vec::new();
    for (group, scale) in bytes.chunks_exact(32).zip(scales) {
        let sum = |half: &[i8]| half.iter().map(|q| i32::from(*q)).sum::<i32>();
        let sums = (scale >> 32) as u32;
        assert_eq!((sum(&group[..16]), sum(&group[16..])), (i32::from(sums as i16), (sums as i32) >> 16));
        all.extend(group.iter().map(|q| f32::from_bits(scale as u32) * f32::from(*q)));
    }
    all
}

fn doubles(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn rms(x: &[f64], eps: f64) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

#[test]
fn activations_become_the_bytes_that_the_processor_makes() {
    let Some(device) = device() else { return };
    let mut noise = Noise(4);
    for (rows, width) in [(1, 32), (3, 96), (5, 1056)] {
        let mut x = noise.many(rows * width);
        x[..32].fill(0.0);
        let input = Input::new(&device, 2 * rows, width).unwrap();
        let floats = device.put(&x).unwrap();
        device.quantise(floats.view(), width, rows, true, &input).unwrap();
        let all = from_bytes(&device, &input, 2 * rows * width);
        let (whole, rest) = all.split_at(rows * width);
        assert!(apart(whole, &doubles(&reference::quantised(&x))) < 1e-6);
        let both: Vec<f32> = whole.iter().zip(rest).map(|(a, b)| a + b).collect();
        let error = apart(&both, &doubles(&x));
        assert!(error < 5e-5, "two bytes are close: {error:.1e}");
    }
}

#[test]
fn norms_join_and_norm() {
    let Some(device) = device() else { return };
    let mut noise = Noise(5);
    let eps = 1e-5;
    for (rows, width) in [(1, 32), (3, 96), (2, 1056)] {
        for (joins, bias, post, picks) in [
            (false, false, false, false),
            (true, false, false, false),
            (true, true, true, false),
            (true, false, true, true),
        ] {
            let (x, y) = (noise.many(rows * width), noise.many(rows * width));
            let [weight, b, p] = [(); 3].map(|()| noise.many(width));
            let input = Input::new(&device, rows, width).unwrap();
            let (on_x, on_y) = (device.put(&x).unwrap(), device.put(&y).unwrap());
            let [on_weight, on_b, on_p] = [&weight, &b, &p].map(|v| device.put(v).unwrap());
            let picked: Vec<u32> = if picks { vec![rows as u32 - 1] } else { (0..rows as u32).collect() };
            let pick = device.put(&picked).unwrap();
            let joined =
                joins.then(|| Joins { y: on_y.view(), bias: bias.then_some(&on_b), norm: post.then_some(&on_p) });
            let named = picks.then(|| pick.view());
            device.norm(on_x.view(), joined, &on_weight, eps, named, picked.len(), (&input, BOTH)).unwrap();
            let (mut after, mut want) = (doubles(&x), Vec::new());
            for row in picked.iter().map(|row| *row as usize) {
                let of = row * width..(row + 1) * width;
                if joins {
                    let mut more = doubles(&y[of.clone()]);
                    more.iter_mut().zip(&b).for_each(|(y, b)| *y += if bias { f64::from(*b) } else { 0.0 });
                    let by = if post { rms(&more, eps.into()) } else { 1.0 };
                    for (n, x) in after[of.clone()].iter_mut().enumerate() {
                        *x += more[n] / by * if post { f64::from(p[n]) } else { 1.0 };
                    }
                }
                let by = rms(&after[of.clone()], eps.into());
                want.extend(after[of].iter().zip(&weight).map(|(x, w)| x / by * f64::from(*w)));
            }
            assert!(apart(&device.get(on_x.view()).unwrap(), &after) < 1e-6);
            let got = device.get(input.floats.part(0..want.len())).unwrap();
            assert!(apart(&got, &want) < 1e-6);
            let bytes = from_bytes(&device, &input, want.len());
            assert!(apart(&bytes, &doubles(&reference::quantised(&got))) < 1e-6);
        }
    }
}

#[test]
fn gates_and_logits_are_the_equations() {
    let Some(device) = device() else { return };
    let mut noise = Noise(6);
    for (rows, width) in [(1, 32), (7, 96)] {
        let gates: Vec<f32> = noise.many(2 * rows * width).iter().map(|x| x * 8.0).collect();
        let on_gates = device.put(&gates).unwrap();
        let input = Input::new(&device, rows, width).unwrap();
        for gate in [Gate::Silu, Gate::GeluTanh] {
            device.gate(on_gates.view(), width, rows, gate, (&input, BOTH)).unwrap();
            let mut want = vec![0.0; rows * width];
            for (out, gates) in want.chunks_exact_mut(width).zip(gates.chunks_exact(2 * width)) {
                let (x, up) = gates.split_at(width);
                match gate {
                    Gate::Silu => reference::silu_mul(x, up, out),
                    Gate::GeluTanh => reference::gelu_tanh_mul(x, up, out),
                }
            }
            let got = device.get(input.floats.view()).unwrap();
            let error = apart(&got, &doubles(&want));
            assert!(error < 1e-6, "{gate:?}: {error:.1e}");
            from_bytes(&device, &input, rows * width);
        }
    }
    let (whole, rest) = (noise.many(777), noise.many(777));
    let (on_whole, on_rest) = (device.put(&whole).unwrap(), device.put(&rest).unwrap());
    device.finish_logits(on_whole.view(), Some(on_rest.view()), Some(0.5)).unwrap();
    let want: Vec<f64> =
        whole.iter().zip(&rest).map(|(a, b)| 0.5 * ((f64::from(*a) + f64::from(*b)) / 0.5).tanh()).collect();
    assert!(apart(&device.get(on_whole.view()).unwrap(), &want) < 1e-6);
}

#[test]
#[allow(unsafe_code, reason = "launches a graph, whose buffers live here")]
fn a_graph_does_what_was_captured_with_what_is_there_now() {
    let Some(device) = device() else { return };
    let recorder = device.beside().unwrap();
    let on = device.put(&[1.0f32, 3.0, 2.0, 0.0]).unwrap();
    let (draws, ids) = (device.put(&[Draw::LIKELIEST]).unwrap(), device.buffer::<u32>(1).unwrap());
    let launch = |device: &Device| device.draw((on.view(), 4), draws.view(), ids.view());
    launch(&device).unwrap();
    assert_eq!(device.get(ids.view()).unwrap(), [1]);
    device.write(on.view(), &[1.0f32, 3.0, 2.0, 9.0]).unwrap();
    let graph = recorder.capture(|| launch(&recorder)).unwrap().expect("there was a launch");
    assert_eq!(device.get(ids.view()).unwrap(), [1], "capturing runs nothing");
    for (logits, want) in [([1.0f32, 3.0, 2.0, 9.0], 3), ([8.0, 3.0, 2.0, 1.0], 0), ([0.0, 3.0, 4.0, 1.0], 2)] {
        device.write(on.view(), &logits).unwrap();
        // SAFETY: its three buffers are above.
        unsafe { device.replay(&graph).unwrap() };
        assert_eq!(device.get(ids.view()).unwrap(), [want]);
    }
    // What fails within ends it, and it can capture again.
    let wrong = |_: &Device| recorder.draw((on.view(), 5), draws.view(), ids.view());
    assert!(matches!(recorder.capture(|| wrong(&recorder)), Err(CudaError::Shape { .. })));
    assert!(recorder.capture(|| launch(&recorder)).unwrap().is_some());
    assert!(device.compile(&["rows", "turn"]).is_ok());
    assert!(matches!(device.compile(&["row"]), Err(CudaError::Shape { .. })));
}

#[test]
fn what_is_checked_on_a_new_card_holds() {
    let Some(device) = device() else { return };
    if crate::shim::again() {
        return;
    }
    for one in hob_gpu::ops::cuda::check::kernels(&device).unwrap() {
        assert!(one.holds(), "{one:?}");
    }
    let rates = hob_gpu::ops::cuda::check::matrix_rates(&device, 3).unwrap();
    assert!(rates.f16 > 0.0 && rates.s8 > 0.0);
    assert!(hob_gpu::ops::cuda::check::matrix_rates(&device, 1 << 20).is_err());
    let cards = hob_gpu::ops::cuda::cards().unwrap();
    assert_eq!((cards[0].ordinal, &cards[0].name), (0, &device.card().name));
}

#[test]
fn memory_is_accounted_for_before_the_driver_is_asked() {
    let Some(_) = device() else { return };
    let device = Device::open(0, Some(1 << 20)).unwrap();
    let first = device.buffer::<u8>(600 << 10).unwrap();
    assert!(device.get(first.view()).unwrap().iter().all(|byte| *byte == 0), "what is given is clear");
    let refused = device.buffer::<u8>(600 << 10).unwrap_err();
    assert_eq!(refused, CudaError::NoMemory { needed: 600 << 10, used: 600 << 10, budget: 1 << 20 });
    drop(first);
    assert_eq!(device.memory(), (1 << 20, 0));
    let _second = device.buffer::<u8>(600 << 10).unwrap();
    assert!(device.buffer::<u64>(usize::MAX / 4).is_err());
    assert!(matches!(Device::open(77, None), Err(CudaError::NoCard { ordinal: 77, .. })));
}
