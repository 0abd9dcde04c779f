//! Where tabs lie until the clerk comes for what is on them. Each thread that serves has a tray of its own, or shares one with few others: a
//! tab is made, closed and freed there, and of an invocation that has ended only what it used stays. What one thread allocates and another
//! frees costs each later allocation something.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use slab::Slab;

use super::tab::{End, Owner, Reading, Tab};
use crate::instance::Meter;

/// Most trays of a host.
const MOST: usize = 64;
/// What is kept of the memory for those that ended, at least, in places.
const KEPT: usize = 64;

/// All trays of a host.
pub(super) struct Trays(Box<[Arc<Tray>]>);

/// Tabs of invocations that run, and what was on those of invocations that have ended. Has cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tray(Mutex<Contents>);

#[derive(Debug, Default)]
struct Contents {
    /// Those to which something may be added.
    open: Slab<Open>,
    ended: Vec<Reading>,
    /// The memory of `ended` before it was taken, for the next time.
    spare: Vec<Reading>,
}

#[derive(Debug)]
struct Open {
    tab: Arc<Tab>,
    /// When the clerk was told last how far it is, or when it began.
    told: Instant,
}

impl Trays {
    /// For all threads of this process.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        // Twice as many: that two that serve share one is rare.
        Self((0..(threads * 2).min(MOST)).map(|_| Arc::default()).collect())
    }

    /// The one of this thread.
    pub fn mine(&self) -> &Arc<Tray> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
        }
        let number = NUMBER.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            NUMBER.set(Some(number));
            number
        });
        &self.0[number % self.0.len()]
    }

    /// Gives away what was on tabs that are complete. Returns those that run on, each after `every` again.
    pub fn take(&self, now: Instant, every: Duration, mut ended: impl FnMut(&Reading)) -> Vec<Arc<Tab>> {
        let mut running = Vec::new();
        for tray in &self.0 {
            let mut taken = tray.take(now, every, &mut running);
            taken.iter().for_each(&mut ended);
            let most = (taken.len() * 2).max(KEPT);
            taken.clear();
            taken.shrink_to(most);
            tray.lock().spare = taken;
        }
        running
    }

    /// The same for the last time: returns all that are not complete.
    pub fn take_all(&self, ended: impl FnMut(&Reading)) -> Vec<Arc<Tab>> {
        let mut running = self.take(Instant::now(), Duration::MAX, ended);
        for tray in &self.0 {
            running.extend(tray.lock().open.drain().map(|open| open.tab));
        }
        running
    }

    /// All that the clerk may have been told of as running, and that it has not taken as ended: what began at least `every` ago.
    pub fn told(&self, now: Instant, every: Duration, mut tell: impl FnMut(&Reading)) {
        let long_ago = |started: Instant| now.saturating_duration_since(started) >= every;
        for tray in &self.0 {
            let contents = tray.lock();
            let open = contents.open.iter().filter(|(_, open)| long_ago(open.tab.started()));
            open.for_each(|(_, open)| tell(&open.tab.read()));
            contents.ended.iter().filter(|ended| long_ago(ended.started)).for_each(&mut tell);
        }
    }

    /// Whether something has ended that is not complete yet.
    pub fn waits(&self) -> bool {
        self.0.iter().any(|tray| tray.lock().open.iter().any(|(_, open)| open.tab.is_closed()))
    }
}

impl Tray {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a tab for invocation `number` of `owner`.
    pub fn open(self: &Arc<Self>, owner: Arc<Owner>, number: u64, started: Instant, meter: Arc<Meter>) -> Arc<Tab> {
        let mut contents = self.lock();
        let place = contents.open.vacant_entry();
        let tab = Arc::new(Tab::new((owner, number, started, meter), self.clone(), place.key()));
        place.insert(Open { tab: tab.clone(), told: started });
        tab
    }

    /// The invocation of `tab` is over. What is on the tab is final, unless the engine still works for it.
    pub fn close(&self, tab: &Tab, end: End) {
        let mut contents = self.lock();
        if !tab.set_end(end) || !tab.is_complete() {
            return;
        }
        // The clerk takes open ones too, before a host goes.
        let lies_here = contents.open.get(tab.place()).is_some_and(|open| std::ptr::eq(&*open.tab, tab));
        if lies_here {
            let open = contents.open.remove(tab.place());
            contents.ended.push(tab.read());
            // Not the last: who closes it has it.
            drop(open);
        }
    }

