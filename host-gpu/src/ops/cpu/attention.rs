//! Attention of one token's query heads over the KV pages of its sequence.

use super::lanes::{LANES, Lanes};
use super::vector::{dot, soft_cap, softmax};
use super::{Cpu, Task};
use std::ops::Range;

/// The keys and values of one layer and one KV head, spread over pages.
#[derive(Clone, Debug)]
pub struct KvHead<'a> {
    /// All pages of the engine, `page_floats` each.
    pub arena: &'a [f32],
    /// The sequence's pages in order.
    pub pages: &'a [u32],
    /// Floats in a page.
    pub page_floats: usize,
    /// Tokens in a page.
    pub page_tokens: usize,
    /// Where in a page this head begins: keys (page_tokens, head_dim), then values.
    pub offset: usize,
    /// Length of a key; a multiple of 16.
    pub head_dim: usize,
    /// Which tokens to attend to.
    pub tokens: Range<usize>,
}

impl<'a> KvHead<'a> {
    /// The keys and the values of each page, cut to the tokens in use.
    #[inline(always)]
    fn each_page(&self) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
        let Self { arena, pages, page_floats, page_tokens, offset, head_dim, .. } = *self;
        let (Range { start, end }, size) = (self.tokens.clone(), page_tokens * head_dim);
        let first = start / page_tokens;
        let in_use = &pages[first..end.div_ceil(page_tokens)];
        in_use.iter().zip(first..).map(move |(page, n)| {
            let from = start.saturating_sub(n * page_tokens) * head_dim;
            let to = (end - n * page_tokens).min(page_tokens) * head_dim;
            let head = &arena[*page as usize * page_floats + offset..][..2 * size];
            (&head[from..to], &head[size + from..size + to])
        })
    }
}

struct Attend<'a> {
    /// (group, head_dim)
    q: &'a [f32],
    kv: KvHead<'a>,
    scale: f32,
    cap: Option<f32>,
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

impl Task for Attend<'_> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const T: usize, const S: usize>(self) {
        let dim = self.kv.head_dim;
        for (q, out) in self.q.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            let mut scores = self.scores.iter_mut();
            for (keys, _) in self.kv.each_page() {
                for (key, score) in keys.chunks_exact(dim).zip(&mut scores) {
                    *score = dot::<L>(q, key) * self.scale;
                }
            }
            if let Some(cap) = self.cap {
                soft_cap::<L>(self.scores, cap);
            }
            softmax::<L>(self.scores);
            weigh_all::<L>(&self.kv, self.scores, out);
        }
    }
}

/// `out = sum over tokens of p[t] * v[t]`, the tokens in order.
#[inline(always)]
fn weigh_all<L: Lanes>(kv: &KvHead<'_>, p: &[f32], out: &mut [f32]) {
    let (vectors, _) = out.as_chunks_mut::<LANES>();
    let (fours, rest) = vectors.as_chunks_mut::<4>();
    let count = fours.len();
    for (n, four) in fours.iter_mut().enumerate() {
        weigh::<L, 4>(kv, p, n * 4, four);
    }
    for (n, one) in rest.iter_mut().enumerate() {
        weigh::<L, 1>(kv, p, count * 4 + n, std::array::from_mut(one));
    }
}

/// The same for `N` vectors of the head, from the `first`-th on, summed in registers.
#[inline(always)]
fn weigh<L: Lanes, const N: usize>(kv: &KvHead<'_>, p: &[f32], first: usize, out: &mut [[f32; LANES]; N]) {
    let mut sums = [L::splat(0.0); N];
    let mut p = p.iter();
    for (_, values) in kv.each_page() {
        for (value, p) in values.chunks_exact(kv.head_dim).zip(&mut p) {
            let p = L::splat(*p);
            let from = &value.as_chunks::<LANES>().0[first..first + N];
            for (sum, from) in sums.iter_mut().zip(from) {
                *sum = L::fma(p, L::load(from), *sum);
            }
        }
    }
    for (sum, out) in sums.iter().zip(out) {
        L::store(*sum, out);
    }
}

impl Cpu {
    /// `out[h] = softmax(cap * tanh(q[h] . k * scale / cap)) v` for the query heads that share one
    /// KV head; without a cap `softmax(q[h] . k * scale) v`.
    ///
    /// q, out (group, head_dim); `scores` is scratch.
    pub fn attend(
        self,
        q: &[f32],
        kv: KvHead<'_>,
        scale: f32,
        cap: Option<f32>,
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        assert!(q.len() == out.len() && q.len().is_multiple_of(kv.head_dim), "whole heads");
        assert!(kv.head_dim.is_multiple_of(LANES), "whole vectors");
        assert!(!kv.tokens.is_empty() && kv.tokens.end <= kv.pages.len() * kv.page_tokens, "tokens have pages");
        scores.resize(kv.tokens.len(), 0.0);
        self.run(Attend { q, kv, scale, cap, scores, out });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CodePath, reference};
    use super::*;

    #[test]
    fn pages_windows_and_paths_make_no_difference() {
        for (dim, page_tokens, tokens, window) in
            [(16, 3, 1, 1), (64, 5, 11, 100), (64, 5, 11, 4), (80, 4, 16, 8), (128, 7, 50, 50), (128, 7, 50, 23)]
        {
            let (group, offset) = (3, 32);
            let page_floats = offset + 2 * page_tokens * dim + 16;
            let pages: Vec<u32> = (0..usize::div_ceil(tokens, page_tokens) as u32).rev().collect();
            let arena: Vec<f32> =
                (0..pages.len() * page_floats).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
            let q: Vec<f32> = (0..group * dim).map(|i| ((i * 31) % 17) as f32 / 9.0 - 1.0).collect();
            // Token by token, where the layout says it is.
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for t in 0..tokens {
                let page = pages[t / page_tokens] as usize * page_floats + offset;
                let key = page + t % page_tokens * dim;
                keys.extend_from_slice(&arena[key..][..dim]);
                values.extend_from_slice(&arena[key + page_tokens * dim..][..dim]);
            }
            let in_window = tokens.saturating_sub(window)..tokens;
            let head = |tokens: Range<usize>| KvHead {
                arena: &arena,
                pages: &pages,
                page_floats,
                page_tokens,
                offset,
                head_dim: dim,
                tokens,
            };
            for cap in [None, Some(0.5)] {
                let mut want = vec![0.0; group * dim];
                let scoring = reference::Scoring { dim, scale: 0.125, cap, window };
                reference::attend(&q, &keys, &values, &scoring, &mut want);
                for path in [CodePath::Avx512Vnni, CodePath::Avx2, CodePath::Portable] {
                    let Some(cpu) = Cpu::new(Some(path)) else { continue };
                    let mut out = vec![0.0; group * dim];
                    cpu.attend(&q, head(in_window.clone()), 0.125, cap, &mut Vec::new(), &mut out);
                    for (a, b) in out.iter().zip(&want) {
                        assert!((a - b).abs() < 1e-5, "{path}: {a} {b}");
                    }
                }
            }
        }
    }
}
