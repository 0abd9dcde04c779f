//! On what terms a sequence is computed: where what it uses is added up, and who says how much that may be.
//!
//! Both are the caller's; the engine knows neither for whom a bill is, nor why a budget says no. It writes to the bill where
//! things are used, step by step, so that a sequence whose reader leaves is billed for what it used and no more.

use crate::ask::Refusal;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The terms of one sequence. The default ones bill nobody and allow everything.
pub struct Terms {
    /// Where what it uses is added up; the engine lets go of it when the sequence is gone, and has then added all.
    pub bill: Option<Arc<Bill>>,
    /// What it may use; dropped when the sequence is gone.
    pub budget: Option<Box<dyn Budget>>,
    /// What its account is due beside others: one that has twice the weight gets twice as much of what is short. At least
    /// 1; the default is [`WEIGHT`].
    pub weight: u32,
    /// Its class; the default is [`Priority::Normal`].
    pub priority: Priority,
    /// It must have left the queue by then. It is refused at once if that is not to be expected, and later if it did not.
    pub start_by: Option<Instant>,
}

/// The weight of an account of which nothing else is said.
pub const WEIGHT: u32 = 100;

/// Classes of sequences. A higher class comes first wherever something is short, and takes it from lower ones if need be;
/// what is left goes to these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Work that nobody waits for.
    Low,
    /// What is usual.
    #[default]
    Normal,
    /// Somebody waits for each token.
    High,
}

impl Default for Terms {
    fn default() -> Self {
        Self { bill: None, budget: None, weight: WEIGHT, priority: Priority::Normal, start_by: None }
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bill, budget, weight, priority, start_by } = self;
        let mut terms = f.debug_struct("Terms");
        terms.field("bill", bill).field("budget", &budget.is_some()).field("weight", weight);
        terms.field("priority", priority).field("start_by", start_by).finish()
    }
}

/// How much a sequence may use. Asked by the engine thread in the middle of a step: it must not wait.
pub trait Budget: Send {
    /// Whether a sequence may be queued whose prompt has so many tokens, and that gets so many bytes of KV at first. Asked once.
    ///
    /// # Errors
    /// What its caller is told.
    fn open(&mut self, prompt_tokens: u32, kv_bytes: u64) -> Result<(), Refusal>;

    /// The prompt is being processed now. It is not called for a sequence that is cancelled while it waits.
    fn begin(&mut self);

    /// Whether a token may be made.
    fn take(&mut self) -> Grant;

    /// Whether the sequence may go on, with so many bytes of KV. Told when that changes.
    fn hold(&mut self, kv_bytes: u64) -> bool;
}

/// What a budget says to one more token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Yes.
    Token,
    /// Yes, and it is the last.
    LastToken,
    /// No.
    Nothing,
}

/// What sequences have used together. Written by the engine thread, read at any time.
#[derive(Debug, Default)]
pub struct Bill {
    sequences: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    queue_ns: AtomicU64,
    prefill_ns: AtomicU64,
    decode_ns: AtomicU64,
    device_ns: AtomicU64,
    kv_byte_seconds: AtomicU64,
}

/// What a [`Bill`] says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Billed {
    /// Sequences that were queued.
    pub sequences: u64,
    /// Prompt tokens that were processed or found.
    pub prompt_tokens: u64,
    /// Those of them that were found in the KV of an earlier sequence that began alike.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Time in the queue.
    pub queue: Duration,
    /// Time from admission until the prompt was processed.
    pub prefill: Duration,
    /// Time from the first token until the latest.
    pub decode: Duration,
    /// Its share of the time for which the device computed: of each step as much as it had of the step's tokens.
    pub device: Duration,
    /// Bytes of the KV pages it held, times the seconds for which it held them. A page that several hold counts for each.
    pub kv_byte_seconds: u64,
}

impl Bill {
    /// What was used so far.
    pub fn read(&self) -> Billed {
        let time = |ns: &AtomicU64| Duration::from_nanos(ns.load(Relaxed));
        Billed {
            sequences: self.sequences.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            cached_tokens: self.cached_tokens.load(Relaxed),
            generated_tokens: self.generated_tokens.load(Relaxed),
            queue: time(&self.queue_ns),
            prefill: time(&self.prefill_ns),
            decode: time(&self.decode_ns),
            device: time(&self.device_ns),
            kv_byte_seconds: self.kv_byte_seconds.load(Relaxed),
        }
    }

    /// Adds what was used since the last time.
    pub(crate) fn add(&self, more: &Billed) {
        let add = |total: &AtomicU64, more: u64| {
            if more > 0 {
                total.fetch_add(more, Relaxed);
            }
        };
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        add(&self.sequences, more.sequences);
        add(&self.prompt_tokens, more.prompt_tokens);
        add(&self.cached_tokens, more.cached_tokens);
        add(&self.generated_tokens, more.generated_tokens);
        add(&self.queue_ns, ns(more.queue));
        add(&self.prefill_ns, ns(more.prefill));
        add(&self.decode_ns, ns(more.decode));
        add(&self.device_ns, ns(more.device));
        add(&self.kv_byte_seconds, more.kv_byte_seconds);
    }
}

/// The KV that one sequence holds, and for how long it did.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: u64,
    since: Instant,
    byte_ns: u128,
    /// Of these, the byte-seconds that were told already.
    told: u64,
}

impl Held {
    /// Nothing is held.
    pub(crate) fn nothing(now: Instant) -> Self {
        Self { bytes: 0, since: now, byte_ns: 0, told: 0 }
    }

    /// From now on so much is held. Gives the byte-seconds since the last time, and whether anything changed.
    pub(crate) fn set(&mut self, bytes: u64, now: Instant) -> (u64, bool) {
        let time = now.saturating_duration_since(self.since);
        self.byte_ns += u128::from(self.bytes) * time.as_nanos();
        let changed = self.bytes != bytes;
        (self.bytes, self.since) = (bytes, now);
        let total = u64::try_from(self.byte_ns / 1_000_000_000).unwrap_or(u64::MAX);
        (total - std::mem::replace(&mut self.told, total), changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_for_moments_adds_up() {
        let start = Instant::now();
        let mut held = Held::nothing(start);
        let mut sum = 0;
        for ms in 1..=10_000_u64 {
            sum += held.set(1500, start + Duration::from_millis(ms)).0;
        }
        assert_eq!(sum, 14_998, "1500 bytes for 9.999 s, though each moment alone is less than two byte-seconds");
        assert_eq!(held.set(1500, start + Duration::from_secs(10)), (0, false));
        assert_eq!(held.set(0, start + Duration::from_secs(11)), (1500, true));
        assert_eq!(held.set(0, start + Duration::from_secs(99)), (0, false));
    }

    #[test]
    fn a_bill_adds_up() {
        let bill = Bill::default();
        let some = Billed {
            sequences: 1,
            prompt_tokens: 2,
            cached_tokens: 3,
            generated_tokens: 4,
            queue: Duration::from_nanos(5),
            prefill: Duration::from_nanos(6),
            decode: Duration::from_nanos(7),
            device: Duration::from_nanos(8),
            kv_byte_seconds: 9,
        };
        bill.add(&some);
        assert_eq!(bill.read(), some);
        bill.add(&some);
        assert_eq!((bill.read().kv_byte_seconds, bill.read().queue.as_nanos()), (18, 10));
    }
}
