//! Counters and histograms of one function, written by requests without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;

use crate::request::Marks;

/// How an invocation can end once a guest saw it.
const ENDS: [&str; 8] = ["ok", "client-left", "shutdown", "failed", "no-answer", "deadline", "cpu", "answer-too-large"];

/// How a request can be refused before a guest saw it.
pub(super) const REFUSALS: [&str; 11] = [
    "too-many",
    "busy",
    "stopping",
    "too-large",
    "headers-too-large",
    "bad-request",
    "broken",
    "no-route",
    "no-function",
    "no-revision",
    "method",
];

/// What is counted apart; all that is not in the lists is counted together.
const COUNTERS: usize = ENDS.len() + REFUSALS.len() + 1;

fn codes() -> impl Iterator<Item = &'static str> {
    ENDS.into_iter().chain(REFUSALS).chain(["other"])
}

/// A counter for each code.
#[derive(Debug, Default)]
pub struct Codes([AtomicU64; COUNTERS]);

impl Codes {
    /// Counts one.
    pub fn count(&self, code: &str) {
        let at = codes().position(|known| known == code).unwrap_or(COUNTERS - 1);
        self.0[at].fetch_add(1, Relaxed);
    }

    /// Those that were counted, and how often.
    pub fn seen(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Relaxed));
        codes().zip(counts).filter(|(_, count)| *count > 0)
    }
}

/// Upper bounds of a histogram's buckets; one without a bound follows.
pub(super) type Bounds = [u64; 12];

/// How often a value was in which bucket. Values are whole numbers of microseconds or bytes.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    counts: [AtomicU64; 13],
    sum: AtomicU64,
}

impl Histogram {
    pub(super) const fn new(bounds: &'static Bounds) -> Self {
        Self { bounds, counts: [const { AtomicU64::new(0) }; 13], sum: AtomicU64::new(0) }
    }

    fn see(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(super) fn see_time(&self, time: Duration) {
        self.see(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// The same time, so often.
    pub(super) fn see_times(&self, time: Duration, times: u64) {
        let value = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(times, Relaxed);
        self.sum.fetch_add(value.saturating_mul(times), Relaxed);
    }

    /// The sum, and the buckets with what is in each alone; `unit` is what a value of one means.
    pub(super) fn read(&self, unit: f64) -> (f64, Vec<(f64, u64)>) {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 * unit).chain([f64::INFINITY]);
        let buckets = bounds.zip(self.counts.iter().map(|count| count.load(Relaxed))).collect();
        (self.sum.load(Relaxed) as f64 * unit, buckets)
    }
}

/// Microseconds: from a no-op's to the longest that people wait.
pub(super) const TIMES: Bounds =
    [100, 250, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000, 60_000_000];
/// Microseconds: an instance takes tens of them.
const STARTS: Bounds = [5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 20_000, 100_000, 1_000_000];
/// Bytes.
const MEMORY: Bounds =
    [1 << 16, 1 << 18, 1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20, 128 << 20, 512 << 20, 1 << 30];

/// The numbers of one function, or of several that are counted together.
#[derive(Debug)]
pub struct Metrics {
    pub(super) outcomes: Codes,
    /// Answers by the first digit of their status.
    pub(super) statuses: [AtomicU64; 5],
    pub(super) duration: Histogram,
    pub(super) queue: Histogram,
    pub(super) start: Histogram,
    pub(super) cpu: Histogram,
    pub(super) memory: Histogram,
    /// Tokens of prompts, and generated.
    pub(super) tokens: [AtomicU64; 2],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            outcomes: Codes::default(),
            statuses: Default::default(),
            duration: Histogram::new(&TIMES),
            queue: Histogram::new(&TIMES),
            start: Histogram::new(&STARTS),
            cpu: Histogram::new(&TIMES),
            memory: Histogram::new(&MEMORY),
            tokens: Default::default(),
        }
    }
}

impl Metrics {
    /// Counts an answer's status.
    pub fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.statuses[class - 1].fetch_add(1, Relaxed);
    }

    /// Counts an invocation that has ended.
    pub fn ended(&self, outcome: &str, marks: &Marks, total: Duration, cpu: Duration, memory_peak: u64) {
        self.outcomes.count(outcome);
        self.duration.see_time(total);
        if REFUSALS.contains(&outcome) {
            return;
        }
        self.queue.see_time(marks.wait);
        self.cpu.see_time(cpu);
        self.memory.see(memory_peak);
        // One that was kept from a request before was not started.
        if marks.instantiate > Duration::ZERO {
            self.start.see_time(marks.accept + marks.instantiate);
        }
        for (counter, tokens) in self.tokens.iter().zip([marks.tokens.0, marks.tokens.1]) {
            if tokens > 0 {
                counter.fetch_add(tokens.into(), Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_bucket_of_its_bound() {
        let histogram = Histogram::new(&STARTS);
        for value in [0, 5, 6, 1_000_000, 1_000_001] {
            histogram.see(value);
        }
        let (sum, buckets) = histogram.read(1e-6);
        assert!((sum - 2.000_012).abs() < 1e-9);
        let counts: Vec<_> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(buckets[12].0, f64::INFINITY);
    }

    #[test]
    fn an_unknown_code_is_counted_all_the_same() {
        let codes = Codes::default();
        for code in ["ok", "never heard of", "ok"] {
            codes.count(code);
        }
        assert_eq!(codes.seen().collect::<Vec<_>>(), [("ok", 2), ("other", 1)]);
        assert_eq!(super::codes().count(), COUNTERS);
    }

    #[test]
    fn a_refusal_is_no_run() {
        let metrics = Metrics::default();
        metrics.ended("too-many", &Marks::default(), Duration::from_millis(1), Duration::ZERO, 0);
        let count = |histogram: &Histogram| histogram.read(1.0).1.iter().map(|(_, count)| count).sum::<u64>();
        assert_eq!([count(&metrics.duration), count(&metrics.queue), count(&metrics.memory)], [1, 0, 0]);
    }
}
