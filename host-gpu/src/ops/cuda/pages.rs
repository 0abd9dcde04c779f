//! KV pages on the card, and attention over them: `kernels/pages.cuh`, `turn.cu`, `decode.cuh`, `prefill.cuh`.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::device::{CudaError, Device, int, shape};
use super::memory::{Buffer, View};
use crate::kv::KvType;
use crate::model::architecture::Pairs;

/// The longest head that kernels have.
pub const MOST_DIM: usize = 256;
/// Where a sequence is cut: `CHUNK` in decode.cuh.
const CHUNK: usize = 256;
/// Query heads that one block of decode.cuh has.
const GROUP: usize = 4;

/// How a model uses a page of the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// How numbers are stored.
    pub kind: KvType,
    /// Transformer layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Length of a key, and of a value.
    pub head_dim: usize,
    /// Tokens in a page.
    pub page_tokens: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
}

impl PageLayout {
    /// # Errors
    /// `Shape` for what kernels do not have.
    pub fn check(&self) -> Result<(), CudaError> {
        let Self { kind, head_dim, page_tokens, page_bytes, .. } = *self;
        if !matches!(kind, KvType::F16 | KvType::Q8_0) {
            return Err(shape(format!("keys and values as {kind}; choose f16 or q8_0")));
        }
        if head_dim > MOST_DIM || !head_dim.is_multiple_of(16) {
            return Err(shape(format!("heads of {head_dim}; multiples of 16 up to {MOST_DIM} can be done")));
        }
        if !page_bytes.is_multiple_of(16) || page_tokens == 0 || page_tokens >= 1 << 16 {
            return Err(shape(format!("pages of {page_bytes} bytes for {page_tokens} tokens")));
        }
        let used = self.numbers_at(self.layers) + self.layers * self.layer_scales();
        match used <= page_bytes {
            true => Ok(()),
            false => Err(shape(format!("{used} bytes of keys and values in a page of {page_bytes}"))),
        }
    }

    /// Where the numbers of a layer begin.
    fn numbers_at(&self, layer: usize) -> usize {
        let each = if self.kind == KvType::F16 { 2 } else { 1 };
        layer * self.kv_heads * 2 * self.page_tokens * self.head_dim * each
    }

    /// Bytes of a layer's scales.
    fn layer_scales(&self) -> usize {
        let blocks = if self.kind == KvType::F16 { 0 } else { self.head_dim.div_ceil(32) };
        self.kv_heads * 2 * self.page_tokens * blocks * 2
    }

    /// The first arguments of every kernel that finds tokens.
    fn arguments(&self, kv: &Tokens<'_>, layer: usize) -> Result<[Arg; 10], CudaError> {
        let scales_at = self.numbers_at(self.layers) + layer * self.layer_scales();
        let inverse = (1u64 << 40).div_ceil(self.page_tokens as u64);
        Ok([
            kv.arena.into(),
            kv.positions.into(),
            kv.table_at.into(),
            kv.tables.into(),
            (self.page_bytes as u64).into(),
            (self.numbers_at(layer) as u64).into(),
            (scales_at as u64).into(),
            inverse.into(),
            int(self.page_tokens)?.into(),
            int(self.head_dim)?.into(),
        ])
    }

    /// The kernels that any model needs over pages of `kind`: see [`Device::compile`].
    pub fn modules(kind: KvType) -> [&'static str; 6] {
        match kind {
            KvType::Q8_0 => ["rows", "draw", "turn", "decode_f16", "decode_q8_0", "prefill_q8_0"],
            _ => ["rows", "draw", "turn", "decode_f16", "decode_f16", "prefill_f16"],
        }
    }

    fn suffix(&self) -> &'static str {
        if self.kind == KvType::F16 { "f16" } else { "q8_0" }
    }

    /// The smallest head that kernels have and this fits in.
    fn dim(&self) -> usize {
        self.head_dim.next_power_of_two().max(64)
    }
}

/// The tokens of a batch: where each stands, and which pages it sees.
///
/// The caller has seen that each token's pages are in `tables` from `table_at` on, and in the arena, and that its position is in
/// one of them and below 2^24.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// All pages.
    pub arena: View<'a, u8>,
    /// (tokens)
    pub positions: View<'a, u32>,
    /// (tokens): where a token's pages begin in `tables`.
    pub table_at: View<'a, u32>,
    /// The pages of all sequences.
    pub tables: View<'a, u32>,
}

