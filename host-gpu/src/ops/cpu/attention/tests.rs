use super::super::{CodePath, reference};
use super::*;
use crate::ops::pool::Pool;

/// Pages with random keys and values, and the same token by token.
struct Fixture {
    arena: Vec<u8>,
    pages: Vec<u32>,
    page_bytes: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    q: Vec<f32>,
    until: Option<usize>,
    group: usize,
}

const OFFSET: usize = 32;

fn fixture(layout: HeadLayout, tokens: usize, group: usize) -> Fixture {
    let dim = layout.head_dim;
    let page_bytes = OFFSET + 2 * layout.side_bytes() + 16;
    let pages: Vec<u32> = (0..tokens.div_ceil(layout.page_tokens) as u32).rev().collect();
    // Larger ones come later, so that the largest score of a block is often larger than those before it.
    let numbers = |seed: usize| -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + i / 997 * 13 + seed) % 1000) as f32 / 500.0 - 1.0;
        let growth = |t: usize| 0.5 + t as f32 / tokens as f32;
        (0..tokens * dim).map(|i| number(i) * growth(i / dim)).collect()
    };
    let (keys, values) = (numbers(0), numbers(77));
    // What was there before must not matter.
    let mut arena = vec![0xff; pages.len() * page_bytes + READ_BEYOND];
    for t in 0..tokens {
        let page = pages[t / layout.page_tokens] as usize * page_bytes + OFFSET;
        let (key, value) = (&keys[t * dim..][..dim], &values[t * dim..][..dim]);
        let (keys, values) = arena[page..][..2 * layout.side_bytes()].split_at_mut(layout.side_bytes());
        layout.write_key(keys, t % layout.page_tokens, key);
        layout.write_value(values, t % layout.page_tokens, value);
    }
    let q = (0..tokens * group * dim).map(|i| ((i * 31) % 17) as f32 / 9.0 - 1.0).collect();
    Fixture { arena, pages, page_bytes, keys, values, q, until: None, group }
}

/// Memory in which anything stands.
fn used() -> Scratch {
    Scratch {
        scores: vec![Scores([f32::NAN; STRIDE]); 50],
        q: vec![f32::NAN; 1000],
        sums: vec![f32::NAN; 1000],
        wide: vec![Vector([f32::NAN; LANES]); 700],
        seen: vec![Seen { max: f32::NAN, sum: f32::NAN }; 50],
    }
}

impl Fixture {
    /// The tokens from `from` on, `chunk` at a time.
    fn run(
        &self,
        cpu: Cpu,
        layout: HeadLayout,
        scoring: Scoring,
        w: Option<usize>,
        from: usize,
        chunk: usize,
    ) -> Vec<f32> {
        let (group, width) = (self.group, self.group * layout.head_dim);
        let (arena, pages, page_bytes) = (&self.arena[..], &self.pages[..], self.page_bytes);
        let kv = KvHead { arena, pages, page_bytes, offset: OFFSET, layout };
        let tokens = self.q.len() / width;
        let mut out = vec![0.0; (tokens - from) * width];
        for position in (from..tokens).step_by(chunk) {
            let count = chunk.min(tokens - position);
            let q = &self.q[position * width..];
            let queries = Queries { q, stride: width, group, position, tokens: count, window: w, until: self.until };
            let out = &mut out[(position - from) * width..][..count * width];
            Pool::new(1).unwrap().columns(out, width, width, |view| {
                cpu.attend(queries, kv, scoring, &mut used(), view);
            });
        }
        out
    }
}

#[test]
fn tokens_may_attend_to_those_behind_them() {
    let scoring = Scoring { scale: 0.125, cap: None };
    for (group, dim, page_tokens, tokens) in [(3, 16, 3, 1), (1, 32, 7, 20), (3, 64, 40, 70), (1, 32, 45, 600)] {
        for (kind, tolerance) in [(KvType::F32, 1e-5), (KvType::F16, 1e-3)] {
            let layout = HeadLayout { kind, page_tokens, head_dim: dim };
            let fixture = Fixture { until: Some(tokens), ..fixture(layout, tokens, group) };
            let mut want = vec![0.0; tokens * group * dim];
            for (q, out) in fixture.q.chunks_exact(group * dim).zip(want.chunks_exact_mut(group * dim)) {
                let scoring = reference::Scoring { dim, scale: 0.125, cap: None, window: tokens };
                reference::attend(q, &fixture.keys, &fixture.values, &scoring, out);
            }
            for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
                let whole = fixture.run(cpu, layout, scoring, None, 0, tokens);
                let close = whole.iter().zip(&want).all(|(a, b)| (a - b).abs() < tolerance);
                assert!(close, "{kind} {} {dim}", cpu.path());
                for chunk in [1, 8] {
                    assert!(fixture.run(cpu, layout, scoring, None, 0, chunk) == whole, "{kind} {}", cpu.path());
                }
            }
        }
    }
}

