//! One invocation: its id, its times, and the list of recent ones.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hob_gpu::{Bill, Event, Finish, Tokens, Usage};
use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::instance::Meter;
use crate::names::{FunctionName, ModelName};
use crate::telemetry::{Trace, Watched};
use crate::usage::{self, Tab};

/// The header of an answer that has its invocation's id.
pub const INVOCATION: HeaderName = HeaderName::from_static("x-hob-invocation");

/// One request's run through a function.
#[derive(Debug)]
pub struct Invocation {
    /// Unique while the host runs; also in the [`INVOCATION`] header and in every log line of the guest.
    pub id: String,
    /// The function.
    pub function: FunctionName,
    /// Whom its tokens are counted for.
    pub account: u64,
    /// When its request had been read.
    pub started: Instant,
    /// What its instance uses.
    pub meter: Arc<Meter>,
    marks: Mutex<Marks>,
    /// Its instance ended before its answer did.
    cut: AtomicBool,
    /// Where it is listed once it has ended; an instance that rests is no invocation.
    recent: Option<Arc<Recent>>,
    /// Where it is counted, and what it prints is kept.
    watched: Option<Arc<Watched>>,
    /// Its number in this process; a part of its id.
    pub(crate) number: u64,
    /// Tokens that its generations have taken of what one request may.
    pub(crate) taken: Arc<AtomicU64>,
    /// What it uses is on it, and will be billed.
    tab: Option<Arc<Tab>>,
    /// The trace it belongs to.
    pub trace: Option<Trace>,
}

/// How long the parts took, as far as they were reached.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Waiting for others of its function to end.
    pub wait: Duration,
    /// From the request to the start of the instance: finding the function, making the store.
    pub accept: Duration,
    /// Making the instance.
    pub instantiate: Duration,
    /// Joining models, loading them if they were absent.
    pub join: Duration,
    /// In the engine's queue.
    pub queue: Duration,
    /// Reading the prompt.
    pub prefill: Duration,
    /// From the request to the guest's first piece of text.
    pub first_token: Option<Duration>,
    /// Tokens of prompts, and tokens generated.
    pub tokens: (u32, u32),
    /// How it ended: `ok`, or a code of [`super::RequestError`].
    pub outcome: &'static str,
    /// The request's body got longer than the function takes.
    pub request_too_large: bool,
}

/// An invocation that has ended. Times in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// The function.
    pub function: FunctionName,
    /// How it ended.
    pub outcome: String,
    /// See [`Marks::wait`].
    #[serde(default)]
    pub wait_us: u64,
    /// See [`Marks::accept`].
    pub accept_us: u64,
    /// See [`Marks::instantiate`].
    pub instantiate_us: u64,
    /// See [`Marks::join`].
    pub join_us: u64,
    /// See [`Marks::queue`].
    pub queue_us: u64,
    /// See [`Marks::prefill`].
    pub prefill_us: u64,
    /// See [`Marks::first_token`].
    pub first_token_us: Option<u64>,
    /// From the request to the end of the instance.
    pub total_us: u64,
    /// Time for which the guest computed.
    #[serde(default)]
    pub cpu_us: u64,
    /// Its linear memory at its most.
    #[serde(default)]
    pub memory_peak_bytes: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
}

impl Invocation {
    /// Begins one now.
    #[inline]
    pub fn start(function: FunctionName, account: u64, started: Instant, recent: Arc<Recent>) -> Self {
        let number = recent.next.fetch_add(1, Ordering::Relaxed);
        let id = invocation_id(recent.start, number);
        let mut invocation = Self::new(id, function, account, started, Some(recent));
        invocation.number = number;
        invocation
    }

    /// What an instance that rests between two invocations of `function` belongs to.
    pub fn none(function: FunctionName) -> Self {
        Self::new("idle".into(), function, 0, Instant::now(), None)
    }

    /// The same, counted, and what it prints kept.
    #[inline]
    pub fn watched(mut self, watched: Arc<Watched>) -> Self {
        self.watched = Some(watched);
        self
    }

    /// The same, as a part of a trace.
    #[inline]
    pub fn traced(mut self, trace: Option<Trace>) -> Self {
        self.trace = trace;
        self
    }

    /// The same, with what it uses on a tab.
    #[inline]
    pub fn billed(mut self, tab: Arc<Tab>) -> Self {
        self.tab = Some(tab);
        self
    }

    /// Where sequences of `model` are billed, if this is.
    pub fn bill(&self, model: &ModelName) -> Option<Arc<Bill>> {
        self.tab.as_ref().map(|tab| tab.bill(model))
    }

    /// Bytes of its request's body have come.
    pub fn received(&self, bytes: usize) {
        self.tab.iter().for_each(|tab| tab.received(bytes));
    }

    /// Bytes of its answer's body have gone.
    pub fn sent(&self, bytes: usize) {
        self.tab.iter().for_each(|tab| tab.sent(bytes));
    }

    /// Keeps a line for who reads its function's log. `stream` is `stdout`, `stderr`, `log` or, said by the host, `host`.
    pub fn print(&self, stream: &'static str, text: impl Into<String>) {
        if let Some(watched) = &self.watched {
            watched.log.push(&self.id, stream, text.into());
        }
    }

    #[inline]
    fn new(id: String, function: FunctionName, account: u64, started: Instant, recent: Option<Arc<Recent>>) -> Self {
        let meter = Arc::new(Meter::new(started));
        let (marks, cut) = (Mutex::default(), AtomicBool::new(false));
        let (number, watched, taken, tab, trace) = Default::default();
        Self { id, function, account, started, meter, marks, cut, recent, watched, number, taken, tab, trace }
    }

