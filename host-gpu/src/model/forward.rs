//! One step of the model over a batch: the equations in the order of the paper.
//!
//! A batch is some tokens of some sequences, flattened. Sequences meet in the matrix products
//! only, which treat each token alike; attention looks at each sequence's own pages.

use super::architecture::Gate;
use super::config::{Config, Rope};
use super::weights::{Out, Weights};
use crate::ask::TokenId;
use crate::kv::{Arena, KvLayout, KvType, PageId};
use crate::ops::cpu::Cpu;
use crate::ops::cpu::attention::{KvHead, Queries, Scoring, Scratch};
use crate::ops::cpu::matmul::{Best, Input, Matrix, Tiles};
use crate::ops::cuda::draw::Draw;
use crate::ops::pool::Pool;
use std::cell::RefCell;
use std::collections::TryReserveError;
use std::ops::Range;

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
    /// How a card draws from each of them.
    pub(crate) draw: Draw,
    /// The row of the step before that draws the last of `tokens`, if that is not known yet: see [`super::card::Wanted::Drawn`].
    pub(crate) follows: Option<u32>,
    /// Whether an embedding is wanted of the sequence, whose last tokens these are.
    pub(crate) embeds: bool,
}

/// The layers that the last part of a step goes through, if not all.
pub(crate) struct Through<'a> {
    pub(crate) layers: Range<usize>,
    /// (tokens of the part, width): what came out of the layer before, and what comes out of the last one of these.
    pub(crate) x: &'a mut Vec<f32>,
}

/// What computes: the code path and its threads.
pub(crate) struct Compute {
    pub(crate) cpu: Cpu,
    pub(crate) pool: Pool,
    pub(crate) kv_type: KvType,
}

/// The buffers of a step, kept for the next one.
#[derive(Default)]
pub(crate) struct Buffers {
    /// (tokens, width): the residual stream
    pub(super) x: Vec<f32>,
    /// (tokens, width): after a norm
    h: Vec<f32>,
    /// (tokens, (heads + 2 * kv_heads) * head_dim)
    pub(super) qkv: Vec<f32>,
    /// (tokens, heads * head_dim)
    pub(super) attended: Vec<f32>,
    /// (tokens, 2 * ff): gate and up, where they are not gated as they are computed
    gates: Vec<f32>,
    /// (tokens, ff)
    pub(super) ff: Vec<f32>,
    /// (tokens that need logits, vocab)
    logits: Vec<f32>,
    best: Best,
    /// (parts that embed, width)
    pub(super) embeddings: Vec<f32>,
    /// a product's input as the kernels take it
    pub(super) tiles: Tiles,
    /// (tokens, rope_dims / 2): cos and sin
    turns: Vec<[f32; 2]>,
    /// The same for layers that turn otherwise
    local_turns: Vec<[f32; 2]>,
}

impl Buffers {
    /// Room for steps of so many tokens, of which some give logits: steps then allocate nothing.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn reserve(&mut self, c: &Config, (tokens, logits): (usize, usize)) -> Result<(), TryReserveError> {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let gates = if c.architecture.gate == Gate::Silu { 0 } else { 2 * c.ff };
        for (buffer, width) in [
            (&mut self.x, c.width),
            (&mut self.h, c.width),
            (&mut self.qkv, q + 2 * kv),
            (&mut self.attended, q),
            (&mut self.gates, gates),
            (&mut self.ff, c.ff),
        ] {
            reserve(buffer, tokens * width)?;
        }
        reserve(&mut self.logits, logits * c.vocab)?;
        self.best.reserve(c.vocab, c.width)?;
        reserve(&mut self.turns, tokens * c.rope_dims / 2)
    }

    /// What the last step gave.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Steps so far for which a part of the head was enough.
    pub(crate) fn few_logits_steps(&self) -> u64 {
        self.best.done()
    }

    /// The embeddings that the last step gave: (parts that embed, width), in their order, of no particular length.
    pub(crate) fn embeddings(&self) -> &[f32] {
        &self.embeddings
    }
}

