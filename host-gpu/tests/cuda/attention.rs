//! Bias, norm and rotation of heads, keys and values in pages, and attention over them.

use super::{Noise, apart, device};
use hob_gpu::KvType;
use hob_gpu::model::architecture::Pairs;
use hob_gpu::ops::cpu::reference;
use hob_gpu::ops::cuda::pages::{PageLayout, Scoring, Together, Tokens, Turn, part_len, splits};

const EPS: f32 = 1e-6;
/// The layer that the tests use, of three.
const LAYER: usize = 1;

struct Case {
    head_dim: usize,
    pairs: usize,
    kind: Pairs,
    heads: usize,
    kv_heads: usize,
    page_tokens: usize,
    window: Option<usize>,
    cap: Option<f32>,
    extras: bool,
    /// Where each sequence's new tokens begin, and how many there are.
    parts: &'static [(usize, usize)],
}

const CASES: &[Case] = &[
    Case {
        head_dim: 64,
        pairs: 32,
        kind: Pairs::Halves,
        heads: 6,
        kv_heads: 2,
        page_tokens: 7,
        window: None,
        cap: None,
        extras: false,
        parts: &[(0, 5), (299, 1), (0, 1), (11, 70)],
    },
    Case {
        head_dim: 16,
        pairs: 8,
        kind: Pairs::Neighbours,
        heads: 5,
        kv_heads: 1,
        page_tokens: 45,
        window: Some(9),
        cap: Some(2.0),
        extras: true,
        parts: &[(3, 1), (0, 66), (50, 3)],
    },
    Case {
        head_dim: 80,
        pairs: 16,
        kind: Pairs::Halves,
        heads: 4,
        kv_heads: 4,
        page_tokens: 16,
        window: Some(40),
        cap: None,
        extras: true,
        parts: &[(0, 35), (520, 1), (33, 1)],
    },
    Case {
        head_dim: 256,
        pairs: 128,
        kind: Pairs::Halves,
        heads: 4,
        kv_heads: 1,
        page_tokens: 3,
        window: None,
        cap: Some(5.0),
        extras: true,
        parts: &[(0, 33), (40, 1), (17, 2)],
    },
];

/// What a page keeps of a key or value.
fn kept(kind: KvType, x: &mut [f32]) {
    for group in x.chunks_mut(32) {
        let d = half::f16::from_f32(group.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0).to_f32();
        for x in group {
            *x = match kind {
                KvType::F16 => half::f16::from_f32(*x).to_f32(),
                _ if d == 0.0 => 0.0,
                _ => (*x / d).round_ties_even().clamp(-127.0, 127.0) * d,
            };
        }
    }
}

/// In double precision.
fn attend(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32, case: &Case) -> Vec<f64> {
    let first = keys.len().saturating_sub(case.window.unwrap_or(usize::MAX));
    let score = |k: &Vec<f32>| {
        let s = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale);
        case.cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = keys[first..].iter().map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = p.iter().sum();
    let of = |d: usize| p.iter().zip(&values[first..]).map(|(p, v)| p * f64::from(v[d])).sum::<f64>() / sum;
    (0..q.len()).map(of).collect()
}

