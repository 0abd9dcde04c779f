//! One step of the model over a batch: the equations in the order of the paper.
//!
//! A batch is some tokens of some sequences, flattened. Sequences meet in the matrix products
//! only, which treat each token alike; attention looks at each sequence's own pages.

use super::config::Config;
use super::weights::{MatrixAt, Weights};
use crate::ask::TokenId;
use crate::kv::{Arena, PageId};
use crate::ops::cpu::Cpu;
use crate::ops::cpu::attention::KvHead;
use crate::ops::cpu::matmul::Input;
use crate::ops::pool::Pool;
use std::cell::RefCell;

/// The next tokens of one sequence.
pub(crate) struct Part<'a> {
    /// What to process.
    pub(crate) tokens: &'a [TokenId],
    /// How many tokens are in `pages` already.
    pub(crate) position: usize,
    /// The sequence's pages; there is room for `tokens`.
    pub(crate) pages: &'a [PageId],
    /// Whose sequence it is.
    pub(crate) account: u64,
    /// How many of the last tokens need logits.
    pub(crate) logits: usize,
}

/// What computes: the code path and its threads.
pub(crate) struct Compute {
    pub(crate) cpu: Cpu,
    pub(crate) pool: Pool,
}

/// The buffers of a step, kept for the next one.
#[derive(Default)]
pub(crate) struct Buffers {
    /// (tokens, width): the residual stream
    x: Vec<f32>,
    /// (tokens, width): after a norm
    h: Vec<f32>,
    /// (tokens, (heads + 2 * kv_heads) * head_dim)
    qkv: Vec<f32>,
    /// (tokens, heads * head_dim)
    attended: Vec<f32>,
    /// (tokens, ff)
    ff: Vec<f32>,
    /// (tokens that need logits, vocab)
    logits: Vec<f32>,
    /// tiles of a product's input
    tiles: Vec<f32>,
    /// (tokens, rope_dims / 2): cos and sin
    turns: Vec<[f32; 2]>,
}

impl Buffers {
    /// What the last step gave.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// One token of the flattened batch.
struct Slot<'a> {
    position: usize,
    pages: &'a [PageId],
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Processes `parts`, writing their keys and values to `arena`. Gives (logits asked for, vocab),
/// in the order of the parts.
pub(crate) fn step<'b>(
    c: &Config,
    w: &Weights,
    compute: &mut Compute,
    arena: &mut Arena,
    parts: &[Part<'_>],
    b: &'b mut Buffers,
) -> &'b mut [f32] {
    let Compute { cpu, pool } = compute;
    let cpu = *cpu;
    let kv = KvLayout::new(c, arena.page_floats());
    let slots = flatten(parts);
    let n = slots.len();
    let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let qkv_width = q_width + 2 * kv_width;
    claim(parts, &kv, arena);
    turns(c, &slots, &mut b.turns);
    b.x.resize(n * c.width, 0.0);
    b.h.resize(n * c.width, 0.0);
    b.qkv.resize(n * qkv_width, 0.0);
    b.attended.resize(n * q_width, 0.0);
    b.ff.resize(n * c.ff, 0.0);
    let m = |at: &MatrixAt| w.matrix(at);

    // x = embedding[token]
    let tokens = parts.iter().flat_map(|p| p.tokens);
    for (token, x) in tokens.zip(b.x.chunks_exact_mut(c.width)) {
        cpu.decode(m(&w.embedding), token.0 as usize, x);
    }
    for (number, layer) in w.layers.iter().enumerate() {
        // q, k, v = W_q h, W_k h, W_v h  where  h = norm(x)
        norm(cpu, pool, &b.x, &layer.attn_norm, c.norm_eps, &mut b.h);
        let input = Input::new(cpu, pool, &b.h, c.width, &mut b.tiles);
        cpu.matmul(pool, &[m(&layer.q), m(&layer.k), m(&layer.v)], &input, false, &mut b.qkv);

        // q, k turn with their position; k, v go to the pages
        let pairs = c.rope_dims / 2;
        let all_turns = &b.turns;
        pool.rows(&mut b.qkv, qkv_width, |token, row| {
            let turns = &all_turns[token * pairs..][..pairs];
            for head in row[..q_width + kv_width].chunks_exact_mut(c.head_dim) {
                cpu.rope(head, turns);
            }
        });
        for (slot, row) in slots.iter().zip(b.qkv.chunks_exact(qkv_width)) {
            kv.write(arena, slot, number, &row[q_width..]);
        }

        // x += W_o attention(q, k, v)
        let (scale, group) = ((c.head_dim as f32).sqrt().recip(), c.heads / c.kv_heads * c.head_dim);
        let (qkv, arena_now) = (&b.qkv, &*arena);
        pool.rows(&mut b.attended, group, |n, out| {
            let (token, head) = (n / c.kv_heads, n % c.kv_heads);
            let q = &qkv[token * qkv_width + head * group..][..group];
            let view = kv.head(arena_now, &slots[token], number, head);
            SCORES.with_borrow_mut(|scores| cpu.attend(q, view, scale, scores, out));
        });
        let input = Input::new(cpu, pool, &b.attended, q_width, &mut b.tiles);
        cpu.matmul(pool, &[m(&layer.o)], &input, true, &mut b.x);

        // x += W_down (silu(W_gate h) * W_up h)  where  h = norm(x)
        norm(cpu, pool, &b.x, &layer.ff_norm, c.norm_eps, &mut b.h);
        let input = Input::new(cpu, pool, &b.h, c.width, &mut b.tiles);
        cpu.matmul_gated(pool, m(&layer.gate), m(&layer.up), &input, &mut b.ff);
        let input = Input::new(cpu, pool, &b.ff, c.ff, &mut b.tiles);
        cpu.matmul(pool, &[m(&layer.down)], &input, true, &mut b.x);
    }
    // logits = W_head norm(x), for the tokens that need them
    let wanted = gather(parts, &mut b.x, c.width);
    b.logits.resize(wanted * c.vocab, 0.0);
    if wanted > 0 {
        b.h.resize(wanted * c.width, 0.0);
        norm(cpu, pool, &b.x[..wanted * c.width], &w.final_norm, c.norm_eps, &mut b.h);
        let input = Input::new(cpu, pool, &b.h, c.width, &mut b.tiles);
        cpu.matmul(pool, &[m(&w.head)], &input, false, &mut b.logits);
    }
    &mut b.logits
}