/// Room for `len` values in all.
fn reserve<T>(buffer: &mut Vec<T>, len: usize) -> Result<(), TryReserveError> {
    buffer.try_reserve_exact(len.saturating_sub(buffer.len()))
}

/// One token of the flattened batch.
pub(super) struct Slot<'a> {
    pub(super) position: usize,
    pages: &'a [PageId],
}

/// Tokens that attend together, at most: keys and values are read, and made floats, once for all of them, and their scores for a
/// block of tokens stay in the second cache.
const BLOCK_TOKENS: usize = 32;
/// Query heads of them that share a KV head, at most.
const BLOCK_ROWS: usize = 256;
/// Blocks of a part for each thread, at least, counted for each KV head: a few tokens far into their sequence are most
/// of a step's work, and it is to be spread.
const BLOCKS: usize = 3;
/// Keys and values of fewer tokens than this are stored sooner than another thread would have begun to.
const FEW_TOKENS: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Processes `parts`, writing their keys and values to `arena`. Gives (logits asked for, vocab),
/// in the order of the parts. If nobody will look at more than the `best` largest logits of each, others may be negative infinity.
/// The last part may go `through` some layers only; it gives nothing but for the last layer.
pub(crate) fn step<'b>(
    c: &Config,
    w: &Weights,
    compute: &mut Compute,
    arena: &mut Arena,
    (parts, best, mut through): (&[Part<'_>], Option<usize>, Option<Through<'_>>),
    b: &'b mut Buffers,
) -> &'b mut [f32] {
    let Compute { cpu, pool, kv_type } = compute;
    let cpu = *cpu;
    let kv = KvLayout::new(c.kv_shape(), *kv_type, arena.page_bytes());
    let slots = flatten(parts);
    let split = Split::of(c, pool);
    let all_blocks = blocks(parts, split, false);
    let n = slots.len();
    // The tokens that go through all layers, and their attention.
    let whole = match (&through, parts.split_last()) {
        (Some(_), Some((last, others))) => Some((n - last.tokens.len(), blocks(others, split, false))),
        _ => None,
    };
    let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let qkv_width = q_width + 2 * kv_width;
    claim(parts, &kv, arena);
    turns(c, &c.rope, w.rope_factors.as_deref(), &slots, &mut b.turns);
    if let Some(rope) = &c.local_rope {
        turns(c, rope, None, &slots, &mut b.local_turns);
    }
    b.x.resize(n * c.width, 0.0);
    b.h.resize(n * c.width, 0.0);
    b.qkv.resize(n * qkv_width, 0.0);
    b.attended.resize(n * q_width, 0.0);
    b.ff.resize(n * c.ff, 0.0);
    let m = |at| w.matrix(at);

    // x = embedding[token], scaled
    let tokens = parts.iter().flat_map(|p| p.tokens);
    for (token, x) in tokens.zip(b.x.chunks_exact_mut(c.width)) {
        cpu.decode(m(&w.embedding), token.0 as usize, x);
        if c.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= c.embedding_scale);
        }
    }
    if let (Some(through), Some((from, _))) = (&through, &whole)
        && through.layers.start > 0
    {
        b.x[from * c.width..].copy_from_slice(through.x);
    }
    for (number, layer) in w.layers.iter().enumerate() {
        let (n, blocks) = match (&through, &whole) {
            (Some(through), Some((n, blocks))) if !through.layers.contains(&number) => (*n, blocks),
            _ => (n, &all_blocks),
        };
        if n == 0 {
            continue;
        }
        let slots = &slots[..n];
        let (x, h) = (&mut b.x[..n * c.width], &mut b.h[..n * c.width]);
        let (qkv, attended) = (&mut b.qkv[..n * qkv_width], &mut b.attended[..n * q_width]);
        let ff = &mut b.ff[..n * c.ff];
        let window = c.window_of(number);
        // q, k, v = W_q h, W_k h, W_v h  where  h = norm(x)
        norm(cpu, pool, x, &layer.attn_norm, c.norm_eps, h);
        let weights = [m(&layer.q), m(&layer.k), m(&layer.v)];
        let input = Input::new(cpu, pool, h, c.width, &weights, &mut b.tiles);
        cpu.matmul(pool, &weights, &input, false, qkv);

        // q, k are normed and turn with their position; k, v go to the pages
        let pairs = c.rope_dims / 2;
        let all_turns = if window.is_some() && c.local_rope.is_some() { &b.local_turns } else { &b.turns };
        pool.rows(qkv, qkv_width, |token, row| {
            if let Some(bias) = &layer.qkv_bias {
                add(bias, row);
            }
            let turns = &all_turns[token * pairs..][..pairs];
            for (n, head) in row[..q_width + kv_width].chunks_exact_mut(c.head_dim).enumerate() {
                if let Some([q, k]) = &layer.head_norms {
                    cpu.rms_norm_in_place(head, if n < c.heads { q } else { k }, c.norm_eps);
                }
                cpu.rope(c.architecture.pairs, head, turns);
            }
        });
        store(c, pool, arena, &kv, number, slots, qkv);

        // x += W_o attention(q, k, v)
        attend(c, (cpu, pool), arena, &kv, number, window, blocks, qkv, attended);
        let w_o = m(&layer.o.w);
        let input = Input::new(cpu, pool, attended, q_width, &[w_o], &mut b.tiles);
        join(cpu, pool, (&layer.o, w_o), &input, c.norm_eps, h, x);

        // x += W_down (act(W_gate h) * W_up h)  where  h = norm(x)
        norm(cpu, pool, x, &layer.ff_norm, c.norm_eps, h);
        let gate = layer.gate.as_ref().expect("what generates has gates");
        let weights = [m(gate), m(&layer.up)];
        let input = Input::new(cpu, pool, h, c.width, &weights, &mut b.tiles);
        match c.architecture.gate {
            Gate::Silu => cpu.matmul_gated(pool, weights[0], weights[1], &input, ff),
            Gate::GeluTanh => {
                b.gates.resize(n * 2 * c.ff, 0.0);
                cpu.matmul(pool, &weights, &input, false, &mut b.gates);
                let gates = &b.gates;
                pool.rows(ff, c.ff, |token, out| {
                    let (gate, up) = gates[token * 2 * c.ff..][..2 * c.ff].split_at(c.ff);
                    cpu.gelu_tanh_mul(gate, up, out);
                });
            }
        }
        let w_down = m(&layer.down.w);
        let input = Input::new(cpu, pool, ff, c.ff, &[w_down], &mut b.tiles);
        join(cpu, pool, (&layer.down, w_down), &input, c.norm_eps, h, x);
    }
    if let (Some(through), Some((from, _))) = (&mut through, &whole)
        && through.layers.end < w.layers.len()
    {
        through.x.clear();
        through.x.extend_from_slice(&b.x[from * c.width..]);
    }
    embed(c, w, cpu, parts, b);
    // logits = W_head norm(x), for the tokens that need them
    let wanted = gather(parts, &mut b.x, c.width);
    b.logits.resize(wanted * c.vocab, 0.0);
    if wanted > 0 {
        b.h.resize(wanted * c.width, 0.0);
        norm(cpu, pool, &b.x[..wanted * c.width], &w.final_norm, c.norm_eps, &mut b.h);
        let head = m(&w.head);
        let prepare = if w.fine_head { Input::fine } else { Input::new };
        let input = prepare(cpu, pool, &b.h, c.width, &[head], &mut b.tiles);
        // A cap would make infinities numbers.
        let best = best.filter(|_| c.logit_cap.is_none());
        if !best.is_some_and(|most| cpu.best(pool, head, &input, most, &mut b.best, &mut b.logits)) {
            cpu.matmul(pool, &[head], &input, false, &mut b.logits);
        }
        if let Some(cap) = c.logit_cap {
            pool.rows(&mut b.logits, c.vocab, |_, row| cpu.soft_cap(row, cap));
        }
    }
    &mut b.logits
}

