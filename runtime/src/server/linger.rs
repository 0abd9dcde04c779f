//! Staying awake for the next request.
//!
//! Who asks again as soon as it is answered does so within some tens of microseconds. A thread that sleeps meanwhile loses more
//! than that: its core goes down and comes up again, and on a virtual machine both are the hypervisor's to do. So where requests follow
//! each other that closely, the thread looks for the next one a moment longer before it sleeps: never longer than [`AWAKE`], not where
//! that did not pay lately, and not while the cores are wanted for inference.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::yield_now;

/// For so long a thread stays awake after an answer, at most.
const AWAKE: Duration = Duration::from_micros(50);
/// After so many requests in time, as many late ones in turn show that they do not come like that any more.
const PATIENCE: u32 = 8;
/// Then it is tried after one in so many answers, to see whether they do again: a prime, so that it meets each of several kinds of
/// requests that come in turn.
const TRY_EVERY: u32 = 61;

/// The requests of one thread, as far as staying awake goes.
#[derive(Debug, Default)]
pub(super) struct Linger {
    begun: AtomicU64,
    ended: AtomicU64,
    /// The last one that runs has ended.
    free: Notify,
}

/// A request that runs; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<Linger>);

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.0.ended.fetch_add(1, Ordering::Relaxed) + 1;
        if ended == self.0.begun.load(Ordering::Relaxed) {
            self.0.free.notify_one();
        }
    }
}

impl Linger {
    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    fn runs(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
    }

    /// Keeps the thread that runs this awake after its answers, for as long as it is polled; not while it is `wanted`
    /// otherwise.
    pub(super) async fn run(&self, wanted: impl Fn() -> bool) {
        let mut luck = Luck::default();
        loop {
            self.free.notified().await;
            // Others have been answered meanwhile, or are about to be: the thread is busy.
            let begun = self.begun.load(Ordering::Relaxed);
            yield_now().await;
            if begun != self.begun.load(Ordering::Relaxed) || self.runs() || !luck.tries() || wanted() {
                continue;
            }
            let since = Instant::now();
            let came = loop {
                // Sockets are looked at in each turn, since there is nothing else to do.
                yield_now().await;
                if self.begun.load(Ordering::Relaxed) != begun {
                    break true;
                }
                if since.elapsed() >= AWAKE {
                    break false;
                }
            };
            luck.note(came);
        }
    }
}

/// Whether it paid lately.
#[derive(Debug, Default)]
struct Luck {
    /// How many more requests came in time than late, up to [`PATIENCE`].
    score: u32,
    /// Answers since the last try.
    untried: u32,
}

impl Luck {
    fn tries(&mut self) -> bool {
        self.untried += 1;
        let now = self.score > 0 || self.untried >= TRY_EVERY;
        if now {
            self.untried = 0;
        }
        now
    }

    fn note(&mut self, came: bool) {
        self.score = if came { PATIENCE.min(self.score + 1) } else { self.score.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Answers after which the thread stayed awake, of 1,000, where the next request comes in time as `came` says.
    fn tries(luck: &mut Luck, came: impl Fn(usize) -> bool) -> usize {
        let mut tries = 0;
        for n in 0..1000 {
            if luck.tries() {
                luck.note(came(n));
                tries += 1;
            }
        }
        tries
    }

    #[test]
    fn it_is_tried_where_it_pays() {
        let mut luck = Luck::default();
        assert_eq!(tries(&mut luck, |_| true), 1000 - 60, "each after the first try");
        assert_eq!(tries(&mut luck, |_| false), 8 + 992 / 61, "few once none comes in time");
        assert!(tries(&mut luck, |n| n % 4 == 0) < 100, "one in four is not enough");
        assert!(tries(&mut luck, |n| n % 4 != 0) > 900, "three in four are");
    }

    #[tokio::test]
    async fn it_stays_awake_again_after_a_request_in_time_and_not_after_a_late_one() {
        let (linger, tries) = (Arc::new(Linger::default()), Cell::new(0));
        let settle = async || {
            for _ in 0..4 {
                yield_now().await;
            }
        };
        let script = async {
            let (first, second) = (linger.begin(), linger.begin());
            drop(second);
            settle().await;
            assert!(linger.runs() && tries.get() == 0, "the first still runs");
            drop(first);
            while tries.get() == 0 {
                drop(linger.begin());
                for _ in 0..4 {
                    yield_now().await;
                    if tries.get() > 0 {
                        break;
                    }
                }
            }
            let in_time = linger.begin();
            settle().await;
            drop(in_time);
            settle().await;
            assert_eq!(tries.get(), 2, "again at once");
            tokio::time::sleep(100 * AWAKE).await;
            drop(linger.begin());
            settle().await;
            assert_eq!(tries.get(), 2, "none came in time");
        };
        let wanted = || {
            tries.set(tries.get() + 1);
            false
        };
        tokio::select! {
            biased;
            () = script => {}
            () = linger.run(wanted) => unreachable!("it never ends of itself"),
        }
    }
}
