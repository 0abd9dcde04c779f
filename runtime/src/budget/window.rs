//! Tokens that were taken in the minute, or the day, that runs. In one word, so that nobody waits for anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Bits of the word that count; the rest says in which window. Enough for the largest budget there can be.
const COUNT_BITS: u32 = 41;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// A count that begins anew with each window of so many seconds since 1970.
#[derive(Debug)]
pub(super) struct Window {
    seconds: u64,
    word: AtomicU64,
}

impl Window {
    /// A window of so many seconds, in which nothing was taken.
    pub const fn new(seconds: u64) -> Self {
        Self { seconds, word: AtomicU64::new(0) }
    }

    /// Takes `tokens` at `now`, in seconds since 1970, unless there would be more than `most` in its window. Gives what is left.
    pub fn take(&self, tokens: u64, most: u64, now: u64) -> Option<u64> {
        let taken = |used: u64| used.checked_add(tokens).filter(|used| *used <= most.min(COUNT));
        let before = self.change(now, taken)?;
        Some(most - before - tokens)
    }

    /// Notes `tokens`, however many there are.
    pub fn add(&self, tokens: u64, now: u64) {
        self.change(now, |used| Some(used.saturating_add(tokens).min(COUNT)));
    }

    /// Gives back `tokens` that were taken a moment ago; those of a window that is over are gone with it.
    pub fn give_back(&self, tokens: u64, now: u64) {
        self.change(now, |used| Some(used.saturating_sub(tokens)));
    }

    /// What was taken in the window that `now` is in.
    pub fn used(&self, now: u64) -> u64 {
        self.in_window(self.word.load(Relaxed), now)
    }

    /// How long its window lasts.
    pub fn ends_in(&self, now: u64) -> Duration {
        Duration::from_secs(self.seconds - now % self.seconds)
    }

    fn in_window(&self, word: u64, now: u64) -> u64 {
        if word >> COUNT_BITS == self.mark(now) { word & COUNT } else { 0 }
    }

    /// The window that `now` is in, as far as the word has room: one comes again after sixteen years at the earliest.
    fn mark(&self, now: u64) -> u64 {
        (now / self.seconds) & (u64::MAX >> COUNT_BITS)
    }

    fn change(&self, now: u64, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let next = |word| Some(self.mark(now) << COUNT_BITS | change(self.in_window(word, now))?);
        self.word.fetch_update(Relaxed, Relaxed, next).ok().map(|word| self.in_window(word, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_kept_to_the_token_and_begins_anew() {
        let window = Window::new(60);
        let now = 1_795_575_845;
        assert_eq!(window.take(70, 100, now), Some(30));
        assert_eq!(window.take(31, 100, now), None);
        assert_eq!((window.take(30, 100, now), window.take(1, 100, now), window.used(now)), (Some(0), None, 100));
        window.give_back(10, now);
        assert_eq!((window.used(now), window.ends_in(now)), (90, Duration::from_secs(55)));
        let next = now + 55;
        assert_eq!((window.used(next), window.take(100, 100, next)), (0, Some(0)));
        window.give_back(500, next);
        assert_eq!(window.used(next), 0);
        window.add(u64::MAX, next);
        assert_eq!(window.take(1, 1 << 40, next), None);
    }

    #[test]
    fn many_that_take_at_once_take_no_more() {
        let window = Window::new(60);
        let taken: u64 = std::thread::scope(|scope| {
            let take = || (0..10_000).filter(|_| window.take(1, 12_345, 7).is_some()).count() as u64;
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!((taken, window.used(7)), (12_345, 12_345));
    }
}
