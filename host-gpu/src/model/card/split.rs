//! A model that no card has room for, over several: each has some of its layers, and hands the residual stream on to the next.
//!
//! The engine is that of the first card. On each other card the model has memory for keys and values of its own, as many pages as the engine has, of
//! which each uses what belongs to its layers, and a stream of its own beside that card's engine. The residual stream goes through the
//! host's memory: a few hundred kilobytes a step, of which no driver needs to know that two cards are involved.

use super::{Begun, CardArena, OnCard, OnCardState, Wanted, step_bytes};
use crate::format::quantize::Quantize;
use crate::kv::KvType;
use crate::model::ModelSource;
use crate::model::config::Config;
use crate::model::forward::Part;
use crate::model::weights::Weights;
use crate::ops::cuda::upload::Follow;
use crate::ops::cuda::{CudaError, Device};
use crate::residency::{JoinError, Loading, Residency, Taken};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The card of another engine, which may have a part of a model.
#[derive(Clone)]
pub(crate) struct OtherCard {
    pub(crate) device: Device,
    /// Who gives its memory away.
    pub(crate) residency: Residency,
}

/// What a model may be split over, next to its engine's card.
#[derive(Clone)]
pub(crate) struct Split {
    pub(crate) others: Vec<OtherCard>,
    /// The engine's KV pages.
    pub(crate) pages: usize,
    pub(crate) page_bytes: usize,
    pub(crate) kv_type: KvType,
}

/// Some layers, and the card that is to have them.
pub(crate) struct Portion {
    layers: Range<usize>,
    /// Another card, and what was taken of its memory; `None` for the engine's own.
    other: Option<(Device, Taken)>,
}

/// The part of a model that another card has.
pub(super) struct NextCard {
    state: Mutex<OnCardState>,
    part: OnCard,
    /// Given back last, when the memory is.
    _taken: Taken,
}

impl NextCard {
    fn state(&self) -> MutexGuard<'_, OnCardState> {
        // A step that broke off left nothing that the next one looks at.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with a step, from the residual stream: (tokens, width).
    pub(super) fn begin(
        &self,
        c: &Config,
        parts: &[Part<'_>],
        of_logits: Wanted,
        stream: &[f32],
    ) -> Result<Begun, CudaError> {
        self.state().begin_with(c, &self.part, parts, (of_logits, Some(stream)))
    }

    /// Waits for the step, and copies what it gave to the beginning of `to`: what that is, and how many words.
    pub(super) fn end(&self, step: Begun, to: &mut [u8]) -> Result<(Wanted, usize), CudaError> {
        let mut state = self.state();
        state.end(&self.part, step)?;
        let slot = &state.slots[step.0];
        let bytes = slot.given * size_of::<u32>();
        let room = to.len();
        let to = to.get_mut(..bytes).ok_or_else(|| CudaError::Shape { what: format!("{bytes} bytes to {room}") })?;
        to.copy_from_slice(&slot.got.bytes()[..bytes]);
        Ok((slot.wanted, slot.given))
    }
}

impl Split {
    /// Takes memory for a model on the engine's card and as many others as it needs. `None` if all of them have not enough.
    ///
    /// # Errors
    /// `NoRoom` for a part where others' models are in use.
    pub(crate) fn reserve(
        &self,
        source: &ModelSource,
        (weights, c, to): (&Weights, &Config, Option<Quantize>),
        (step, more): ((usize, usize), u64),
        loading: &Loading<'_>,
    ) -> Result<Option<Vec<Portion>>, JoinError> {
        let buffers = step_bytes(c, step);
        let kv = (self.pages * self.page_bytes) as u64;
        let others = self.others.iter().map(|other| (other.residency.budget(), buffers + kv));
        let rooms: Vec<(u64, u64)> = std::iter::once((loading.budget(), buffers + more)).chain(others).collect();
        let need = |layers: Range<usize>| weights.part_bytes(layers, to);
        let Some(portions) = portions(weights.layers.len(), &rooms, &need) else { return Ok(None) };
        let mut taken = Vec::new();
        for (card, layers, bytes) in portions {
            let other = match card.checked_sub(1).map(|n| &self.others[n]) {
                None => {
                    loading.reserve(bytes)?;
                    None
                }
                Some(other) => Some((other.device.clone(), other.residency.take(source, bytes)?)),
            };
            taken.push(Portion { layers, other });
        }
        Ok(Some(taken))
    }