    /// Notes that its instance ended before its answer did: what has come of the answer is not the whole.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Whether that was noted.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Notes something about it.
    pub fn mark(&self, note: impl FnOnce(&mut Marks)) {
        note(&mut self.marks.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes when the first text of a generation came.
    pub fn saw(&self, event: &Event, tokens: &Tokens) {
        if let Event::Finished(Finish::Budget) = event {
            self.print("host", "a generation has ended, since its budget is used up");
        }
        let Event::Text(_) = event else { return };
        self.mark(|marks| {
            if marks.first_token.is_none() {
                let timing = tokens.timing();
                marks.queue = timing.queue;
                marks.prefill = timing.prefill;
                marks.first_token = Some(self.started.elapsed());
            }
        });
    }

    /// Notes what became of a generation, once it is over, however that came.
    pub fn over(&self, tokens: &Tokens) {
        self.used(tokens.usage());
        if let Some(watched) = &self.watched {
            watched.serving.see(tokens.timing(), tokens.usage(), tokens.finish());
        }
    }

    /// Notes what a generation has used, once it is over, however that came.
    pub fn used(&self, usage: Usage) {
        self.mark(|marks| {
            marks.tokens.0 += usage.prompt_tokens;
            marks.tokens.1 += usage.generated_tokens;
        });
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        let Some(recent) = self.recent.take() else { return };
        let total = self.started.elapsed();
        let marks = std::mem::take(self.marks.get_mut().unwrap_or_else(PoisonError::into_inner));
        let outcome = match marks.outcome {
            "" if recent.stopping.load(Ordering::Relaxed) => "shutdown",
            "" => "client-left",
            known => known,
        };
        let (cpu, memory_peak) = (self.meter.cpu(), self.meter.memory_peak());
        if let Some(tab) = &self.tab {
            tab.close(usage::End { outcome, wall: total, queue: marks.wait });
        }
        if let Some(watched) = &self.watched {
            watched.metrics.ended(outcome, &marks, total, cpu, memory_peak);
        }
        if let Some(trace) = &self.trace {
            trace.end(&self.id, self.function.as_str(), outcome, &marks, total);
        }
        tracing::debug!(function = %self.function, id = %self.id, outcome, total_us = us(total), "invocation ended");
        let function = self.function.clone();
        recent.push(Ended { number: self.number, function, marks, outcome, total, cpu, memory_peak });
    }
}

/// What is kept of an invocation that has ended: small, and most of it is never looked at.
#[derive(Debug)]
struct Ended {
    number: u64,
    function: FunctionName,
    marks: Marks,
    outcome: &'static str,
    total: Duration,
    cpu: Duration,
    memory_peak: u64,
}

impl Ended {
    fn summary(&self, start: u32) -> Summary {
        let marks = &self.marks;
        Summary {
            id: invocation_id(start, self.number),
            function: self.function.clone(),
            outcome: self.outcome.to_owned(),
            wait_us: us(marks.wait),
            accept_us: us(marks.accept),
            instantiate_us: us(marks.instantiate),
            join_us: us(marks.join),
            queue_us: us(marks.queue),
            prefill_us: us(marks.prefill),
            first_token_us: marks.first_token.map(us),
            total_us: us(self.total),
            cpu_us: us(self.cpu),
            memory_peak_bytes: self.memory_peak,
            prompt_tokens: marks.tokens.0,
            generated_tokens: marks.tokens.1,
        }
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The id of invocation `number` of a process whose ids begin with `start`.
pub(crate) fn invocation_id(start: u32, number: u64) -> String {
    // By hand: each request has one, and `format!` takes several times as long.
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1) as usize;
    let mut id = [b'-'; 8 + 1 + 16];
    let write = |to: &mut [u8], mut value: u64| {
        for digit in to.iter_mut().rev() {
            *digit = b"0123456789abcdef"[value as usize & 15];
            value >>= 4;
        }
    };
    write(&mut id[..8], start.into());
    write(&mut id[9..9 + digits], number);
    String::from_utf8_lossy(&id[..9 + digits]).into_owned()
}

/// The last invocations of a host, oldest first.
#[derive(Debug)]
pub struct Recent {
    ended: Mutex<VecDeque<Ended>>,
    next: AtomicU64,
    /// What still runs is cut off.
    stopping: AtomicBool,
    /// Tells this process's ids from those of the one before.
    start: u32,
}

impl Recent {
    /// Most that are kept.
    pub const KEPT: usize = 1024;

    /// An empty list.
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Some of its bits are enough: it comes again after seven weeks, and processes start rarely.
        let (next, stopping) = (AtomicU64::new(1), AtomicBool::new(false));
        Self { ended: Mutex::default(), next, stopping, start: now.as_millis() as u32 }
    }

    /// The invocations that ended last, oldest first.
    pub fn list(&self) -> Vec<Summary> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().map(|ended| ended.summary(self.start)).collect()
    }

    /// From now on what goes without an outcome goes because the host stops, and not because its client left.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What this process's ids begin with.
    pub(crate) fn start(&self) -> u32 {
        self.start
    }

    fn push(&self, invocation: Ended) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() == Self::KEPT {
            ended.pop_front();
        }
        ended.push_back(invocation);
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_start_and_the_number_in_hexadecimal_digits() {
        for (start, number) in [(0, 0), (0x12ab, 1), (u32::MAX, 15), (7, 16), (7, 0xfedc_ba98), (1, u64::MAX)] {
            assert_eq!(invocation_id(start, number), format!("{start:08x}-{number:x}"));
        }
    }
}
