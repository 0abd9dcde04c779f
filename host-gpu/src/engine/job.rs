//! One sequence inside the engine: its tokens, its text, its reader.

use super::Submission;
use crate::ask::TokenId;
use crate::form::Guide;
use crate::kv::Realm;
use crate::model::Loaded;
use crate::model::tokenizer::Utf8;
use crate::ops::cuda::draw::Draw;
use crate::residency::Lease;
use crate::sampling::Sampler;
use crate::schedule::{Admitted, Item, Need, Share};
use crate::stop::StopFilter;
use crate::terms::{Billed, Grant, Held, Terms};
use crate::tokens::{Event, Finish, Timing, Usage, Writer};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

pub(super) struct Job {
    pub(super) loaded: Lease<Loaded>,
    pub(super) account: u64,
    scope: u64,
    pub(super) weight: u32,
    max_tokens: Option<usize>,
    /// Whether it is to give an embedding, and no token.
    pub(super) embeds: bool,
    prompt: usize,
    /// What came out of the last layer that was computed of a part of its prompt, if that was not the model's last.
    pub(super) between_layers: Vec<f32>,
    writer: Writer,
    sampler: Sampler,
    guide: Option<Guide>,
    utf8: Utf8,
    stop: StopFilter,
    ignore_end: bool,
    usage: Usage,
    timing: Timing,
    submitted: Instant,
    /// When it was admitted for the first time.
    pub(super) admitted: Option<Instant>,
    first: Option<Instant>,
    terms: Terms,
    held: Held,
    /// What of `usage` and `timing` is on the bill.
    billed: (Usage, Timing),
}

impl Job {
    /// The sequence but for its tokens, which the scheduler keeps.
    pub(super) fn new(s: Submission, writer: Writer, now: Instant) -> (Self, Vec<TokenId>) {
        let job = Self {
            prompt: s.prompt.len(),
            sampler: Sampler::new(&s.ask, &s.prompt, RandomState::new().hash_one(0u8)),
            loaded: s.loaded,
            guide: s.guide,
            account: s.ask.account,
            scope: s.scope,
            weight: s.terms.weight.max(1),
            max_tokens: s.ask.max_tokens.map(|max| max as usize),
            embeds: s.embeds,
            between_layers: Vec::new(),
            writer,
            utf8: Utf8::default(),
            stop: StopFilter::new(s.ask.stop),
            ignore_end: s.ask.ignore_end,
            usage: Usage::default(),
            timing: Timing::default(),
            submitted: now,
            admitted: None,
            first: None,
            terms: s.terms,
            held: Held::nothing(now),
            billed: Default::default(),
        };
        job.bill(Billed { sequences: 1, ..Billed::default() });
        (job, s.prompt)
    }

    pub(super) fn need(&self) -> Need {
        Need {
            realm: Realm { model: self.loaded.key, scope: self.scope, page_tokens: self.loaded.page_tokens },
            share: Share { account: self.account, weight: self.weight, priority: self.terms.priority },
            max_tokens: self.max_tokens,
            context: self.loaded.config.context,
            whole: self.loaded.config.architecture.encoder,
            // What a card computes is one graph.
            layers: if self.loaded.card.is_some() { 1 } else { self.loaded.config.layers },
        }
    }

    pub(super) fn cancelled(&self) -> bool {
        self.writer.cancelled()
    }