    /// Brings each portion to its card.
    ///
    /// # Errors
    /// Those of [`OnCard::load`].
    pub(crate) fn load(
        &self,
        device: &Device,
        w: &Weights,
        portions: Vec<Portion>,
        follow: Follow<'_>,
    ) -> Result<OnCard, CudaError> {
        let total = portions.iter().map(|portion| w.part_bytes(portion.layers.clone(), None)).sum();
        let (before, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let follow = |of_part, _| {
            done.fetch_max(before.load(Ordering::Relaxed) + of_part, Ordering::Relaxed);
            follow(done.load(Ordering::Relaxed).min(total), total)
        };
        let mut next = None;
        for Portion { layers, other } in portions.into_iter().rev() {
            let device = other.as_ref().map_or(device, |(device, _)| device);
            let mut part = OnCard::load_part(device, w, layers, None, &follow)?;
            before.store(done.load(Ordering::Relaxed), Ordering::Relaxed);
            part.next = next.take();
            let Some((device, taken)) = other else { return Ok(part) };
            let device = device.beside()?;
            let arena = CardArena::new(&device, self.pages, self.page_bytes)?;
            let state = Mutex::new(OnCardState::new(&device, arena, self.kv_type)?);
            next = Some(Box::new(NextCard { state, part, _taken: taken }));
        }
        Err(CudaError::Shape { what: "a model of which the engine's card has nothing".into() })
    }
}

/// Shares `layers` out over cards, each with its room and what it needs besides: as many as fit to the first, then to the next. Of each card
/// that has some its number, these, and what it needs in all.
fn portions(
    layers: usize,
    rooms: &[(u64, u64)],
    need: &dyn Fn(Range<usize>) -> u64,
) -> Option<Vec<(usize, Range<usize>, u64)>> {
    let (mut portions, mut start) = (Vec::new(), 0);
    for (card, (room, besides)) in rooms.iter().enumerate() {
        let fits = |end: &usize| need(start..*end) + besides <= *room;
        let end = (start + 1..=layers).take_while(fits).last().unwrap_or(start);
        // The engine's own card has the beginning.
        if end == start && card == 0 {
            return None;
        }
        if end > start {
            portions.push((card, start..end, need(start..end) + besides));
        }
        start = end;
        if start == layers {
            return Some(portions);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_go_to_the_first_cards_that_have_room() {
        // Ten for a layer; the beginning and the end are 15 and 25 more.
        let need = |layers: Range<usize>| {
            10 * layers.len() as u64 + if layers.start == 0 { 15 } else { 0 } + if layers.end == 6 { 25 } else { 0 }
        };
        let split = |rooms: &[(u64, u64)]| portions(6, rooms, &need);
        assert_eq!(split(&[(105, 5)]), Some(vec![(0, 0..6, 105)]));
        assert_eq!(split(&[(104, 5)]), None);
        assert_eq!(split(&[(60, 5), (60, 5)]), Some(vec![(0, 0..4, 60), (1, 4..6, 50)]));
        assert_eq!(split(&[(60, 5), (9, 5), (100, 0)]), Some(vec![(0, 0..4, 60), (2, 4..6, 45)]));
        assert_eq!(split(&[(60, 5), (44, 0)]), None, "the last layer comes with the end");
        assert_eq!(split(&[(29, 5), (500, 0)]), None, "the first card has to have the beginning");
        assert_eq!(
            split(&[(30, 5), (40, 0), (39, 5), (35, 0)]),
            Some(vec![(0, 0..1, 30), (1, 1..5, 40), (3, 5..6, 35)])
        );
    }
}
