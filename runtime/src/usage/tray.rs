//! Where tabs lie until the clerk comes for what is on them. Each thread that serves has a tray of its own, or shares one with few others: a
//! tab is made, closed and freed there, and of an invocation that has ended only what it used stays. What one thread allocates and another
//! frees costs each later allocation something. (Those of which the engine still knew when they were closed are freed by the clerk.)

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
    /// Nobody comes any more.
    closed: bool,
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
    pub fn take(&self, now: Instant, every: Duration, ended: impl FnMut(&Reading)) -> Vec<Arc<Tab>> {
        self.take_of_each(ended, |contents, running| {
            contents.settle();
            for (_, Open { tab, told }) in &mut contents.open {
                if now.saturating_duration_since(*told) >= every {
                    *told = now;
                    running.push(tab.clone());
                }
            }
        })
    }

    /// The same for the last time: returns all that are not complete.
    pub fn take_all(&self, ended: impl FnMut(&Reading)) -> Vec<Arc<Tab>> {
        self.take_of_each(ended, |contents, running| {
            contents.settle();
            running.extend(contents.open.drain().map(|open| open.tab));
            contents.closed = true;
        })
    }

    /// Nobody comes any more, and nothing is kept for them.
    pub fn close(&self) {
        for tray in &self.0 {
            *tray.lock() = Contents { closed: true, ..Contents::default() };
        }
    }

    /// Gives away what has ended in each tray, after `look` at it.
    fn take_of_each(
        &self,
        mut ended: impl FnMut(&Reading),
        look: impl Fn(&mut Contents, &mut Vec<Arc<Tab>>),
    ) -> Vec<Arc<Tab>> {
        let mut running = Vec::new();
        for tray in &self.0 {
            let mut contents = tray.lock();
            look(&mut contents, &mut running);
            let spare = std::mem::take(&mut contents.spare);
            let mut taken = std::mem::replace(&mut contents.ended, spare);
            // Those who serve go on meanwhile.
            drop(contents);
            taken.iter().for_each(&mut ended);
            let most = (taken.len() * 2).max(KEPT);
            taken.clear();
            taken.shrink_to(most);
            tray.lock().spare = taken;
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

    /// Whether the engine works for somebody, or has to let go of what has ended.
    pub fn waits(&self) -> bool {
        let waits = |tab: &Tab| tab.is_closed() || tab.is_billed();
        self.0.iter().any(|tray| tray.lock().open.iter().any(|(_, open)| waits(&open.tab)))
    }
}

impl Contents {
    /// Puts what is complete to what has ended.
    fn settle(&mut self) {
        let Self { open, ended, .. } = self;
        open.retain(|_, Open { tab, .. }| {
            let complete = tab.is_complete();
            if complete {
                ended.push(tab.read());
            }
            !complete
        });
        if open.is_empty() && open.capacity() > KEPT {
            open.shrink_to_fit();
        }
    }
}

impl Tray {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a tab for invocation `number` of `owner`.
    pub fn open(self: &Arc<Self>, owner: Arc<Owner>, number: u64, started: Instant, meter: Arc<Meter>) -> Arc<Tab> {
        let mut contents = self.lock();
        if contents.closed {
            return Arc::new(Tab::new((owner, number, started, meter), self.clone(), usize::MAX));
        }
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
        // The last time the clerk takes open ones, too.
        let lies_here = contents.open.get(tab.place()).is_some_and(|open| std::ptr::eq(&*open.tab, tab));
        if lies_here {
            let open = contents.open.remove(tab.place());
            contents.ended.push(tab.read());
            // Not the last: who closes it has it.
            drop(open);
        }
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
        open_at(trays, number, Instant::now())
    }

    fn open_at(trays: &Trays, number: u64, now: Instant) -> Arc<Tab> {
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
        let (trays, every, now) = (Trays::new(), Duration::from_millis(400), Instant::now());
        let (tab, billed) = (open_at(&trays, 1, now), open_at(&trays, 2, now));
        assert!(!trays.waits());
        let bill = billed.bill(&"m".parse().unwrap());
        assert!(trays.waits(), "the engine works for it");
        end(&billed);
        assert!(trays.waits());
        let later = |ms| now + Duration::from_millis(ms);
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
    }

    #[test]
    fn the_last_time_all_is_taken_and_then_nothing_is_kept() {
        let trays = Trays::new();
        let (ended, runs) = (open(&trays, 1), open(&trays, 2));
        end(&ended);
        assert_eq!(take_all(&trays), (vec![1], vec![2]));
        let late = open(&trays, 3);
        end(&late);
        end(&runs);
        assert_eq!((Arc::strong_count(&late), Arc::strong_count(&runs)), (1, 1));
        assert_eq!(take_all(&trays), (vec![], vec![]));
        let trays = Trays::new();
        let (ended, runs) = (open(&trays, 1), open(&trays, 2));
        end(&ended);
        // The clerk has panicked.
        trays.close();
        end(&runs);
        assert_eq!(take_all(&trays), (vec![], vec![]));
    }
}
