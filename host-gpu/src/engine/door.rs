//! The way into the queue: who may wait, and how long that would take.
//!
//! Places in the queue are shared as those in the batch are: they go to who comes first, but an account that has not its own
//! part of them finds one though others have taken all. So what one account sends can fill the queue, and no other is
//! turned away for it.

use crate::ask::Refusal;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a refused caller is told to wait, at least and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// One account's sequences.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    weight: u32,
    waiting: usize,
    running: usize,
}

#[derive(Debug, Default)]
struct Lines {
    accounts: HashMap<u64, Line>,
    waiting: usize,
    /// A moving average of the time that a sequence stays in the batch.
    stay: Duration,
}

impl Lines {
    /// The weight of `account` among all that have sequences.
    fn part(&self, account: u64, weight: u32) -> f64 {
        let others = self.accounts.iter().filter(|(other, _)| **other != account);
        let others: f64 = others.map(|(_, line)| f64::from(line.weight)).sum();
        f64::from(weight) / (f64::from(weight) + others)
    }
}

/// The queue as those see it who want to come in.
#[derive(Debug)]
pub(super) struct Door {
    max_waiting: usize,
    max_running: usize,
    lines: Mutex<Lines>,
}

impl Door {
    pub(super) fn new(max_waiting: usize, max_running: usize) -> Self {
        Self { max_waiting: max_waiting.max(1), max_running: max_running.max(1), lines: Mutex::default() }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing that runs under the lock can leave the lines half changed.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the queue for a sequence of `account`, which wants to have left it within `patience`.
    pub(super) fn enter(&self, account: u64, weight: u32, patience: Option<Duration>) -> Result<(), Refusal> {
        let (mut lines, weight) = (self.lines(), weight.max(1));
        let own = lines.accounts.get(&account).copied().unwrap_or_default();
        let due = (self.max_waiting as f64 * lines.part(account, weight)) as usize;
        let wait = self.estimate(&lines, account, weight);
        if (lines.waiting >= self.max_waiting && own.waiting >= due) || patience.is_some_and(|most| wait > most) {
            return Err(Refusal::Busy { retry_after: wait.clamp(RETRY.0, RETRY.1) });
        }
        lines.waiting += 1;
        let line = lines.accounts.entry(account).or_default();
        line.weight = weight;
        line.waiting += 1;
        Ok(())
    }

    /// How long another sequence of `account` would wait, as far as can be told.
    pub(super) fn wait(&self, account: u64, weight: u32) -> Duration {
        self.estimate(&self.lines(), account, weight.max(1)).clamp(RETRY.0, RETRY.1)
    }

    /// Sequences of its own come before it; one of them leaves, on its account's part of the batch, in the time that one
    /// stays over the places of that part. Nobody waits while places are free.
    fn estimate(&self, lines: &Lines, account: u64, weight: u32) -> Duration {
        let running: usize = lines.accounts.values().map(|line| line.running).sum();
        if running + lines.waiting < self.max_running {
            return Duration::ZERO;
        }
        let own = lines.accounts.get(&account).copied().unwrap_or_default();
        let places = (self.max_running as f64 * lines.part(account, weight)).max(1.0);
        let before = (own.waiting + own.running + 1) as f64 - places;
        lines.stay.mul_f64((before / places).max(0.0))
    }

    pub(super) fn admitted(&self, account: u64) {
        let mut lines = self.lines();
        lines.waiting -= 1;
        if let Some(line) = lines.accounts.get_mut(&account) {
            line.waiting -= 1;
            line.running += 1;
        }
    }

    pub(super) fn preempted(&self, account: u64) {
        let mut lines = self.lines();
        lines.waiting += 1;
        if let Some(line) = lines.accounts.get_mut(&account) {
            line.waiting += 1;
            line.running -= 1;
        }
    }

    /// A sequence is gone, out of the queue or the batch, which it entered first so long ago.
    pub(super) fn left(&self, account: u64, waited: bool, stayed: Option<Duration>) {
        let mut lines = self.lines();
        if let Some(stayed) = stayed {
            lines.stay = (lines.stay * 7 + stayed) / 8;
        }
        lines.waiting -= usize::from(waited);
        let Some(line) = lines.accounts.get_mut(&account) else { return };
        line.waiting -= usize::from(waited);
        line.running -= usize::from(!waited);
        if line.waiting + line.running == 0 {
            lines.accounts.remove(&account);
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.lines().waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(door: &Door, account: u64, weight: u32) -> bool {
        door.enter(account, weight, None).is_ok()
    }

    #[test]
    fn a_full_queue_has_places_for_those_who_have_less_than_their_part() {
        let door = Door::new(10, 2);
        assert!((0..10).all(|_| enter(&door, 1, 100)));
        assert!(!enter(&door, 1, 100), "it has all places");
        assert!((0..5).all(|_| enter(&door, 2, 100)), "half of them are due to another");
        assert!(!enter(&door, 2, 100));
        assert!((0..4).all(|_| enter(&door, 3, 200)) && enter(&door, 3, 200), "and half to one of twice the weight");
        assert!(!enter(&door, 3, 200));
        assert_eq!(door.waiting(), 20);
        (0..10).for_each(|_| door.left(1, true, None));
        assert!(!enter(&door, 2, 100), "still ten wait, and it has more than a third of the places");
        (0..5).for_each(|_| door.left(3, true, None));
        assert!(enter(&door, 1, 100));
        assert_eq!(door.waiting(), 6);
    }

    #[test]
    fn who_would_wait_for_too_long_is_refused_at_once() {
        let door = Door::new(100, 2);
        let second = Duration::from_secs(1);
        for n in 0..64 {
            assert!(enter(&door, 1, 100), "{n}");
            door.admitted(1);
            door.left(1, false, Some(second));
        }
        let patience = Some(Duration::from_millis(1900));
        for (n, fits) in [true, true, true, true, true, false].into_iter().enumerate() {
            assert_eq!(door.enter(1, 100, patience).is_ok(), fits, "sequence {n}");
            if n < 2 {
                door.admitted(1);
            }
        }
        // Two run, three wait: the sixth waits for four to leave, two at a time.
        let refused = door.enter(1, 100, patience).unwrap_err();
        let Refusal::Busy { retry_after } = refused else { panic!("{refused}") };
        assert!((1900..=2000).contains(&retry_after.as_millis()), "{retry_after:?}");
        assert!(
            door.enter(2, 100, Some(Duration::from_millis(1))).is_ok(),
            "one place is another's, who need not wait"
        );
        door.preempted(1);
        assert_eq!(door.waiting(), 5);
        assert!(door.wait(1, 100) >= second);
    }
}