/// Writes keys and values of layer `number` to the pages.
pub(super) fn store(
    c: &Config,
    pool: &mut Pool,
    arena: &mut Arena,
    kv: &KvLayout,
    number: usize,
    slots: &[Slot<'_>],
    qkv: &[f32],
) {
    let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let (layer_range, side) = (kv.layer(number), kv.head().side_bytes());
    let chunk = if slots.len() < FEW_TOKENS { layer_range.len() } else { side };
    pool.columns_of(arena.pages_mut(), kv.page_bytes(), layer_range.clone(), chunk, |mut view| {
        let first = (view.range().start - layer_range.start) / side;
        for (slot, row) in slots.iter().zip(qkv.chunks_exact(q_width + 2 * kv_width)) {
            let (page, at) = (slot.position / kv.page_tokens(), slot.position % kv.page_tokens());
            for (n, side) in view.row(slot.pages[page] as usize).chunks_exact_mut(side).enumerate() {
                let (head, of) = ((first + n) / 2, (first + n) % 2);
                let x = &row[q_width + of * kv_width + head * c.head_dim..][..c.head_dim];
                match of {
                    0 => kv.head().write_key(side, at, x),
                    _ => kv.head().write_value(side, at, x),
                }
            }
        }
    });
}

/// `attended = attention(q, k, v)` in layer `number`.
#[expect(clippy::too_many_arguments, reason = "what a layer knows")]
pub(super) fn attend(
    c: &Config,
    (cpu, pool): (Cpu, &mut Pool),
    arena: &Arena,
    kv: &KvLayout,
    number: usize,
    window: Option<usize>,
    blocks: &Blocks<'_>,
    qkv: &[f32],
    attended: &mut [f32],
) {
    let (q_width, group) = (c.heads * c.head_dim, c.heads / c.kv_heads);
    let stride = q_width + 2 * c.kv_heads * c.head_dim;
    let (arena, scoring) = (arena.bytes(), Scoring { scale: c.score_scale, cap: c.score_cap });
    pool.tiles(attended, q_width, &blocks.rows, group * c.head_dim, |n, head, out| {
        let (Block { pages, position, until }, rows) = (blocks.blocks[n], &blocks.rows[n]);
        let q = &qkv[rows.start * stride + head * group * c.head_dim..];
        let queries = Queries { q, stride, group, position, tokens: rows.len(), window, until };
        let (offset, layout, page_bytes) = (kv.offset(number, head), kv.head(), kv.page_bytes());
        let kv = KvHead { arena, pages, page_bytes, offset, layout };
        SCRATCH.with_borrow_mut(|scratch| cpu.attend(queries, kv, scoring, scratch, out));
    });
}

/// The last token's state, normed as for the head, of each part that embeds.
fn embed(c: &Config, w: &Weights, cpu: Cpu, parts: &[Part<'_>], b: &mut Buffers) {
    b.embeddings.clear();
    let mut end = 0;
    for part in parts {
        end += part.tokens.len();
        if part.embeds {
            let at = b.embeddings.len();
            b.embeddings.resize(at + c.width, 0.0);
            let x = &b.x[(end - 1) * c.width..end * c.width];
            cpu.rms_norm(x, &w.final_norm, c.norm_eps, &mut b.embeddings[at..]);
        }
    }
}

pub(super) fn flatten<'a>(parts: &[Part<'a>]) -> Vec<Slot<'a>> {
    let each = |p: &Part<'a>| {
        let (from, pages) = (p.position, p.pages);
        (from..from + p.tokens.len()).map(move |position| Slot { position, pages })
    };
    parts.iter().flat_map(each).collect()
}