#[test]
fn scores_that_are_not_finite_spoil_no_others() {
    let layout = HeadLayout { kind: KvType::F32, page_tokens: 20, head_dim: 16 };
    let (tokens, scoring) = (1100, Scoring { scale: 0.125, cap: None });
    let mut fixture = fixture(layout, tokens, 1);
    fixture.q.fill(1.0);
    // In the first block all scores are negative infinity.
    for t in 0..BLOCK {
        let page = fixture.pages[t / 20] as usize * fixture.page_bytes + OFFSET;
        layout.write_key(&mut fixture.arena[page..][..layout.side_bytes()], t % 20, &[f32::NEG_INFINITY; 16]);
    }
    let mut want = vec![0.0; 16];
    let of_reference = reference::Scoring { dim: 16, scale: 0.125, cap: None, window: tokens - BLOCK };
    reference::attend(&fixture.q[..16], &fixture.keys, &fixture.values, &of_reference, &mut want);
    for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
        for chunk in [1, 32] {
            let got = fixture.run(cpu, layout, scoring, None, 0, chunk);
            assert!(got.iter().all(|x| x.is_finite()), "{}", cpu.path());
            let last = &got[(tokens - 1) * 16..];
            assert!(last.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{} {chunk}", cpu.path());
        }
    }
}

#[test]
fn pages_windows_chunks_types_and_paths_make_no_difference() {
    for (group, dim, page_tokens, tokens, window) in [
        (3, 16, 3, 1, 1),
        (3, 64, 5, 11, 100),
        (1, 64, 5, 11, 4),
        (5, 80, 40, 70, 8),
        (7, 128, 33, 90, 90),
        (4, 128, 7, 50, 23),
        (8, 16, 37, 300, 40),
        (8, 16, 1, 40, 100),
        (2, 16, 3, 40, 9),
        (4, 256, 20, 50, 30),
        (3, 512, 9, 20, 100),
        (3, 32, 45, 1100, 2000),
        (1, 48, 20, 700, 300),
    ] {
        for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let layout = HeadLayout { kind, page_tokens, head_dim: dim };
            let fixture = fixture(layout, tokens, group);
            for cap in [None, Some(0.5)] {
                let width = group * dim;
                let mut want = vec![0.0; tokens * width];
                for t in 0..tokens {
                    let scoring = reference::Scoring { dim, scale: 0.125, cap, window };
                    let kv = |all: &[f32]| all[..(t + 1) * dim].to_vec();
                    let (q, out) = (&fixture.q[t * width..][..width], &mut want[t * width..][..width]);
                    reference::attend(q, &kv(&fixture.keys), &kv(&fixture.values), &scoring, out);
                }
                for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
                    let scoring = Scoring { scale: 0.125, cap };
                    let whole = fixture.run(cpu, layout, scoring, Some(window), 0, tokens);
                    let tolerance = match kind {
                        KvType::F32 => 1e-5,
                        KvType::F16 => 1e-3,
                        KvType::Q8_0 => 2e-2,
                    };
                    for (a, b) in whole.iter().zip(&want) {
                        assert!((a - b).abs() < tolerance, "{kind} {} {dim}: {a} {b}", cpu.path());
                    }
                    for (from, chunk) in [(0, 1), (0, 3), (tokens / 2, 8), (tokens / 3, 32)] {
                        let parts = fixture.run(cpu, layout, scoring, Some(window), from, chunk);
                        assert!(parts == whole[from * width..], "{kind} {} chunks of {chunk}", cpu.path());
                    }
                }
            }
        }
    }
}
