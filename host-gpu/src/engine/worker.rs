//! The engine thread: one loop that runs a step over a batch for each model that has work.
//!
//! Between steps it takes in what arrived, lets go of what nobody reads any more, and admits what
//! fits. A panic in a step ends the sequences of that step and nothing else.

use super::job::Job;
use super::{Counters, EngineConfig};
use crate::kv::Arena;
use crate::model::forward::{self, Buffers, Compute, Part};
use crate::schedule::{Item, ModelKey, Scheduler, SeqId};
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
    buffers: Buffers,
    scheduler: Scheduler,
    jobs: HashMap<SeqId, Job>,
    next: SeqId,
    inbox: mpsc::Receiver<Job>,
    counters: Arc<Counters>,
}

impl Worker {
    pub(super) fn new(
        config: &EngineConfig,
        compute: Compute,
        arena: Arena,
        pages: usize,
        inbox: Receiver<Job>,
        counters: Arc<Counters>,
    ) -> Self {
        let scheduler = Scheduler::new(pages, config.max_running, config.prefill_tokens);
        let (buffers, jobs) = (Buffers::default(), HashMap::new());
        Self { compute, arena, buffers, scheduler, jobs, next: 0, inbox, counters }
    }

    pub(super) fn run(mut self) {
        while self.receive() {
            self.let_go();
            let now = Instant::now();
            for id in self.scheduler.admit() {
                self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.admit(now);
                }
            }
            for model in self.scheduler.models() {
                self.step(model);
            }
            self.publish();
        }
    }

    /// Takes in what arrived; sleeps while there is nothing to do. `false` ends the engine.
    fn receive(&mut self) -> bool {
        if self.jobs.is_empty() {
            match self.inbox.recv() {
                Ok(job) => self.take(job),
                Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(job) => self.take(job),
                // Without handles, what runs still has readers.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn take(&mut self, job: Job) {
        self.next += 1;
        self.scheduler.submit(self.next, job.need());
        self.jobs.insert(self.next, job);
    }

    /// Drops the sequences whose reader is gone, wherever they are.
    fn let_go(&mut self) {
        let gone: Vec<SeqId> = self.jobs.iter().filter(|(_, job)| job.cancelled()).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: SeqId) -> Option<Job> {
        self.scheduler.remove(id);
        let job = self.jobs.remove(&id)?;
        match job.admitted {
            None => {
                self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            Some(at) => {
                let ms = at.elapsed().as_millis() as u64;
                let old = self.counters.sequence_ms.load(Ordering::Relaxed);
                self.counters.sequence_ms.store((old * 7 + ms) / 8, Ordering::Relaxed);
            }
        }
        Some(job)
    }

    /// One step of `model` over all its sequences.
    fn step(&mut self, model: ModelKey) {
        let items = self.scheduler.plan(model);
        let Some(loaded) = items.first().and_then(|i| self.jobs.get(&i.id)).map(|j| j.loaded.clone()) else {
            return;
        };
        let parts: Vec<Part<'_>> = items.iter().map(|item| part(&self.jobs, &self.scheduler, item)).collect();
        let (c, w) = (&loaded.config, &loaded.weights);
        let (compute, arena, buffers) = (&mut self.compute, &mut self.arena, &mut self.buffers);
        let run = AssertUnwindSafe(|| forward::step(c, w, compute, arena, &parts, buffers).len());
        let result = catch_unwind(run);
        drop(parts);
        if let Err(panic) = result {
            self.buffers = Buffers::default();
            self.fail(&items, panic.downcast_ref::<&str>().copied());
            return;
        }
        let buffers = std::mem::take(&mut self.buffers);
        self.finish_step(&items, buffers.logits(), c.vocab);
        self.buffers = buffers;
    }

    /// Hands each sequence what the step gave it.
    fn finish_step(&mut self, items: &[Item], logits: &[f32], vocab: usize) {
        let now = Instant::now();
        let mut rows = logits.chunks_exact(vocab);
        for item in items {
            self.scheduler.done(item);
            let Some(job) = self.jobs.get_mut(&item.id) else { continue };
            if item.position < job.need().prompt {
                job.prefilled(item.tokens, now);
                self.counters.prefilled.fetch_add(item.tokens as u64, Ordering::Relaxed);
            }
            if !item.gives_token {
                continue;
            }
            let row = rows.next().expect("a row for each item that gives a token");
            self.counters.generated.fetch_add(1, Ordering::Relaxed);
            let ends = job.choose(row, now);
            let ends = ends.or_else(|| (!self.scheduler.extend(item.id)).then_some(Finish::Length));
            if let Some(finish) = ends
                && let Some(job) = self.remove(item.id)
            {
                job.finish(finish);
            }
        }
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
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
        self.counters.free_pages.store(self.scheduler.free_pages(), Ordering::Relaxed);
    }
}

fn part<'a>(jobs: &'a HashMap<SeqId, Job>, scheduler: &'a Scheduler, item: &Item) -> Part<'a> {
    let job = &jobs[&item.id];
    Part {
        tokens: &job.tokens[item.position..item.position + item.tokens],
        position: item.position,
        pages: scheduler.pages(item.id),
        account: job.account,
        logits: usize::from(item.gives_token),
    }
}