/// Neighbouring tokens of a sequence that attend together: where the first stands.
#[derive(Clone, Copy)]
struct Block<'a> {
    pages: &'a [PageId],
    position: usize,
    /// See [`Queries::until`].
    until: Option<usize>,
}

/// A batch in blocks of at most [`BLOCK_TOKENS`] and [`BLOCK_ROWS`], and which of its tokens each has.
pub(super) struct Blocks<'a> {
    blocks: Vec<Block<'a>>,
    rows: Vec<Range<usize>>,
}

/// What the work is split for.
#[derive(Clone, Copy)]
pub(super) struct Split {
    kv_heads: usize,
    group: usize,
    threads: usize,
}

impl Split {
    pub(super) fn of(c: &Config, pool: &Pool) -> Self {
        Self { kv_heads: c.kv_heads, group: c.heads / c.kv_heads, threads: pool.threads() }
    }
}

/// The batch in blocks. If `whole`, each token attends to all of its part.
pub(super) fn blocks<'a>(parts: &[Part<'a>], split: Split, whole: bool) -> Blocks<'a> {
    let (mut all, mut begin) = (Blocks { blocks: Vec::new(), rows: Vec::new() }, 0);
    for part in parts {
        let fair = part.tokens.len() * split.kv_heads / (BLOCKS * split.threads);
        let size = fair.min(BLOCK_TOKENS).min(BLOCK_ROWS / split.group).max(1);
        let until = whole.then_some(part.position + part.tokens.len());
        for first in (0..part.tokens.len()).step_by(size) {
            all.rows.push(begin + first..begin + part.tokens.len().min(first + size));
            all.blocks.push(Block { pages: part.pages, position: part.position + first, until });
        }
        begin += part.tokens.len();
    }
    all
}

