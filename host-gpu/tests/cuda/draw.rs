//! Tokens that the card draws.

use super::{Noise, device};
use hob_gpu::ops::cuda::draw::Draw;
use hob_gpu::ops::cuda::{CudaError, Device};

fn drawn(device: &Device, logits: &[f32], draws: &[Draw]) -> Vec<u32> {
    let (on, how) = (device.put(logits).unwrap(), device.put(draws).unwrap());
    let ids = device.buffer::<u32>(draws.len()).unwrap();
    device.draw((on.view(), logits.len() / draws.len()), how.view(), ids.view()).unwrap();
    device.get(ids.view()).unwrap()
}

/// `draw` in 0..1, as the card has it.
fn at(draw: f64) -> u64 {
    (draw.clamp(0.0, 1.0 - f64::EPSILON) * 2f64.powi(64)) as u64
}

#[test]
fn the_likeliest_is_the_first_of_the_largest() {
    let Some(device) = device() else { return };
    let mut noise = Noise(7);
    for n in [1, 255, 256, 1000] {
        let mut logits = noise.many(6 * n);
        logits[n..2 * n].fill(0.25);
        logits[2 * n] = f32::NAN;
        logits[3 * n + n / 2] = 2.0;
        logits[4 * n - 1] = 2.0;
        logits[4 * n..5 * n].fill(f32::NAN);
        logits[5 * n..].fill(f32::NEG_INFINITY);
        let mut draws = [Draw::LIKELIEST; 6];
        // Of nothing that is a number nothing is drawn.
        draws[4..].fill(Draw { temperature: 1.0, at: u64::MAX, ..Draw::LIKELIEST });
        let want: Vec<u32> = logits
            .chunks_exact(n)
            .map(|row| {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row.iter().position(|l| *l == max).unwrap_or(0) as u32
            })
            .collect();
        let got = drawn(&device, &logits, &draws);
        assert_eq!(got[..5], want[..5], "{n}");
        assert_eq!(got[5], 0);
    }
}

/// All sorted, in double precision, with the draw and the share of `top_p` moved by so much.
fn sorted(logits: &[f32], how: &Draw, draw: f64, by: f64) -> usize {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut kept: Vec<usize> = (0..logits.len()).filter(|id| !logits[*id].is_nan()).collect();
    kept.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let weights = |kept: &[usize], t: f32| -> Vec<f64> {
        kept.iter().map(|id| ((f64::from(logits[*id]) - max) / f64::from(t)).exp()).collect()
    };
    let reach = |weights: &[f64], share: f64| {
        let (target, mut sum) = (share * weights.iter().sum::<f64>(), 0.0);
        let found = weights.iter().position(|w| {
            sum += w;
            sum > target
        });
        found.unwrap_or(weights.len() - 1)
    };
    if how.top_k > 0 {
        kept.truncate(how.top_k as usize);
    }
    if how.top_p < 1.0 {
        kept.truncate(reach(&weights(&kept, 1.0), f64::from(how.top_p) + by) + 1);
    }
    kept.retain(|id| max - f64::from(logits[*id]) <= (f64::from(how.depth) + by).max(0.0));
    kept[reach(&weights(&kept, how.temperature), draw + by)]
}

#[test]
fn what_is_drawn_is_what_it_would_be_if_all_were_sorted() {
    let Some(device) = device() else { return };
    let mut noise = Noise(8);
    let mut random = || f64::from(noise.many(1)[0]).abs().min(0.999_999);
    let rounds = if crate::shim::again() { 12 } else { 240 };
    for round in 0..rounds {
        // From almost certain to almost flat: all in one bucket, so that it is divided again and again, or in many.
        let spread = [0.02f32, 3.0, 12.0, 60.0][round % 4];
        let n = [40, 700, 2500][round / 4 % 3];
        let mut logits: Vec<f32> = (0..n).map(|_| spread * random() as f32).collect();
        logits[n / 2] = f32::NAN;
        logits[n / 3] = f32::NEG_INFINITY;
        let min_p = [0.0f32, 0.0, 0.05, 1e-4, 1.0][round / 25 % 5];
        let draw = [random(), 1.0 - random() * 1e-5, random() * 1e-5][round / 7 % 3];
        let how = Draw {
            temperature: [0.3, 1.0, 1.7][round % 3],
            top_k: [0, 0, 1, 40, 1000][round % 5],
            top_p: [1.0, 1.0, 0.2, 0.95, 0.999][round / 5 % 5],
            depth: -min_p.ln(),
            at: at(draw),
        };
        // Weights are rounded, and exponentials: what is drawn is between what draws a little lower and higher are.
        let got = logits[drawn(&device, &logits, &[how])[0] as usize];
        let [low, high] = [-5e-6, 5e-6].map(|by| logits[sorted(&logits, &how, draw, by)]);
        assert!(high <= got && got <= low, "round {round}, {how:?} at {draw}: {got}, not {low} to {high}");
    }
}

#[test]
fn tokens_as_likely_as_each_other_are_drawn_in_their_order() {
    let Some(device) = device() else { return };
    // As many as no list has, and then some that are never drawn.
    let n = 3000;
    let mut logits = vec![1.5f32; n];
    logits[2000..].fill(-40.0);
    for draw in [0.0, 0.25, 0.6875, 1.0] {
        let how = Draw { temperature: 0.8, at: at(draw), ..Draw::LIKELIEST };
        assert_eq!(drawn(&device, &logits, &[how]), [((draw * 2000.0) as u32).min(1999)]);
        let few = Draw { top_k: 1500, ..how };
        assert_eq!(drawn(&device, &logits, &[few]), [((draw * 1500.0) as u32).min(1499)]);
    }
    // Each row has its own, whatever the others are.
    let rows: Vec<f32> = logits.iter().chain(&vec![0.0; n]).chain(&logits).copied().collect();
    let how = Draw { temperature: 1.3, top_p: 0.5, at: at(0.9), ..Draw::LIKELIEST };
    let alone = drawn(&device, &logits, &[how])[0];
    assert_eq!(drawn(&device, &rows, &[how, Draw::LIKELIEST, how]), [alone, 0, alone]);
    assert!((899..=901).contains(&alone), "nine tenths of a half of two thousand: {alone}");
    let (on, how) = (device.put(&logits).unwrap(), device.put(&[how; 2]).unwrap());
    let ids = device.buffer::<u32>(2).unwrap();
    let refused = [
        device.draw((on.view(), n), how.view(), ids.view()),
        device.draw((on.view(), n / 2), how.view(), ids.part(0..1)),
        device.draw((on.view(), 0), how.view(), ids.view()),
    ];
    assert!(refused.iter().all(|refused| matches!(refused, Err(CudaError::Shape { .. }))), "{refused:?}");
}
