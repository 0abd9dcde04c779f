//! What a card must know of a step.

use super::{OnCard, OnCardState, grow};
use crate::kv::PageId;
use crate::model::config::Config;
use crate::model::forward::{Part, Slot, turns};
use crate::ops::cuda::CudaError;
use crate::ops::cuda::draw::{Draw, NOT_DRAWN};
use crate::ops::cuda::pages::{PageLayout, splits};
use std::ops::Range;
use std::sync::Arc;

/// Where in the words of a step each thing is.
pub(super) struct Plan {
    pub(super) ids: Range<usize>,
    /// Which rows of the step before draw these; as long, whether there are such or not.
    pub(super) from: Range<usize>,
    pub(super) positions: Range<usize>,
    pub(super) table_at: Range<usize>,
    pub(super) tables: Range<usize>,
    /// Tokens that attend alone.
    pub(super) rows: Range<usize>,
    /// Tiles of tokens that attend together.
    pub(super) first: Range<usize>,
    pub(super) count: Range<usize>,
    /// Tokens that need logits.
    pub(super) pick: Range<usize>,
    /// Tokens that give embeddings.
    pub(super) embeds: Range<usize>,
    /// How a token is drawn of each that needs logits.
    pub(super) draws: Range<usize>,
    pub(super) turns: Range<usize>,
    pub(super) local_turns: Range<usize>,
    /// Cuts of the longest sequence that attends alone, or a few more: a power of two, so that shapes repeat.
    pub(super) splits: usize,
}

impl OnCardState {
    /// Puts together what the card must know of the step that begins, and sends it.
    ///
    /// Here is the only place where numbers become addresses on the card: tokens, positions and pages are checked.
    pub(super) fn plan(
        &mut self,
        c: &Config,
        m: &OnCard,
        layout: &PageLayout,
        parts: &[Part<'_>],
        slots: &[Slot<'_>],
    ) -> Result<Plan, CudaError> {
        let wrong = |what: &str| CudaError::Shape { what: what.into() };
        let words = &mut self.words;
        words.clear();
        let mut ids: Vec<u32> = parts.iter().flat_map(|part| part.tokens).map(|token| token.0).collect();
        let mut from = vec![NOT_DRAWN; ids.len()];
        let mut end = 0;
        for part in parts {
            end += part.tokens.len();
            if let (Some(row), Some(last)) = (part.follows, end.checked_sub(1)) {
                if !self.drawn.as_ref().is_some_and(|(of, rows)| Arc::ptr_eq(of, &m.identity) && row < *rows) {
                    return Err(wrong("a token that no step before draws"));
                }
                (ids[last], from[last]) = (0, row);
            }
        }
        if ids.iter().any(|id| *id as usize >= c.vocab) {
            return Err(wrong("a token that is not in the vocabulary"));
        }
        let (mut table_at, mut tables, mut rows, mut first, mut count, mut pick) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut embeds = Vec::new();
        let (mut begin, mut most) = (0, 0);
        for part in parts {
            let (len, end) = (part.tokens.len(), part.position + part.tokens.len());
            let pages = end.div_ceil(layout.page_tokens);
            let inside = |page: &PageId| (*page as usize) < self.arena.owners.len();
            if len == 0 || end >= 1 << 24 || part.logits > len {
                return Err(wrong("a part of no tokens, or of too many"));
            }
            if part.pages.len() < pages || !part.pages[..pages].iter().all(inside) {
                return Err(wrong("a token without a page"));
            }
            for position in part.position..end {
                if position.is_multiple_of(layout.page_tokens) {
                    let page = part.pages[position / layout.page_tokens];
                    self.arena.claim(&self.device, page, part.account)?;
                }
            }
            table_at.extend(std::iter::repeat_n(tables.len() as u32, len));
            tables.extend(&part.pages[..pages]);
            if len == 1 {
                rows.push(begin as u32);
                most = most.max(part.position);
            } else {
                for at in (0..len).step_by(layout.tile()) {
                    first.push((begin + at) as u32);
                    count.push((len - at).min(layout.tile()) as u32);
                }
            }
            pick.extend((begin + len - part.logits..begin + len).map(|row| row as u32));
            begin += len;
            // What embeds needs no logits of the same token: a norm takes in the residual once.
            if part.embeds && part.logits == 0 {
                embeds.push(begin as u32 - 1);
            }
        }
        let mut add = |values: &mut dyn Iterator<Item = u32>| {
            let from = words.len();
            words.extend(values);
            let range = from..words.len();
            // Pairs of floats begin at eight bytes.
            words.resize(words.len().next_multiple_of(4), 0);
            range
        };
        let drawn = |part: &Part<'_>| std::iter::repeat_n(part.draw, part.logits);
        let draws: Vec<Draw> = parts.iter().flat_map(drawn).collect();
        let mut plan = Plan {
            ids: add(&mut ids.into_iter()),
            from: add(&mut from.into_iter()),
            positions: add(&mut slots.iter().map(|slot| slot.position as u32)),
            table_at: add(&mut table_at.into_iter()),
            tables: 0..0,
            rows: add(&mut rows.into_iter()),
            first: add(&mut first.into_iter()),
            count: add(&mut count.into_iter()),
            pick: add(&mut pick.into_iter()),
            embeds: add(&mut embeds.into_iter()),
            draws: add(&mut bytemuck::cast_slice(&draws).iter().copied()),
            turns: 0..0,
            local_turns: 0..0,
            splits: splits(most).next_power_of_two(),
        };
        turns(c, &c.rope, m.rope_factors.as_deref(), slots, &mut self.turns);
        plan.turns = add(&mut self.turns.as_flattened().iter().map(|x| x.to_bits()));
        if let Some(rope) = &c.local_rope {
            turns(c, rope, None, slots, &mut self.turns);
            plan.local_turns = add(&mut self.turns.as_flattened().iter().map(|x| x.to_bits()));
        }
        // Last, since their number differs between steps of the same shape.
        plan.tables = add(&mut tables.into_iter());
        self.send_words()?;
        Ok(plan)
    }

    /// Sends the words of the step that begins, from memory that is its own until it has ended.
    fn send_words(&mut self) -> Result<(), CudaError> {
        let (len, slot) = (self.words.len(), &mut self.slots[self.next]);
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        if bytes.len() > slot.words.len() {
            slot.words = self.device.pinned(bytes.len().next_power_of_two())?;
        }
        if len > self.buffers.words.len() {
            grow(&self.device, &mut self.buffers.words, len.next_power_of_two(), &mut self.graphs)?;
        }
        #[expect(unsafe_code, reason = "the card reads it later")]
        // SAFETY: what reads it was asked for before the end of the slot's last step, and is asked for now.
        let to = unsafe { slot.words.bytes_after(&slot.end)? };
        to[..bytes.len()].copy_from_slice(bytes);
        self.device.write(self.buffers.words.view(), bytemuck::cast_slice(&to[..bytes.len()]))
    }
}
