//! Log-probabilities along a given text: what evaluation and golden tests compare.

use super::Loaded;
use super::card::{CardArena, Given, OnCard, OnCardState, Wanted};
use super::forward::{self, Buffers, Compute, Part};
use crate::ask::{Prompt, Refusal, TokenId};
use crate::kv::{Arena, KvType, PageId};
use crate::ops::cpu::Cpu;
use crate::ops::cuda::draw::Draw;
use crate::ops::cuda::{CudaError, Device};
use crate::ops::pool::Pool;

/// Log-probabilities: a row over the vocabulary for each token of the text.
#[derive(Clone, Debug)]
pub struct Scores {
    values: Vec<f32>,
    vocab: usize,
}

impl Scores {
    /// The log-probability of each token of the vocabulary as the one after token `n` of the text.
    ///
    /// # Panics
    /// If the text has no token `n`.
    pub fn after(&self, n: usize) -> &[f32] {
        &self.values[n * self.vocab..][..self.vocab]
    }
}

/// Pages of its own are this long; results do not depend on it.
const PAGE_TOKENS: usize = 16;

pub(super) fn score(
    loaded: &Loaded,
    cpu: Cpu,
    kv_type: KvType,
    threads: usize,
    tokens: &[TokenId],
    chunk: usize,
) -> Result<Scores, Refusal> {
    let c = &loaded.config;
    let tokens = checked(loaded, tokens)?;
    let failed = |e: std::io::Error| Refusal::Fault(e.to_string());
    let pages: Vec<PageId> = (0..tokens.len().div_ceil(PAGE_TOKENS) as PageId).collect();
    let mut arena = Arena::new(pages.len(), PAGE_TOKENS * c.kv_shape().token_bytes(kv_type)).map_err(failed)?;
    let mut compute = Compute { cpu, pool: Pool::new(threads).map_err(failed)?, kv_type };
    let (mut buffers, mut values) = (Buffers::default(), Vec::new());
    let mut position = 0;
    for tokens in tokens.chunks(chunk.max(1)) {
        let part = part(tokens, position, &pages);
        let w = &loaded.weights;
        let logits = forward::step(c, w, &mut compute, &mut arena, (&[part], None, None), &mut buffers);
        values.extend_from_slice(logits);
        position += tokens.len();
    }
    values.chunks_exact_mut(c.vocab).for_each(log_softmax);
    Ok(Scores { values, vocab: c.vocab })
}

/// The same on a card.
pub(super) fn score_on_card(
    loaded: &Loaded,
    (device, weights): (&Device, &OnCard),
    kv_type: KvType,
    tokens: &[TokenId],
    chunk: usize,
) -> Result<Scores, Refusal> {
    let c = &loaded.config;
    let tokens = checked(loaded, tokens)?;
    if weights.is_split() {
        return Err(Refusal::Invalid("a model on several cards is not scored; use one that fits on one".into()));
    }
    let failed = |e: CudaError| Refusal::Fault(e.to_string());
    let pages: Vec<PageId> = (0..tokens.len().div_ceil(PAGE_TOKENS) as PageId).collect();
    let page_bytes = PAGE_TOKENS * c.kv_shape().token_bytes(kv_type);
    let arena = CardArena::new(device, pages.len(), page_bytes).map_err(failed)?;
    let mut state = OnCardState::new(device, arena, kv_type).map_err(failed)?;
    let (mut values, mut position) = (Vec::new(), 0);
    for tokens in tokens.chunks(chunk.max(1)) {
        let part = part(tokens, position, &pages);
        let begun = state.begin(c, weights, &[part], Wanted::Logits);
        let given = begun.and_then(|step| state.end(weights, step)).map_err(failed)?;
        if let Given::Logits(logits) = given {
            values.extend_from_slice(logits);
        }
        position += tokens.len();
    }
    values.chunks_exact_mut(c.vocab).for_each(log_softmax);
    Ok(Scores { values, vocab: c.vocab })
}

/// Some tokens of nobody, all of whose logits are wanted.
fn part<'a>(tokens: &'a [TokenId], position: usize, pages: &'a [PageId]) -> Part<'a> {
    let (draw, logits) = (Draw::LIKELIEST, tokens.len());
    Part { tokens, position, pages, account: 0, logits, draw, follows: None, embeds: false }
}

/// Tokens that the model has, not too many.
fn checked(loaded: &Loaded, tokens: &[TokenId]) -> Result<Vec<TokenId>, Refusal> {
    let tokens = loaded.prompt_tokens(Prompt::Tokens(tokens.to_vec()))?;
    if tokens.is_empty() {
        return Err(Refusal::Invalid("there are no tokens; give at least one".into()));
    }
    let context = loaded.config.context;
    if tokens.len() > context {
        let needed = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        return Err(Refusal::TooLong { needed, available: context as u32 });
    }
    Ok(tokens)
}

fn log_softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|l| f64::from(l - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    row.iter_mut().for_each(|l| *l = (f64::from(*l) - shift) as f32);
}