/// What happens to queries, keys and values before attention.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// ((heads + 2 * kv_heads) * head_dim)
    pub bias: Option<&'a Buffer<f32>>,
    /// (head_dim) of queries and of keys
    pub norms: Option<[&'a Buffer<f32>; 2]>,
    /// (tokens, pairs): cos and sin
    pub turns: View<'a, f32>,
    /// Numbers of a head that turn, halved.
    pub pairs: usize,
    /// Which turn together.
    pub kind: Pairs,
    /// For the norms.
    pub eps: f32,
}

/// How scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Query heads.
    pub heads: usize,
    /// Products are multiplied by this.
    pub scale: f32,
    /// Limits what that gives.
    pub cap: Option<f32>,
    /// How many of the last tokens count.
    pub window: Option<usize>,
}

/// Which tokens attend together.
#[derive(Clone, Copy, Debug)]
pub struct Together<'a> {
    /// The first of each tile of neighbouring tokens of a sequence.
    pub first: View<'a, u32>,
    /// How many it has, at most [`PageLayout::tile`].
    pub count: View<'a, u32>,
}

impl PageLayout {
    /// Tokens that attend together, at most.
    pub fn tile(&self) -> usize {
        if self.dim() == 256 { 32 } else { 64 }
    }
}

impl Device {
    /// Bias, norm and rotation of qkv (tokens, heads + 2 * kv_heads, head_dim); keys and values go to their pages.
    ///
    /// # Errors
    /// `Shape`
    pub fn turn(
        &self,
        layout: &PageLayout,
        layer: usize,
        tokens: &Tokens<'_>,
        heads: usize,
        qkv: View<'_, f32>,
        how: &Turn<'_>,
    ) -> Result<(), CudaError> {
        layout.check()?;
        let (n, all, dim) = (tokens.positions.len(), heads + 2 * layout.kv_heads, layout.head_dim);
        let norms_fit = how.norms.is_none_or(|norms| norms.iter().all(|norm| norm.len() == dim));
        let fits = how.bias.is_none_or(|bias| bias.len() == all * dim) && norms_fit && 2 * how.pairs <= dim;
        if !fits || layer >= layout.layers || qkv.len() < n * all * dim || how.turns.len() < n * 2 * how.pairs {
            return Err(shape(format!("{n} tokens with {all} heads of {dim} in {}", qkv.len())));
        }
        let norm = |n: usize| Arg::from(how.norms.map(|norms| norms[n].view()));
        let mut arguments = layout.arguments(tokens, layer)?.to_vec();
        arguments.extend([Arg::from(qkv), how.bias.map(Buffer::view).into(), norm(0), norm(1), how.turns.into()]);
        arguments.extend([int(n)?, int(heads)?, int(layout.kv_heads)?, int(how.pairs)?].map(Arg::from));
        arguments.extend([Arg::from(i32::from(how.kind == Pairs::Neighbours)), how.eps.into()]);
        let name = format!("turn_{}", layout.suffix());
        // SAFETY: in the order of `turn`; the checks bound every index but those of pages, which the caller has seen to.
        unsafe { self.launch(&name, [all.div_ceil(4), n, 1], 128, &arguments) }
    }