#[test]
fn heads_turn_and_attend_over_pages_of_any_size() {
    let Some(device) = device() else { return };
    for case in CASES {
        for kind in [KvType::F16, KvType::Q8_0] {
            let Case { head_dim, pairs, heads, kv_heads, page_tokens, .. } = *case;
            let mut noise = Noise(8 + head_dim as u64);
            let all = heads + 2 * kv_heads;
            let token = head_dim + if kind == KvType::F16 { head_dim } else { 2 * head_dim.div_ceil(32) };
            let page_bytes = (3 * 2 * kv_heads * page_tokens * token).next_multiple_of(16) + 48;
            let layout = PageLayout { kind, layers: 3, kv_heads, head_dim, page_tokens, page_bytes };
            // Tables of all sequences: pages in no order, none twice.
            let (mut tables, mut begins) = (Vec::new(), Vec::new());
            for (position, count) in case.parts {
                begins.push(tables.len() as u32);
                let pages = (position + count).div_ceil(page_tokens);
                let before = tables.len();
                tables.extend((0..pages).map(|n| (before + n) as u32));
            }
            let total = tables.len();
            tables.iter_mut().for_each(|page: &mut u32| *page = total as u32 - 1 - *page);
            let arena = device.buffer::<u8>(total * page_bytes).unwrap();
            device.write(arena.view(), &vec![0xff; arena.len()]).unwrap();
            let on_tables = device.put(&tables).unwrap();
            let vector = |noise: &mut Noise, n: usize| device.put(&noise.many(n)).unwrap();
            let (bias, norms) = (vector(&mut noise, all * head_dim), [(); 2].map(|()| vector(&mut noise, head_dim)));

            // What each sequence has: all its tokens go through `turn`, the old ones first.
            let mut sequences = vec![(Vec::new(), Vec::new()); case.parts.len() * kv_heads];
            let mut queries: Vec<Vec<f32>> = Vec::new();
            let scale = 1.0 / (head_dim as f32).sqrt();
            for new in [false, true] {
                let (mut positions, mut table_at, mut owners) = (Vec::new(), Vec::new(), Vec::new());
                for (n, (position, count)) in case.parts.iter().enumerate() {
                    let range = if new { *position..position + count } else { 0..*position };
                    for at in range {
                        positions.push(at as u32);
                        table_at.push(begins[n]);
                        owners.push(n);
                    }
                }
                let n = positions.len();
                let mut rows = noise.many(n * all * head_dim);
                let mut turns: Vec<[f32; 2]> = Vec::new();
                for position in &positions {
                    turns.extend((0..pairs).map(|i| {
                        let angle = *position as f32 * 100f32.powf(-(i as f32) / pairs as f32);
                        [1.1 * angle.cos(), 1.1 * angle.sin()]
                    }));
                }
                let qkv = device.put(&rows).unwrap();
                let (on_positions, on_at) = (device.put(&positions).unwrap(), device.put(&table_at).unwrap());
                let on_turns = device.put(turns.as_flattened()).unwrap();
                let tokens = Tokens {
                    arena: arena.view(),
                    positions: on_positions.view(),
                    table_at: on_at.view(),
                    tables: on_tables.view(),
                };
                let how = Turn {
                    bias: case.extras.then_some(&bias),
                    norms: case.extras.then(|| [&norms[0], &norms[1]]),
                    turns: on_turns.view(),
                    pairs,
                    kind: case.kind,
                    eps: EPS,
                };
                device.turn(&layout, LAYER, &tokens, heads, qkv.view(), &how).unwrap();
                // The same on the processor.
                let biases = device.get(bias.view()).unwrap();
                let weights = [0, 1].map(|n| device.get(norms[n].view()).unwrap());
                for (t, row) in rows.chunks_exact_mut(all * head_dim).enumerate() {
                    for (h, head) in row.chunks_exact_mut(head_dim).enumerate() {
                        if case.extras {
                            head.iter_mut().zip(&biases[h * head_dim..]).for_each(|(x, b)| *x += b);
                            if h < heads + kv_heads {
                                let x = head.to_vec();
                                reference::rms_norm(&x, &weights[usize::from(h >= heads)], EPS, head);
                            }
                        }
                        if h < heads + kv_heads {
                            reference::rope(case.kind, head, &turns[t * pairs..][..pairs]);
                        }
                        if h >= heads {
                            kept(kind, head);
                            let kv = &mut sequences[owners[t] * kv_heads + (h - heads) % kv_heads];
                            if h < heads + kv_heads { &mut kv.0 } else { &mut kv.1 }.push(head.to_vec());
                        } else if new {
                            queries.push(head.to_vec());
                        }
                    }
                }
                if !new {
                    continue;
                }
                // Every token alone, and those with neighbours together.
                let mut want = Vec::new();
                for (t, position) in positions.iter().enumerate() {
                    for h in 0..heads {
                        let (keys, values) = &sequences[owners[t] * kv_heads + h / (heads / kv_heads)];
                        let end = *position as usize + 1;
                        want.extend(attend(&queries[t * heads + h], &keys[..end], &values[..end], scale, case));
                    }
                }
                let scoring = Scoring { heads, scale, cap: case.cap, window: case.window };
                let out = device.buffer::<f32>(n * heads * head_dim).unwrap();
                let every: Vec<u32> = (0..n as u32).collect();
                let on_rows = device.put(&every).unwrap();
                let cuts = splits(*positions.iter().max().unwrap() as usize);
                let part = device.buffer::<f32>(part_len(n, heads, cuts, head_dim)).unwrap();
                device.write(part.view(), &vec![f32::NAN; part.len()]).unwrap();
                let from = (qkv.view(), &scoring);
                device.decode(&layout, LAYER, &tokens, on_rows.view(), from, cuts, part.view(), out.view()).unwrap();
                let error = apart(&device.get(out.view()).unwrap(), &want);
                println!("heads of {head_dim} over {kind}: alone {error:.1e}");
                // A byte of a key can be rounded the other way where our sums end in another bit.
                let most = if kind == KvType::F16 { 1e-4 } else { 2e-3 };
                assert!(error < most, "{kind} {head_dim}");

                let (mut first, mut counts, mut begin) = (Vec::new(), Vec::new(), 0);
                for (_, count) in case.parts {
                    for at in (0..*count).step_by(layout.tile()) {
                        first.push((begin + at) as u32);
                        counts.push((count - at).min(layout.tile()) as u32);
                    }
                    begin += count;
                }
                let (on_first, on_count) = (device.put(&first).unwrap(), device.put(&counts).unwrap());
                let tiles = Together { first: on_first.view(), count: on_count.view() };
                device.write(out.view(), &vec![f32::NAN; out.len()]).unwrap();
                device.prefill(&layout, LAYER, &tokens, &tiles, (qkv.view(), &scoring), out.view()).unwrap();
                let together = device.get(out.view()).unwrap();
                let error = apart(&together, &want);
                println!("heads of {head_dim} over {kind}: together {error:.1e}");
                assert!(error < 2e-3, "{kind} {head_dim}");
                // Cut otherwise, the same bits.
                let (cut, ones) = (device.put(&every).unwrap(), device.put(&vec![1u32; n]).unwrap());
                let tiles = Together { first: cut.view(), count: ones.view() };
                device.write(out.view(), &vec![f32::NAN; out.len()]).unwrap();
                device.prefill(&layout, LAYER, &tokens, &tiles, (qkv.view(), &scoring), out.view()).unwrap();
                assert!(device.get(out.view()).unwrap() == together, "{kind} {head_dim}: cut otherwise");
            }
        }
    }
}

#[test]
fn layouts_that_kernels_do_not_have_are_refused() {
    let good = PageLayout {
        kind: KvType::F16,
        layers: 2,
        kv_heads: 2,
        head_dim: 64,
        page_tokens: 4,
        page_bytes: 2 * 2 * 2 * 4 * 64 * 2,
    };
    good.check().unwrap();
    for bad in [
        PageLayout { kind: KvType::F32, ..good },
        PageLayout { head_dim: 72, ..good },
        PageLayout { head_dim: 272, ..good },
        PageLayout { page_bytes: good.page_bytes - 16, ..good },
        PageLayout { page_tokens: 0, ..good },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}
