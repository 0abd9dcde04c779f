//! What an instance has used and may use: time from its request's beginning, time on a processor, memory.
//!
//! A guest cannot be trusted to look at a clock. Whoever polls it looks at this meter after each of its turns, and the
//! epoch clock makes a guest that computes end its turn within 1.1 ms, or stops it there. So both limits hold
//! whatever the guest does between its calls to the host; calls to the host bound themselves.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

/// Counts for one instance. All of it is read and written by one thread at a time; the atomics only make it `Sync`.
#[derive(Debug)]
pub struct Meter {
    /// All times below count from here, in nanoseconds.
    origin: Instant,
    deadline: AtomicU64,
    cpu_most: AtomicU64,
    cpu_used: AtomicU64,
    /// When the turn that runs now began; [`BETWEEN`] while none does.
    turn: AtomicU64,
    memory_peak: AtomicU64,
}

/// No turn is running.
const BETWEEN: u64 = u64::MAX;

/// A turn that has lasted for fewer nanoseconds is not broken off for others: most requests need no more, and to yield takes time, too.
const YOUNG: u64 = 100_000;

/// See [`Meter::at_epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEpoch {
    /// Its turn has begun a moment ago.
    GoesOn,
    /// Others have their turn.
    Yields,
    /// Something is used up.
    Ends,
}

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The time from the request's beginning.
    Wall,
    /// The time on a processor.
    Cpu,
}

impl Meter {
    /// A meter that allows everything, until [`Self::allow`] is called.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            deadline: AtomicU64::new(u64::MAX),
            cpu_most: AtomicU64::new(u64::MAX),
            cpu_used: AtomicU64::new(0),
            turn: AtomicU64::new(BETWEEN),
            memory_peak: AtomicU64::new(0),
        }
    }

    /// Allows time until `deadline`, and `cpu` more on a processor than was used so far.
    pub fn allow(&self, deadline: Instant, cpu: Duration) {
        self.deadline.store(nanos(deadline.saturating_duration_since(self.origin)), Relaxed);
        self.cpu_most.store(self.cpu_used.load(Relaxed).saturating_add(nanos(cpu)), Relaxed);
    }

    /// When time is over.
    pub fn deadline(&self) -> Instant {
        // As far as a clock can say: a century is never waited for.
        let most = Duration::from_secs(100 * 365 * 24 * 3600);
        self.origin + Duration::from_nanos(self.deadline.load(Relaxed)).min(most)
    }

    /// What is used up, if anything is; the turn that runs counts.
    pub fn spent(&self) -> Option<Spent> {
        self.spent_at(self.now())
    }

    fn spent_at(&self, now: u64) -> Option<Spent> {
        if now >= self.deadline.load(Relaxed) {
            return Some(Spent::Wall);
        }
        let turn = now.saturating_sub(self.turn.load(Relaxed));
        (self.cpu_used.load(Relaxed) + turn >= self.cpu_most.load(Relaxed)).then_some(Spent::Cpu)
    }

    /// What becomes of a guest that computes as an epoch begins.
    pub fn at_epoch(&self) -> AtEpoch {
        let (now, turn) = (self.now(), self.turn.load(Relaxed));
        match self.spent_at(now) {
            Some(_) => AtEpoch::Ends,
            // Not those that are called without turns: they are never young.
            None if turn <= now && now - turn < YOUNG => AtEpoch::GoesOn,
            None => AtEpoch::Yields,
        }
    }

    /// Time on a processor so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_used.load(Relaxed))
    }

    /// Adds processor time that was counted elsewhere.
    pub fn charge(&self, cpu: Duration) {
        self.cpu_used.fetch_add(nanos(cpu), Relaxed);
    }

    /// Linear memory at its most so far, in bytes.
    pub fn memory_peak(&self) -> u64 {
        self.memory_peak.load(Relaxed)
    }

    /// Notes how much linear memory there is now.
    pub fn memory(&self, bytes: usize) {
        self.memory_peak.fetch_max(bytes as u64, Relaxed);
    }

    /// Runs a guest's `future` in counted turns, and ends it when its time is spent.
    ///
    /// # Errors
    /// What was spent. The future is dropped with this one, at the latest.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output, Spent> {
        let mut future = pin!(future);
        let mut timer = pin!(sleep_until(self.deadline().into()));
        std::future::poll_fn(|cx| {
            let _turn = Turn::begin(self);
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if let Some(spent) = self.spent() {
                return Poll::Ready(Err(spent));
            }
            // The deadline may have moved: an instance that serves on is allowed more.
            while timer.as_mut().poll(cx).is_ready() {
                if let Some(spent) = self.spent() {
                    return Poll::Ready(Err(spent));
                }
                timer.as_mut().reset(self.deadline().into());
            }
            Poll::Pending
        })
        .await
    }

    fn now(&self) -> u64 {
        nanos(self.origin.elapsed())
    }
}

/// A turn of the guest; counted when it ends, however it does.
struct Turn<'a>(&'a Meter);

impl<'a> Turn<'a> {
    fn begin(meter: &'a Meter) -> Self {
        meter.turn.store(meter.now(), Relaxed);
        Self(meter)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Self(meter) = self;
        let took = meter.now().saturating_sub(meter.turn.load(Relaxed));
        meter.turn.store(BETWEEN, Relaxed);
        meter.cpu_used.fetch_add(took, Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Computes for so long, then lets others.
    async fn compute(each: Duration) {
        loop {
            let started = Instant::now();
            while started.elapsed() < each {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_guest_that_computes_is_ended_by_its_processor_time() {
        let meter = Meter::new(Instant::now());
        meter.allow(Instant::now() + Duration::from_secs(3600), Duration::from_millis(20));
        let spent = block_on(meter.run(compute(Duration::from_millis(1))));
        assert_eq!(spent, Err(Spent::Cpu));
        assert!(meter.cpu() >= Duration::from_millis(20));
        // What was used counts for what comes after only as far as it is allowed anew.
        meter.allow(Instant::now() + Duration::from_secs(3600), Duration::from_millis(20));
        assert_eq!(meter.spent(), None);
    }

    #[test]
    fn a_turn_that_has_begun_a_moment_ago_goes_on() {
        let meter = Meter::new(Instant::now());
        assert_eq!(meter.at_epoch(), AtEpoch::Yields, "there is no turn");
        let ago = |ns| meter.turn.store(meter.now().saturating_sub(ns), Relaxed);
        let ms = Duration::from_millis;
        std::thread::sleep(ms(1));
        ago(YOUNG * 2);
        assert_eq!(meter.at_epoch(), AtEpoch::Yields);
        // This thread may have to wait here.
        let goes_on = (0..100).any(|_| {
            ago(0);
            meter.at_epoch() == AtEpoch::GoesOn
        });
        assert!(goes_on);
        meter.allow(Instant::now(), ms(1));
        ago(0);
        assert_eq!(meter.at_epoch(), AtEpoch::Ends, "however young it is");
    }

    #[test]
    fn a_guest_that_waits_is_ended_by_the_deadline_and_costs_no_processor() {
        let meter = Meter::new(Instant::now());
        meter.allow(Instant::now() + Duration::from_millis(20), Duration::from_secs(1));
        assert_eq!(block_on(meter.run(std::future::pending::<()>())), Err(Spent::Wall));
        let meter = Meter::new(Instant::now());
        assert_eq!(block_on(meter.run(async { 7 })), Ok(7));
        assert!(meter.cpu() < Duration::from_millis(100));
    }
}