fn flatten<'a>(parts: &[Part<'a>]) -> Vec<Slot<'a>> {
    let each = |p: &Part<'a>| {
        let (from, pages) = (p.position, p.pages);
        (from..from + p.tokens.len()).map(move |position| Slot { position, pages })
    };
    parts.iter().flat_map(each).collect()
}

/// Claims each page that is about to get its first token.
fn claim(parts: &[Part<'_>], kv: &KvLayout, arena: &mut Arena) {
    for part in parts {
        for position in part.position..part.position + part.tokens.len() {
            if position.is_multiple_of(kv.page_tokens) {
                arena.claim(part.pages[position / kv.page_tokens], part.account);
            }
        }
    }
}

/// (cos, sin) of `position * base^(-2i / rope_dims)` for pair `i` of each token.
fn turns(c: &Config, slots: &[Slot<'_>], out: &mut Vec<[f32; 2]>) {
    let pairs = c.rope_dims / 2;
    let rate = |i: usize| c.rope_base.powf(-2.0 * i as f64 / c.rope_dims as f64);
    let rates: Vec<f64> = (0..pairs).map(rate).collect();
    out.clear();
    for slot in slots {
        out.extend(rates.iter().map(|rate| {
            let (sin, cos) = (slot.position as f64 * rate).sin_cos();
            [cos as f32, sin as f32]
        }));
    }
}

fn norm(cpu: Cpu, pool: &mut Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    pool.rows(out, width, |row, out| cpu.rms_norm(&x[row * width..][..width], weight, eps, out));
}

/// Moves the rows that need logits to the front of `x`; says how many there are.
fn gather(parts: &[Part<'_>], x: &mut [f32], width: usize) -> usize {
    let (mut to, mut end) = (0, 0);
    for part in parts {
        end += part.tokens.len();
        for row in end - part.logits..end {
            x.copy_within(row * width..(row + 1) * width, to * width);
            to += 1;
        }
    }
    to
}

/// How a model uses a page: for each layer and KV head its keys (page_tokens, head_dim), then values.
#[derive(Clone, Copy)]
pub(crate) struct KvLayout {
    page_floats: usize,
    page_tokens: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvLayout {
    fn new(c: &Config, page_floats: usize) -> Self {
        let page_tokens = page_tokens(c, page_floats);
        Self { page_floats, page_tokens, kv_heads: c.kv_heads, head_dim: c.head_dim }
    }

    fn offset(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * 2 * self.page_tokens * self.head_dim
    }

    /// Stores the keys and values of a token: `kv` (2, kv_heads, head_dim).
    fn write(&self, arena: &mut Arena, slot: &Slot<'_>, layer: usize, kv: &[f32]) {
        let page = arena.page_mut(slot.pages[slot.position / self.page_tokens]);
        let place = slot.position % self.page_tokens * self.head_dim;
        let size = self.page_tokens * self.head_dim;
        let (keys, values) = kv.split_at(self.kv_heads * self.head_dim);
        let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let at = self.offset(layer, head) + place;
            page[at..][..self.head_dim].copy_from_slice(key);
            page[at + size..][..self.head_dim].copy_from_slice(value);
        }
    }

    /// What `slot` attends to: itself and all before it.
    fn head<'a>(&self, arena: &'a Arena, slot: &Slot<'a>, layer: usize, head: usize) -> KvHead<'a> {
        KvHead {
            arena: arena.floats(),
            pages: slot.pages,
            page_floats: self.page_floats,
            page_tokens: self.page_tokens,
            offset: self.offset(layer, head),
            head_dim: self.head_dim,
            tokens: slot.position + 1,
        }
    }
}

/// How many tokens of this model fit in a page.
pub(crate) fn page_tokens(c: &Config, page_floats: usize) -> usize {
    page_floats / c.kv_floats()
}