    /// Whether it should have left the queue by now, and never did.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.admitted.is_none() && self.terms.start_by.is_some_and(|by| by < now)
    }

    /// Notes that it was admitted. What a sequence finds when it comes back after a preemption was
    /// its own, and counts no second time.
    pub(super) fn admit(&mut self, admitted: &Admitted, now: Instant) {
        if self.admitted.is_some() {
            return;
        }
        self.admitted = Some(now);
        self.timing.queue = now - self.submitted;
        self.usage.cached_tokens = admitted.found as u32;
        self.usage.prompt_tokens = self.usage.cached_tokens;
        self.writer.push("", self.usage, self.timing);
        self.bill_progress();
        if let Some(budget) = &mut self.terms.budget {
            budget.begin();
        }
    }

    /// Bills the time that it waited, if it never left the queue.
    pub(super) fn never_admitted(&mut self, now: Instant) {
        if self.admitted.is_none() {
            self.timing.queue = now - self.submitted;
            self.bill_progress();
        }
    }

    /// Notes the KV that it holds from now on; says whether its budget allows that.
    pub(super) fn hold(&mut self, bytes: u64, now: Instant) -> bool {
        let (kv_byte_seconds, changed) = self.held.set(bytes, now);
        self.bill(Billed { kv_byte_seconds, ..Billed::default() });
        match &mut self.terms.budget {
            Some(budget) if changed => budget.hold(bytes),
            _ => true,
        }
    }

    /// Notes its share of a step's time.
    pub(super) fn computed(&self, device: Duration) {
        self.bill(Billed { device, ..Billed::default() });
    }

    /// Whether its budget allows a token.
    pub(super) fn grant(&mut self) -> Grant {
        self.terms.budget.as_mut().map_or(Grant::Token, |budget| budget.take())
    }

    fn bill(&self, more: Billed) {
        if let Some(bill) = &self.terms.bill {
            bill.add(&more);
        }
    }

    /// Bills what has come since the last time.
    fn bill_progress(&mut self) {
        let (usage, timing) = std::mem::replace(&mut self.billed, (self.usage, self.timing));
        self.bill(Billed {
            prompt_tokens: (self.usage.prompt_tokens - usage.prompt_tokens).into(),
            cached_tokens: (self.usage.cached_tokens - usage.cached_tokens).into(),
            generated_tokens: (self.usage.generated_tokens - usage.generated_tokens).into(),
            queue: self.timing.queue.saturating_sub(timing.queue),
            prefill: self.timing.prefill.saturating_sub(timing.prefill),
            decode: self.timing.decode.saturating_sub(timing.decode),
            ..Billed::default()
        });
    }

    /// Notes that `item`, some of the prompt, was processed, if it is for the first time.
    pub(super) fn prefilled(&mut self, item: &Item, now: Instant) {
        let until = self.prompt.min(item.position + item.tokens) as u32;
        if until > self.usage.prompt_tokens {
            self.usage.prompt_tokens = until;
            self.timing.prefill = self.admitted.map_or_else(Default::default, |at| now - at);
            self.writer.push("", self.usage, self.timing);
            self.bill_progress();
        }
    }

    /// How many of the largest logits are looked at, if not all.
    pub(super) fn best(&self) -> Option<usize> {
        self.sampler.best().filter(|_| self.guide.is_none())
    }

    /// Whether a card may choose in its place.
    pub(super) fn is_plain(&self) -> bool {
        !self.embeds && self.guide.is_none() && self.sampler.is_plain()
    }

    /// How a card is to choose the next token, in place of [`Self::choose`].
    pub(super) fn draw_on_card(&mut self) -> Draw {
        self.sampler.draw_on_card()
    }

    /// Chooses the next token, and reports its probability if that was asked for.
    pub(super) fn choose(&mut self, logits: &[f32]) -> TokenId {
        let id = self.sampler.choose_in(logits, self.guide.as_mut());
        if let Some(logprob) = self.sampler.logprob(logits, id) {
            self.writer.logprob(logprob);
        }
        id
    }

    /// Goes on with the token that was chosen; says how the sequence ends, if it does.
    pub(super) fn take(&mut self, id: TokenId, now: Instant) -> Option<Finish> {
        let first = *self.first.get_or_insert(now);
        self.timing.first_token = Some(first - self.submitted);
        self.timing.decode = now - first;
        self.usage.generated_tokens += 1;
        self.bill_progress();
        let complete = self.guide.as_mut().is_some_and(|guide| guide.take(id));
        let tokenizer = &self.loaded.tokenizer;
        let (text, stopped) = if tokenizer.is_end(id) {
            (String::new(), !self.ignore_end)
        } else if tokenizer.is_special(id) {
            (String::new(), false) // control tokens are no text
        } else {
            tokenizer.decode_to(id, self.utf8.buffer());
            self.stop.push(&self.utf8.take())
        };
        self.writer.push(&text, self.usage, self.timing);
        if stopped && !tokenizer.is_end(id) {
            self.utf8 = Utf8::default(); // what follows a stop text is not wanted
        }
        (stopped || complete).then_some(Finish::Stop)
    }

    /// Lets go of its bill and its budget: before its reader is told of the end, and may begin another on the same.
    fn settle(&mut self) {
        self.terms = Terms::default();
    }

    /// Ends it with the embedding of its prompt.
    pub(super) fn embed(mut self, embedding: Vec<f32>) {
        self.writer.embedding(embedding);
        self.settle();
        self.writer.end(Event::Finished(Finish::Stop));
    }

    /// Emits what was held back and ends the tokens.
    pub(super) fn finish(mut self, finish: Finish) {
        if let Some(why) = self.guide.as_ref().and_then(Guide::failed) {
            let why = format!("the form of an answer was lost: {why}");
            tracing::error!(why, "a sequence failed");
            return self.fault(&why);
        }
        let (mut text, stopped) = self.stop.push(&self.utf8.finish());
        if !stopped {
            text.push_str(&self.stop.finish());
        }
        self.writer.push(&text, self.usage, self.timing);
        self.settle();
        self.writer.end(Event::Finished(finish));
    }

    /// Ends it, having waited in vain.
    pub(super) fn refuse(mut self, retry_after: Duration) {
        self.settle();
        self.writer.end(Event::Busy { retry_after });
    }

    pub(super) fn fault(mut self, why: &str) {
        self.settle();
        self.writer.end(Event::Fault(why.into()));
    }
}
