//! The engine thread: one loop that runs a step over a batch for each model that has work.
//!
//! Between steps it takes in what arrived, lets go of what nobody reads any more, sees that what
//! runs has pages, and admits what fits. A panic in a step ends the sequences of that step and nothing else.

use super::door::Door;
use super::job::Job;
use super::pace::{Paces, Respite, Work};
use super::{Arrival, Counters, EngineConfig};
use crate::ask::TokenId;
use crate::kv::Arena;
use crate::model::card::{Given, OnCard, OnCardState, Wanted};
use crate::model::forward::{self, Buffers, Compute, Part};
use crate::model::{encoder, step_of};
use crate::ops::cuda::CudaError;
use crate::ops::cuda::rows::LIST_WORDS;
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
    /// Tokens that were chosen, and when: their readers get them while a card computes the next ones.
    untold: HashMap<SeqId, (TokenId, Instant)>,
    /// Whether they did in this turn.
    told: bool,
    next: SeqId,
    inbox: mpsc::Receiver<Arrival>,
    counters: Arc<Counters>,
    door: Arc<Door>,
    huge_pages: bool,
    largest_step: (usize, usize),
}

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
        let (buffers, jobs, untold, told) = (Buffers::default(), HashMap::new(), HashMap::new(), false);
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
            untold,
            told,
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
            self.admit();
            self.note_held();
            self.told = false;
            let work: Vec<Work> = self.scheduler.loads().into_iter().collect();
            for ((model, _), allowance) in work.iter().zip(self.paces.allowances(&work)) {
                self.step(*model, allowance);
            }
            if !self.told {
                self.tell();
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
        if let Some((token, at)) = self.untold.remove(&id) {
            job.take(token, at);
        }
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
        for id in over {
            self.end(id, Some(Finish::Budget));
        }
    }

    /// One step of `model` over its sequences.
    fn step(&mut self, model: ModelKey, allowance: Allowance) {
        let items = self.scheduler.plan(model, allowance);
        let Some(loaded) = items.first().and_then(|i| self.jobs.get(&i.id)).map(|j| j.loaded.clone()) else {
            return;
        };
        let reserved = match &mut self.card {
            None => self
                .buffers
                .reserve(&loaded.config, step_of(&loaded.config, self.largest_step))
                .map_err(|error| error.to_string()),
            Some(card) => card.reserve(&loaded.config, self.largest_step).map_err(|error| error.to_string()),
        };
        if let Err(why) = reserved {
            return self.fail(&items, Some(&why));
        }
        let parts: Vec<Part<'_>> = items.iter().map(|item| part(&self.jobs, &self.scheduler, item)).collect();
        let (c, w) = (&loaded.config, &loaded.weights);
        let (compute, arena, buffers) = (&mut self.compute, &mut self.arena, &mut self.buffers);
        let job = |item: &Item| self.jobs.get(&item.id);
        let gives = |item: &&Item| item.gives_token && job(item).is_some_and(|job| !job.embeds);
        let giving: Vec<SeqId> = items.iter().filter(gives).map(|item| item.id).collect();
        let all = |is: fn(&Job) -> bool| items.iter().filter(gives).all(|item| job(item).is_none_or(is));
        let wanted = match () {
            () if all(Job::takes_likeliest) => Wanted::Likeliest,
            // Rows beyond a list are on the last card.
            () if all(Job::is_plain) && !loaded.card.as_ref().is_some_and(OnCard::is_split) => Wanted::Lists,
            () => Wanted::Logits,
        };
        let best = items.iter().filter(gives).try_fold(0, |most: usize, item| Some(most.max(job(item)?.best()?)));
        let (card, weights) = (&mut self.card, loaded.card.as_ref());
        let run = AssertUnwindSafe(|| match (card, weights) {
            (Some(card), Some(weights)) => card.begin(c, weights, &parts, wanted),
            _ if c.architecture.encoder => {
                encoder::step(c, w, compute, arena, &parts, buffers);
                Ok(())
            }
            _ => {
                forward::step(c, w, compute, arena, (&parts, best), buffers);
                Ok(())
            }
        });
        let started = Instant::now();
        let mut result = catch_unwind(run);
        drop(parts);
        if self.card.is_some() {
            self.tell();
        }
        if let (Ok(Ok(())), Some(card), Some(weights)) = (&result, &mut self.card, &loaded.card) {
            result = Ok(card.end(weights));
        }
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return self.fail_on_card(&items, &error),
            Err(panic) => {
                self.buffers = Buffers::default();
                return self.fail(&items, panic.downcast_ref::<&str>().copied());
            }
        }
        let (buffers, card) = (std::mem::take(&mut self.buffers), self.card.take());
        let given = card.as_ref().map_or(Given::Logits(buffers.logits()), OnCardState::given);
        let chosen = catch_unwind(AssertUnwindSafe(|| self.choose(&giving, (given, card.as_ref()), c.vocab)));
        let graph_steps = card.as_ref().map_or(0, OnCardState::graph_steps);
        self.counters.graph_steps.store(graph_steps, Ordering::Relaxed);
        self.counters.few_logits_steps.store(buffers.few_logits_steps(), Ordering::Relaxed);
        (self.buffers, self.card) = (buffers, card);
        let chosen = match chosen {
            Ok(Ok(chosen)) => chosen,
            Ok(Err(error)) => return self.fail_on_card(&items, &error),
            Err(_) => return self.fail(&items, Some("no token could be chosen")),
        };
        let decoding = items.iter().filter(|item| item.decodes).count();
        let prompts = items.iter().filter(|item| !item.decodes).map(|item| item.tokens).sum();
        // Choosing is part of it: with forms and penalties it can take as long as computing.
        let took = started.elapsed();
        self.paces.note(model, decoding, prompts, took);
        let tokens: usize = items.iter().map(|item| item.tokens).sum();
        for item in &items {
            if let Some(job) = self.jobs.get(&item.id) {
                job.computed(took.mul_f64(item.tokens as f64 / tokens as f64));
            }
        }
        self.finish_embeddings(&items, c.width);
        self.finish_step(&items, &giving.into_iter().zip(chosen).collect());
        self.first_token |= items.iter().any(|item| item.gives_token && !item.decodes);
        if self.huge_pages && items.iter().any(|item| item.gives_token) {
            loaded.settle();
        }
    }

    /// Ends the sequences that were to give embeddings, with the ones that the step gave.
    fn finish_embeddings(&mut self, items: &[Item], width: usize) {
        let now = Instant::now();
        let embeds = |item: &&Item| item.gives_token && self.jobs.get(&item.id).is_some_and(|job| job.embeds);
        let ended: Vec<&Item> = items.iter().filter(embeds).collect();
        let rows: Vec<Vec<f32>> = self.buffers.embeddings().chunks_exact(width.max(1)).map(unit).collect();
        for (item, row) in ended.into_iter().zip(rows) {
            if let Some(job) = self.jobs.get_mut(&item.id) {
                job.prefilled(item, now);
                self.counters.prefilled.fetch_add(item.tokens as u64, Ordering::Relaxed);
            }
            self.scheduler.done(item);
            if let Some(job) = self.remove(item.id) {
                job.embed(row);
            }
        }
    }

    /// Hands each sequence what the step gave it.
    fn finish_step(&mut self, items: &[Item], chosen: &HashMap<SeqId, Option<(TokenId, bool)>>) {
        let now = Instant::now();
        for item in items {
            self.scheduler.done(item);
            let Some(job) = self.jobs.get_mut(&item.id) else { continue };
            if !item.decodes {
                job.prefilled(item, now);
                self.counters.prefilled.fetch_add(item.tokens as u64, Ordering::Relaxed);
            }
            if !item.gives_token {
                continue;
            }
            let ends = match chosen.get(&item.id).copied().flatten() {
                None => Some(Finish::Budget),
                Some((token, last)) => {
                    self.counters.generated.fetch_add(1, Ordering::Relaxed);
                    let more = self.scheduler.push(item.id, token);
                    let over = (!more).then_some(Finish::Length).or(last.then_some(Finish::Budget));
                    // A first token is waited for, and after a last one there is no step.
                    if self.card.is_some() && item.decodes && over.is_none() && !job.is_end(token) {
                        self.untold.insert(item.id, (token, now));
                        continue;
                    }
                    job.take(token, now).or(over)
                }
            };
            self.end(item.id, ends);
        }
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Hands readers the tokens that were chosen before. Where the text says that it ends here, it does: what a step under way
    /// gives such a sequence is nobody's, and not counted.
    fn tell(&mut self) {
        self.told = true;
        for (id, (token, at)) in std::mem::take(&mut self.untold) {
            let ends = self.jobs.get_mut(&id).and_then(|job| job.take(token, at));
            self.end(id, ends);
        }
    }

    fn end(&mut self, id: SeqId, ends: Option<Finish>) {
        if let Some(finish) = ends
            && let Some(job) = self.remove(id)
        {
            job.finish(finish);
        }
    }

    /// The next token of each of `giving`, in order, and whether its budget says that this is the last one;
    /// `None` if that allows none. Vocabularies are large: threads share the work.
    ///
    /// # Errors
    /// What a card says that is asked for logits after all.
    fn choose(
        &mut self,
        giving: &[SeqId],
        (given, card): (Given<'_>, Option<&OnCardState>),
        vocab: usize,
    ) -> Result<Vec<Option<(TokenId, bool)>>, CudaError> {
        let rows: HashMap<SeqId, usize> = giving.iter().enumerate().map(|(row, id)| (*id, row)).collect();
        let mut jobs: Vec<(usize, &mut Job, Grant, Option<TokenId>)> = Vec::with_capacity(rows.len());
        for (id, job) in &mut self.jobs {
            let Some(row) = rows.get(id) else { continue };
            match job.grant() {
                Grant::Nothing => {}
                grant => jobs.push((*row, job, grant, None)),
            }
        }
        self.compute.pool.rows(&mut jobs, 1, |_, one| {
            let (row, job, _, token) = &mut one[0];
            *token = match given {
                Given::Logits(logits) => Some(job.choose(&logits[*row * vocab..][..vocab])),
                Given::Likeliest(ids) => Some(TokenId(ids[*row])),
                Given::Lists(lists) => job.choose_listed(&lists[*row * LIST_WORDS..][..LIST_WORDS]),
            };
        });
        let mut tokens = vec![None; rows.len()];
        for (row, job, grant, token) in jobs {
            let token = match (token, card) {
                (Some(token), _) => token,
                // Its list is not enough: what is drawn is far from the likeliest, or nearly everything is near.
                (None, Some(card)) => job.choose(&card.row(row, vocab)?),
                (None, None) => unreachable!("lists are a card's"),
            };
            tokens[row] = Some((token, grant == Grant::LastToken));
        }
        Ok(tokens)
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

fn part<'a>(jobs: &'a HashMap<SeqId, Job>, scheduler: &'a Scheduler, item: &Item) -> Part<'a> {
    let (tokens, pages) = scheduler.input(item);
    let job = &jobs[&item.id];
    let embeds = job.embeds && item.gives_token;
    let logits = usize::from(item.gives_token && !embeds);
    let (account, temperature) = (job.account, job.temperature());
    Part { tokens, position: item.position, pages, account, logits, temperature, embeds }
}

/// The same direction, of length 1; what has none stays as it is.
fn unit(x: &[f32]) -> Vec<f32> {
    let length = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let by = if length > 0.0 { length.recip() } else { 1.0 };
    x.iter().map(|x| (f64::from(*x) * by) as f32).collect()
}