    fn take(&self, now: Instant, every: Duration, running: &mut Vec<Arc<Tab>>) -> Vec<Reading> {
        let mut contents = self.lock();
        let Contents { open, ended, spare } = &mut *contents;
        open.retain(|_, Open { tab, told }| {
            if tab.is_complete() {
                ended.push(tab.read());
                return false;
            }
            if now.saturating_duration_since(*told) >= every {
                *told = now;
                running.push(tab.clone());
            }
            true
        });
        std::mem::replace(ended, std::mem::take(spare))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Arc<Owner> {
        let (function, revision, tenant) = ("f".parse().unwrap(), "r1".parse().unwrap(), "acme".parse().unwrap());
        Arc::new(Owner { function, revision, tenant })
    }

    fn open(trays: &Trays, number: u64) -> Arc<Tab> {
        let now = Instant::now();
        trays.mine().open(owner(), number, now, Arc::new(Meter::new(now)))
    }

    fn end(tab: &Tab) {
        tab.close(End { outcome: "ok", wall: Duration::ZERO, queue: Duration::ZERO });
    }

    /// Numbers of those that ended, and of those that run.
    fn take(trays: &Trays, now: Instant, every: Duration) -> (Vec<u64>, Vec<u64>) {
        let mut ended = Vec::new();
        let running = trays.take(now, every, |reading| ended.push(reading.number));
        (ended, numbers(&running))
    }

    fn take_all(trays: &Trays) -> (Vec<u64>, Vec<u64>) {
        let mut ended = Vec::new();
        let running = trays.take_all(|reading| ended.push(reading.number));
        (ended, numbers(&running))
    }

    fn numbers(tabs: &[Arc<Tab>]) -> Vec<u64> {
        tabs.iter().map(|tab| tab.read().number).collect()
    }

    #[test]
    fn what_ends_is_taken_once_and_its_memory_is_free() {
        let trays = Trays::new();
        let tabs: Vec<_> = (0..10).map(|n| open(&trays, n)).collect();
        tabs[2..8].iter().for_each(|tab| end(tab));
        end(&tabs[3]);
        assert!(
            tabs.iter().enumerate().all(|(n, tab)| Arc::strong_count(tab) == if (2..8).contains(&n) { 1 } else { 2 })
        );
        assert_eq!(take(&trays, Instant::now(), Duration::MAX), ((2..8).collect(), vec![]));
        assert_eq!(take(&trays, Instant::now(), Duration::MAX), (vec![], vec![]));
        // Their places are others' now.
        let more: Vec<_> = (10..16).map(|n| open(&trays, n)).collect();
        tabs.iter().for_each(|tab| end(tab));
        more.iter().for_each(|tab| end(tab));
        assert_eq!(take(&trays, Instant::now(), Duration::MAX).0, [0, 1, 8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn what_runs_is_told_now_and_then_and_a_bill_keeps_a_tab_open() {
        let (trays, every) = (Trays::new(), Duration::from_millis(400));
        let (tab, billed) = (open(&trays, 1), open(&trays, 2));
        let bill = billed.bill(&"m".parse().unwrap());
        end(&billed);
        assert!(trays.waits());
        let later = |ms| Instant::now() + Duration::from_millis(ms);
        assert_eq!(take(&trays, later(100), every), (vec![], vec![]));
        assert_eq!(take(&trays, later(500), every), (vec![], vec![1, 2]));
        assert_eq!(take(&trays, later(600), every), (vec![], vec![]), "it was told a moment ago");
        drop(bill);
        assert_eq!(take(&trays, later(1000), every), (vec![2], vec![1]));
        assert!(!trays.waits());
        let told = |ms| {
            let mut told = Vec::new();
            trays.told(later(ms), every, |reading| told.push(reading.number));
            told
        };
        end(&tab);
        assert_eq!((told(0), told(500)), (vec![], vec![1]), "it has ended, and was not taken");
        let last = open(&trays, 3);
        assert_eq!(take_all(&trays), (vec![1], vec![3]));
        let other = open(&trays, 4);
        end(&last);
        assert_eq!(take_all(&trays), (vec![], vec![4]), "its place is another's");
        drop(other);
    }
}