    /// Attention of the tokens that `rows` names, each alone: out (tokens, heads * head_dim). `part` is scratch: see
    /// [`part_len`]. `splits` is at least [`splits`] of the last position.
    ///
    /// # Errors
    /// `Shape`
    #[expect(clippy::too_many_arguments, reason = "an equation's")]
    pub fn decode(
        &self,
        layout: &PageLayout,
        layer: usize,
        tokens: &Tokens<'_>,
        rows: View<'_, u32>,
        (qkv, scoring): (View<'_, f32>, &Scoring),
        splits: usize,
        part: View<'_, f32>,
        out: View<'_, f32>,
    ) -> Result<(), CudaError> {
        let (stride, tail) = self.scoring(layout, layer, tokens, qkv, scoring, out)?;
        let (n, dim, heads) = (rows.len(), layout.head_dim, scoring.heads);
        if part.len() < part_len(n, heads, splits, dim) {
            return Err(shape(format!("{n} rows in {splits} cuts with {} places", part.len())));
        }
        let group = heads / layout.kv_heads;
        let each = if group == 1 { 1 } else { GROUP };
        let mut arguments = layout.arguments(tokens, layer)?.to_vec();
        arguments.extend([Arg::from(qkv), rows.into(), part.into(), int(stride)?.into()]);
        arguments.extend(tail);
        let name = format!("decode_d{}_g{each}_{}", layout.dim(), layout.suffix());
        let grid = [layout.kv_heads * group.div_ceil(each), splits, n];
        // SAFETY: in the order of HOB_DECODE_ARGS; `rows` are of this batch, and for pages see `Tokens`.
        unsafe { self.launch(&name, grid, 128, &arguments)? };
        let window = int(scoring.window.unwrap_or(0))?;
        let arguments: [Arg; 8] = [
            part.into(),
            rows.into(),
            tokens.positions.into(),
            out.into(),
            int(heads)?.into(),
            int(splits)?.into(),
            int(dim)?.into(),
            window.into(),
        ];
        // SAFETY: in the order of `decode_join`; the cuts of each row are those that `decode` made.
        unsafe { self.launch("decode_join", [heads, n, 1], 256, &arguments) }
    }

    /// Attention of neighbouring tokens: out (tokens, heads * head_dim).
    ///
    /// # Errors
    /// `Shape`
    pub fn prefill(
        &self,
        layout: &PageLayout,
        layer: usize,
        tokens: &Tokens<'_>,
        tiles: &Together<'_>,
        (qkv, scoring): (View<'_, f32>, &Scoring),
        out: View<'_, f32>,
    ) -> Result<(), CudaError> {
        let (stride, tail) = self.scoring(layout, layer, tokens, qkv, scoring, out)?;
        if tiles.first.len() != tiles.count.len() {
            return Err(shape("tiles without lengths".into()));
        }
        let mut arguments = layout.arguments(tokens, layer)?.to_vec();
        arguments.extend([Arg::from(qkv), tiles.first.into(), tiles.count.into(), out.into(), int(stride)?.into()]);
        arguments.extend(tail);
        let name = format!("prefill_d{}_{}", layout.dim(), layout.suffix());
        let grid = [tiles.first.len(), scoring.heads, 1];
        // SAFETY: in the order of HOB_PREFILL_ARGS; tiles are of this batch, and for pages see `Tokens`.
        unsafe { self.launch(&name, grid, 2 * layout.tile() as u32, &arguments) }
    }

    /// Checks what both kinds of attention take; the length of a row of `qkv`, and the last arguments.
    fn scoring(
        &self,
        layout: &PageLayout,
        layer: usize,
        tokens: &Tokens<'_>,
        qkv: View<'_, f32>,
        scoring: &Scoring,
        out: View<'_, f32>,
    ) -> Result<(usize, [Arg; 5]), CudaError> {
        layout.check()?;
        let Scoring { heads, scale, cap, window } = *scoring;
        let (n, dim) = (tokens.positions.len(), layout.head_dim);
        let stride = (heads + 2 * layout.kv_heads) * dim;
        let fits = layer < layout.layers && layout.kv_heads > 0 && heads.is_multiple_of(layout.kv_heads);
        if !fits || tokens.table_at.len() != n || qkv.len() < n * stride || out.len() < n * heads * dim {
            return Err(shape(format!("attention of {n} tokens with {heads} heads of {dim}")));
        }
        let window = int(window.unwrap_or(0))?;
        let tail = [int(heads)?.into(), int(layout.kv_heads)?.into(), window.into(), scale.into()];
        let [a, b, c, d]: [Arg; 4] = tail;
        Ok((stride, [a, b, c, d, cap.unwrap_or(0.0).into()]))
    }
}

/// How often the sequence of a token at `position` is cut, at most.
pub fn splits(position: usize) -> usize {
    position / CHUNK + 1
}

/// Floats of scratch that [`Device::decode`] takes.
pub fn part_len(rows: usize, heads: usize, splits: usize, head_dim: usize) -> usize {
    rows * heads * splits * (head_dim + 2)
}
