//! The engine thread: one loop that runs a step over a batch for each model that has work.
//!
//! Between steps it takes in what arrived, lets go of what nobody reads any more, sees that what
//! runs has pages, and admits what fits. A panic in a step ends the sequences of that step and nothing else.
//!
//! A card need not wait for us between steps: where it draws the tokens itself, the next step begins with tokens that nobody here knows
//! yet, and what comes of the one before is looked at meanwhile. A sequence that turns out to have ended has a place in one step too many,
//! which is nobody's, and not counted.

use super::door::Door;
use super::job::Job;
use super::pace::{Paces, Respite, Work};
use super::{Arrival, Counters, EngineConfig};
use crate::ask::TokenId;
use crate::kv::Arena;
use crate::model::Loaded;
use crate::model::card::{Begun, Given, OnCardState, Wanted};
use crate::model::forward::{self, Buffers, Compute, Part, Through};
use crate::model::{encoder, step_of};
use crate::ops::cuda::CudaError;
use crate::ops::cuda::draw::Draw;
use crate::residency::Lease;
use crate::schedule::{Admitted, Allowance, Change, Item, ModelKey, Scheduler, SeqId};
use crate::terms::Grant;
use crate::tokens::Finish;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, mpsc};
use std::time::Instant;

pub(super) struct Worker {
    compute: Compute,
    arena: Arena,
    /// Where a card computes.
    card: Option<OnCardState>,
    buffers: Buffers,
    scheduler: Scheduler,
    paces: Paces,
    respite: Respite,
    /// Whether somebody got a first token in this turn.
    first_token: bool,
    jobs: HashMap<SeqId, Job>,
    /// The step that a card computes.
    flight: Option<Flight>,
    /// When the last step ended.
    ended: Instant,
    next: SeqId,
    inbox: mpsc::Receiver<Arrival>,
    counters: Arc<Counters>,
    door: Arc<Door>,
    huge_pages: bool,
    largest_step: (usize, usize),
}

/// A step that was begun.
struct Flight {
    model: ModelKey,
    loaded: Lease<Loaded>,
    items: Vec<Item>,
    /// The sequences that it gives tokens, in the order of its rows.
    giving: Vec<SeqId>,
    /// Those of them whose budget allows this token, and whether it allows no other.
    last: HashMap<SeqId, bool>,
    /// What the card knows it by.
    on_card: Option<Begun>,
    began: Instant,
    /// Whether the scheduler goes on from it.
    advanced: bool,
}

/// What stands for a token that a card draws, until it is known.
const UNKNOWN: TokenId = TokenId(u32::MAX);

impl Worker {
    pub(super) fn new(
        config: &EngineConfig,
        compute: Compute,
        (arena, card): (Arena, Option<OnCardState>),
        pages: usize,
        inbox: Receiver<Arrival>,
        counters: Arc<Counters>,
        door: Arc<Door>,
    ) -> Self {
        let (scheduler, paces) = (Scheduler::new(pages, config.max_running), Paces::new(config));
        let (buffers, jobs, flight, ended) = (Buffers::default(), HashMap::new(), None, Instant::now());
        let huge_pages = config.moves_weights();
        let largest_step = config.largest_step();
        let (next, respite, first_token) = (0, Respite::new(config), false);
        Self {
            compute,
            arena,
            card,
            buffers,
            scheduler,
            paces,
            respite,
            first_token,
            jobs,
            flight,
            ended,
            next,
            inbox,
            counters,
            door,
            huge_pages,
            largest_step,
        }
    }

    pub(super) fn run(mut self) {
        while self.receive() {
            self.let_go();
            self.advance();
            self.admit();
            self.note_held();
            let work: Vec<Work> = self.scheduler.loads().into_iter().collect();
            for ((model, _), allowance) in work.iter().zip(self.paces.allowances(&work)) {
                self.step(*model, allowance);
            }
            // No other was begun.
            if self.flight.as_ref().is_some_and(|flight| flight.advanced) {
                self.land();
            }
            self.arena.make_ready();
            self.publish();
            if std::mem::take(&mut self.first_token)
                && let Some(time) = self.respite.due(Instant::now())
            {
                std::thread::sleep(time);
            }
        }
    }

