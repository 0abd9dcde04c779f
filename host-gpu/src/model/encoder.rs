//! One step of an encoder over a batch: BERT (arXiv 1810.04805), with what pools its tokens to one embedding a text.
//!
//! Texts come whole, since every token attends to all others of its text: there is nothing to generate, and no beginning to
//! share. What a step needs of keys and values is in pages like any other sequence's, for as long as the step takes.

use super::config::{Config, Pooling};
use super::forward::{self, Buffers, Compute, Part, Split, add};
use super::weights::{Out, Weights};
use crate::kv::{Arena, KvLayout};
use crate::ops::cpu::Cpu;
use crate::ops::cpu::matmul::Input;
use crate::ops::pool::Pool;

/// Processes `parts`, whole texts each; what comes of it is in [`Buffers::embeddings`].
pub(crate) fn step(
    c: &Config,
    w: &Weights,
    compute: &mut Compute,
    arena: &mut Arena,
    parts: &[Part<'_>],
    b: &mut Buffers,
) {
    let Compute { cpu, pool, kv_type } = compute;
    let cpu = *cpu;
    let kv = KvLayout::new(c.kv_shape(), *kv_type, arena.page_bytes());
    let slots = forward::flatten(parts);
    let blocks = forward::blocks(parts, Split::of(c, pool), true);
    let n = slots.len();
    forward::claim(parts, &kv, arena);
    b.x.resize(n * c.width, 0.0);
    b.qkv.resize(n * 3 * c.width, 0.0);
    b.attended.resize(n * c.width, 0.0);
    b.ff.resize(n * c.ff, 0.0);
    let m = |at| w.matrix(at);

    enter(c, w, (cpu, pool), parts, &mut b.x);
    for (number, layer) in w.layers.iter().enumerate() {
        // q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v
        let weights = [m(&layer.q), m(&layer.k), m(&layer.v)];
        let input = Input::new(cpu, pool, &b.x, c.width, &weights, &mut b.tiles);
        cpu.matmul(pool, &weights, &input, false, &mut b.qkv);
        if let Some(bias) = &layer.qkv_bias {
            pool.rows(&mut b.qkv, 3 * c.width, |_, row| add(bias, row));
        }
        forward::store(c, pool, arena, &kv, number, &slots, &b.qkv);

        // x = norm(x + W_o attention(q, k, v) + b_o)
        forward::attend(c, (cpu, pool), arena, &kv, number, None, &blocks, &b.qkv, &mut b.attended);
        let w_o = m(&layer.o.w);
        let input = Input::new(cpu, pool, &b.attended, c.width, &[w_o], &mut b.tiles);
        cpu.matmul(pool, &[w_o], &input, true, &mut b.x);
        norm(c, (cpu, pool), &layer.o, &mut b.x);

        // x = norm(x + W_down gelu(W_up x + b_up) + b_down)
        let w_up = m(&layer.up);
        let input = Input::new(cpu, pool, &b.x, c.width, &[w_up], &mut b.tiles);
        cpu.matmul(pool, &[w_up], &input, false, &mut b.ff);
        pool.rows(&mut b.ff, c.ff, |_, row| {
            if let Some(bias) = &layer.up_bias {
                add(bias, row);
            }
            cpu.gelu(row);
        });
        let w_down = m(&layer.down.w);
        let input = Input::new(cpu, pool, &b.ff, c.ff, &[w_down], &mut b.tiles);
        cpu.matmul(pool, &[w_down], &input, true, &mut b.x);
        norm(c, (cpu, pool), &layer.down, &mut b.x);
    }
    pool_texts(c, parts, b);
}

/// `x = norm(word + position + kind)`.
fn enter(c: &Config, w: &Weights, (cpu, pool): (Cpu, &mut Pool), parts: &[Part<'_>], x: &mut [f32]) {
    let entry = w.entry.as_ref().expect("an encoder's weights have an entry");
    let words = w.matrix(&w.embedding);
    let tokens: Vec<_> = parts.iter().flat_map(|part| (part.position..).zip(part.tokens)).collect();
    pool.rows(x, c.width, |n, row| {
        let (position, token) = tokens[n];
        cpu.decode(words, token.0 as usize, row);
        add(&entry.positions[position * c.width..][..c.width], row);
        add(&entry.kind, row);
        cpu.layer_norm(row, &entry.norm, &entry.norm_bias, c.norm_eps);
    });
}

/// `x = norm(x + bias)`, after what `out` gave was added.
fn norm(c: &Config, (cpu, pool): (Cpu, &mut Pool), out: &Out, x: &mut [f32]) {
    let (Some(weight), Some(shift)) = (&out.norm, &out.norm_bias) else { unreachable!("an encoder's norms shift") };
    pool.rows(x, c.width, |_, row| {
        if let Some(bias) = &out.bias {
            add(bias, row);
        }
        cpu.layer_norm(row, weight, shift, c.norm_eps);
    });
}

/// One row for each text.
fn pool_texts(c: &Config, parts: &[Part<'_>], b: &mut Buffers) {
    b.embeddings.clear();
    let mut begin = 0;
    for part in parts {
        let rows = &b.x[begin * c.width..][..part.tokens.len() * c.width];
        begin += part.tokens.len();
        let at = b.embeddings.len();
        match c.pooling {
            Pooling::First => b.embeddings.extend_from_slice(&rows[..c.width]),
            Pooling::Last => b.embeddings.extend_from_slice(&rows[rows.len() - c.width..]),
            Pooling::Mean => {
                b.embeddings.resize(at + c.width, 0.0);
                rows.chunks_exact(c.width).for_each(|row| add(row, &mut b.embeddings[at..]));
                // What divides all numbers of a row changes nothing: its length becomes 1.
            }
        }
    }
}