/// Claims each page that is about to get its first token.
pub(super) fn claim(parts: &[Part<'_>], kv: &KvLayout, arena: &mut Arena) {
    for part in parts {
        for position in part.position..part.position + part.tokens.len() {
            if position.is_multiple_of(kv.page_tokens()) {
                arena.claim(part.pages[position / kv.page_tokens()], part.account);
            }
        }
    }
}

/// (cos, sin) of `position * base^(-2i / rope_dims)`, stretched, for pair `i` of each token.
pub(super) fn turns(c: &Config, rope: &Rope, factors: Option<&[f32]>, slots: &[Slot<'_>], out: &mut Vec<[f32; 2]>) {
    let pairs = c.rope_dims / 2;
    let factor = |i: usize| factors.map_or(1.0, |factors| f64::from(factors[i]));
    let rate = |i: usize| rope.base.powf(-2.0 * i as f64 / c.rope_dims as f64) / (rope.stretch * factor(i));
    let rates: Vec<f64> = (0..pairs).map(rate).collect();
    out.clear();
    for slot in slots {
        out.extend(rates.iter().map(|rate| {
            let (sin, cos) = (slot.position as f64 * rate).sin_cos();
            [(cos * rope.magnitude) as f32, (sin * rope.magnitude) as f32]
        }));
    }
}

/// `x += out(y)` for the rows of `y`; `h` is scratch.
fn join(
    cpu: Cpu,
    pool: &mut Pool,
    (out, w): (&Out, Matrix<'_>),
    y: &Input<'_>,
    eps: f32,
    h: &mut [f32],
    x: &mut [f32],
) {
    let width = w.rows;
    let to = if out.norm.is_some() { &mut *h } else { &mut *x };
    cpu.matmul(pool, &[w], y, out.norm.is_none(), to);
    if let Some(bias) = &out.bias {
        pool.rows(to, width, |_, row| add(bias, row));
    }
    if let Some(weight) = &out.norm {
        pool.rows(h, width, |_, row| cpu.rms_norm_in_place(row, weight, eps));
        pool.rows(x, width, |n, row| add(&h[n * width..][..width], row));
    }
}

/// `out += x`.
pub(super) fn add(x: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
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