    /// Takes in what arrived; sleeps while there is nothing to do. `false` ends the engine.
    fn receive(&mut self) -> bool {
        if self.jobs.is_empty() {
            // All of its sequences are gone.
            self.land();
            match self.inbox.recv() {
                Ok(arrival) => self.take(arrival),
                Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(arrival) => self.take(arrival),
                // Without handles, what runs still has readers.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn take(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Asked(job, prompt) => {
                self.next += 1;
                self.scheduler.submit(self.next, job.need(), prompt);
                self.jobs.insert(self.next, *job);
            }
            Arrival::Gone(model) => {
                // An engine of which nobody has anything takes no more than one that has just begun.
                if self.scheduler.forget(model) && self.jobs.is_empty() {
                    self.arena.give_back();
                    self.buffers = Buffers::default();
                }
            }
        }
    }

    /// Drops the sequences whose reader is gone, wherever they are, and refuses those that wait for too long.
    fn let_go(&mut self) {
        let gone: Vec<SeqId> = self.jobs.iter().filter(|(_, job)| job.cancelled()).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id);
        }
        let now = Instant::now();
        let late: Vec<SeqId> = self.jobs.iter().filter(|(_, job)| job.is_late(now)).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(job) = self.remove(id) {
                let retry_after = self.door.wait(job.account, job.weight);
                job.refuse(retry_after);
            }
        }
    }

    fn remove(&mut self, id: SeqId) -> Option<Job> {
        let waited = self.scheduler.remove(id);
        let (mut job, now) = (self.jobs.remove(&id)?, Instant::now());
        job.never_admitted(now);
        job.hold(0, now);
        self.door.left(job.account, waited, job.admitted.map(|at| at.elapsed()));
        Some(job)
    }

    /// Sees that what runs has pages, if need be by preempting, and admits what fits then.
    fn admit(&mut self) {
        let preempted = self.scheduler.make_room().into_iter().map(Change::Preempted);
        let changes: Vec<Change> = preempted.chain(self.scheduler.admit()).collect();
        let now = Instant::now();
        for change in changes {
            let (Change::Preempted(id) | Change::Admitted(Admitted { id, .. })) = change;
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            match change {
                Change::Preempted(_) => {
                    self.counters.preemptions.fetch_add(1, Ordering::Relaxed);
                    job.between_layers = Vec::new();
                    self.door.preempted(job.account);
                }
                Change::Admitted(admitted) => {
                    self.counters.cached.fetch_add(admitted.found as u64, Ordering::Relaxed);
                    self.door.admitted(job.account);
                    job.admit(&admitted, now);
                }
            }
        }
    }

    /// Notes which KV each sequence holds now, and ends those that may not hold as much.
    fn note_held(&mut self) {
        let (now, page_bytes) = (Instant::now(), self.arena.page_bytes() as u64);
        let mut over = Vec::new();
        for (id, pages) in self.scheduler.held() {
            let held = self.jobs.get_mut(&id).map(|job| job.hold(pages as u64 * page_bytes, now));
            over.extend((held == Some(false)).then_some(id));
        }
        if !over.is_empty() {
            // They have the token that is under way.
            self.land();
        }
        for id in over {
            self.end(id, Some(Finish::Budget));
        }
    }

    /// One step of `model` over its sequences. Where a card draws their tokens, it is not waited for, but the one before it is.
    fn step(&mut self, model: ModelKey, allowance: Allowance) {
        let items = self.scheduler.plan(model, allowance);
        let Some(loaded) = items.first().and_then(|i| self.jobs.get(&i.id)).map(|j| j.loaded.clone()) else {
            return;
        };
        let largest = self.largest_step;
        if self.card.as_ref().is_some_and(|card| !card.has_room(&loaded.config, largest)) {
            self.land();
        }
        let reserved = match &mut self.card {
            None => {
                let largest = step_of(&loaded.config, largest);
                self.buffers.reserve(&loaded.config, largest).map_err(|error| error.to_string())
            }
            Some(card) => card.reserve(&loaded.config, largest).map_err(|error| error.to_string()),
        };
        if let Err(why) = reserved {
            return self.fail(&items, Some(&why));
        }
        let gives = |item: &&Item| item.gives_token && self.jobs.get(&item.id).is_some_and(|job| !job.embeds);
        let giving: Vec<SeqId> = items.iter().filter(gives).map(|item| item.id).collect();
        let (began, last) = (Instant::now(), HashMap::new());
        let mut flight = Flight { model, loaded, items, giving, last, on_card: None, began, advanced: false };
        let plain = |item: &Item| !item.gives_token || self.jobs.get(&item.id).is_some_and(Job::is_plain);
        let drawn = self.card.is_some() && flight.items.iter().all(plain);
        let begun = catch_unwind(AssertUnwindSafe(|| self.begin(&flight, drawn)));
        match begun {
            Ok(Ok(on_card)) => flight.on_card = on_card,
            // What the card knows of a step that did not begin is in the way of the one after it, not of the one before.
            Ok(Err(error)) => {
                self.land();
                return self.fail_on_card(&flight.items, &error);
            }
            Err(panic) => {
                self.land();
                self.buffers = Buffers::default();
                return self.fail(&flight.items, panic.downcast_ref::<&str>().copied());
            }
        }
        let prompts = flight.items.iter().any(|item| !item.decodes);
        self.paces.began(flight.model, prompts);
        self.counters.ahead_steps.fetch_add(self.flight.is_some().into(), Ordering::Relaxed);
        self.land();
        let goes_on = flight.loaded.card.as_ref().is_some_and(|weights| !weights.is_split());
        self.flight = Some(flight);
        if !drawn || !goes_on {
            self.land();
        }
    }

    /// Computes a step, or has a card begin with it.
    fn begin(&mut self, flight: &Flight, drawn: bool) -> Result<Option<Begun>, CudaError> {
        let Flight { loaded, items, giving, .. } = flight;
        // Where the host chooses, it takes the numbers of its draws then.
        let draws: HashMap<SeqId, Draw> = match drawn {
            true => giving.iter().filter_map(|id| Some((*id, self.jobs.get_mut(id)?.draw_on_card()))).collect(),
            false => HashMap::new(),
        };
        // At most one item has some layers only, the last.
        let partial = items.last().and_then(|item| Some((item.id, item.stretch?)));
        let job = partial.and_then(|(id, _)| self.jobs.get_mut(&id));
        let mut between = job.map(|job| std::mem::take(&mut job.between_layers)).unwrap_or_default();
        let before = self.flight.as_ref().map_or(&[][..], |flight| &flight.giving);
        let part = |item: &Item| {
            let (tokens, pages) = self.scheduler.input(item);
            let job = &self.jobs[&item.id];
            let embeds = job.embeds && item.gives_token;
            let unknown = tokens.last() == Some(&UNKNOWN);
            let follows = unknown.then(|| before.iter().position(|id| *id == item.id)).flatten();
            Part {
                tokens,
                position: item.position,
                pages,
                account: job.account,
                logits: usize::from(item.gives_token && !embeds),
                draw: draws.get(&item.id).copied().unwrap_or(Draw::LIKELIEST),
                follows: follows.map(|row| row as u32),
                embeds,
            }
        };
        let parts: Vec<Part<'_>> = items.iter().map(part).collect();
        let (c, w) = (&loaded.config, &loaded.weights);
        let (compute, arena, buffers) = (&mut self.compute, &mut self.arena, &mut self.buffers);
        match (&mut self.card, &loaded.card) {
            (Some(card), Some(weights)) => {
                let wanted = if drawn { Wanted::Drawn } else { Wanted::Logits };
                return card.begin(c, weights, &parts, wanted).map(Some);
            }
            _ if c.architecture.encoder => {
                encoder::step(c, w, compute, arena, &parts, buffers);
            }
            _ => {
                let best = |most: usize, id| Some(most.max(self.jobs.get(id)?.best()?));
                let best = giving.iter().try_fold(0, best);
                let through = partial.map(|(_, stretch)| Through { layers: stretch.from..stretch.to, x: &mut between });
                forward::step(c, w, compute, arena, (&parts, best, through), buffers);
            }
        }
        let goes_on = partial.filter(|(_, stretch)| !stretch.is_last());
        if let Some(job) = goes_on.and_then(|(id, _)| self.jobs.get_mut(&id)) {
            job.between_layers = between;
        }
        Ok(None)
    }

    /// Goes on as if the step under way had been made: what it gives is not known yet, but where it goes is.
    fn advance(&mut self) {
        let Some(mut flight) = self.flight.take_if(|flight| !flight.advanced) else { return };
        flight.advanced = true;
        for item in &flight.items {
            self.scheduler.done(item);
        }
        for id in &flight.giving {
            match self.jobs.get_mut(id).map(Job::grant) {
                None => {}
                Some(Grant::Nothing) => self.end(*id, Some(Finish::Budget)),
                Some(grant) => {
                    let last = grant == Grant::LastToken;
                    flight.last.insert(*id, last);
                    if !self.scheduler.push(*id, UNKNOWN) || last {
                        self.scheduler.close(*id);
                    }
                }
            }
        }
        self.flight = Some(flight);
    }

    /// Waits for the step under way, if there is one, and hands each sequence what it gave it.
    fn land(&mut self) {
        self.advance();
        let Some(flight) = self.flight.take() else { return };
        let chosen = match catch_unwind(AssertUnwindSafe(|| self.choose(&flight))) {
            Ok(Ok(chosen)) => chosen,
            Ok(Err(error)) => return self.fail_on_card(&flight.items, &error),
            Err(_) => return self.fail(&flight.items, Some("no token could be chosen")),
        };
        let Flight { model, loaded, items, began, .. } = &flight;
        let graph_steps = self.card.as_ref().map_or(0, OnCardState::graph_steps);
        self.counters.graph_steps.store(graph_steps, Ordering::Relaxed);
        self.counters.few_logits_steps.store(self.buffers.few_logits_steps(), Ordering::Relaxed);
        let decoding = items.iter().filter(|item| item.decodes).count();
        let prompts = items.iter().filter(|item| !item.decodes).map(Item::work).sum();
        // A card begins with a step when it has ended the one before. Choosing is part of it: with forms and penalties it can take
        // as long as computing.
        let took = self.ended.max(*began).elapsed();
        self.ended = Instant::now();
        self.paces.note(*model, decoding, prompts, took);
        let work: f64 = items.iter().map(Item::work).sum();
        for item in items {
            if let Some(job) = self.jobs.get(&item.id) {
                job.computed(took.mul_f64(item.work() / work));
            }
        }
        self.finish_embeddings(items, flight.on_card, loaded.config.width);
        self.finish_step(&flight, &chosen);
        self.first_token |= items.iter().any(|item| item.gives_token && !item.decodes);
        if self.huge_pages && items.iter().any(|item| item.gives_token) {
            loaded.settle();
        }
    }

    /// Ends the sequences that were to give embeddings, with the ones that the step gave.
    fn finish_embeddings(&mut self, items: &[Item], on_card: Option<Begun>, width: usize) {
        let now = Instant::now();
        let embeds = |item: &&Item| item.gives_token && self.jobs.get(&item.id).is_some_and(|job| job.embeds);
        let ended: Vec<&Item> = items.iter().filter(embeds).collect();
        if ended.is_empty() {
            return;
        }
        let all = match (&self.card, on_card) {
            (Some(card), Some(step)) => card.embeddings(step),
            _ => self.buffers.embeddings(),
        };
        let rows: Vec<Vec<f32>> = all.chunks_exact(width.max(1)).map(unit).collect();
        for (item, row) in ended.into_iter().zip(rows) {
            if let Some(job) = self.jobs.get_mut(&item.id) {
                job.prefilled(item, now);
                self.counters.prefilled.fetch_add(item.tokens as u64, Ordering::Relaxed);
            }
            if let Some(job) = self.remove(item.id) {
                job.embed(row);
            }
        }
    }

    /// Hands each sequence what the step gave it.
    fn finish_step(&mut self, flight: &Flight, chosen: &HashMap<SeqId, TokenId>) {
        let now = Instant::now();
        for item in &flight.items {
            let Some(job) = self.jobs.get_mut(&item.id) else { continue };
            if !item.decodes && item.completes() {
                job.prefilled(item, now);
                self.counters.prefilled.fetch_add(item.tokens as u64, Ordering::Relaxed);
            }
            let Some(token) = chosen.get(&item.id).filter(|_| item.gives_token) else { continue };
            self.counters.generated.fetch_add(1, Ordering::Relaxed);
            let more = self.scheduler.know(item.id, *token);
            let last = flight.last.get(&item.id) == Some(&true);
            let over = (!more).then_some(Finish::Length).or(last.then_some(Finish::Budget));
            let ends = job.take(*token, now).or(over);
            self.end(item.id, ends);
        }
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
        let stretched = flight.items.iter().any(|item| item.stretch.is_some());
        self.counters.stretched_steps.fetch_add(stretched.into(), Ordering::Relaxed);
    }

    fn end(&mut self, id: SeqId, ends: Option<Finish>) {
        if let Some(finish) = ends
            && let Some(job) = self.remove(id)
        {
            job.finish(finish);
        }
    }

    /// The next token of each sequence that a step gives one and that may have it. Vocabularies are large: threads share the work.
    ///
    /// # Errors
    /// What went wrong on a card.
    fn choose(&mut self, flight: &Flight) -> Result<HashMap<SeqId, TokenId>, CudaError> {
        let given = match (&mut self.card, &flight.loaded.card, flight.on_card) {
            (Some(card), Some(weights), Some(step)) => card.end(weights, step)?,
            _ => Given::Logits(self.buffers.logits()),
        };
        let rows = flight.giving.iter().zip(0..).filter(|(id, _)| flight.last.contains_key(id));
        let logits = match given {
            Given::Drawn(ids) => return Ok(rows.map(|(id, row): (_, usize)| (*id, TokenId(ids[row]))).collect()),
            Given::Logits(logits) => logits,
        };
        let (rows, vocab): (HashMap<SeqId, usize>, _) =
            (rows.map(|(id, row)| (*id, row)).collect(), flight.loaded.config.vocab);
        let jobs = self.jobs.iter_mut().filter_map(|(id, job)| Some((*id, *rows.get(id)?, job, UNKNOWN)));
        let mut jobs: Vec<(SeqId, usize, &mut Job, TokenId)> = jobs.collect();
        self.compute.pool.rows(&mut jobs, 1, |_, one| {
            let (_, row, job, token) = &mut one[0];
            *token = job.choose(&logits[*row * vocab..][..vocab]);
        });
        Ok(jobs.into_iter().map(|(id, _, _, token)| (id, token)).collect())
    }

    fn fail_on_card(&mut self, items: &[Item], error: &CudaError) {
        self.counters.lost.fetch_or(error.is_fatal(), Ordering::Relaxed);
        self.fail(items, Some(&error.to_string()));
    }

    fn fail(&mut self, items: &[Item], why: Option<&str>) {
        let why = why.unwrap_or("a kernel panicked");
        tracing::error!(sequences = items.len(), why, "a step failed");
        for item in items {
            if let Some(job) = self.remove(item.id) {
                job.fault(why);
            }
        }
    }

    fn publish(&self) {
        self.counters.running.store(self.scheduler.running(), Ordering::Relaxed);
        let (free, cached) = self.scheduler.free_pages();
        self.counters.free_pages.store(free, Ordering::Relaxed);
        self.counters.cached_pages.store(cached, Ordering::Relaxed);
    }
}

/// The same direction, of length 1; what has none stays as it is.
fn unit(x: &[f32]) -> Vec<f32> {
    let length = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let by = if length > 0.0 { length.recip() } else { 1.0 };
    x.iter().map(|x| (f64::from(*x) * by) as f32).collect()
}
