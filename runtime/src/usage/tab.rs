//! What one invocation uses, written while it runs without a lock: by the request, by its guest's meter, by the engine.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hob_gpu::{Bill, Billed};

use super::tray::Tray;
use crate::instance::Meter;
use crate::names::{FunctionName, ModelName, RevisionId, Tenant};

/// Whose invocations these are; made once for each revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The function.
    pub function: FunctionName,
    /// Which of its revisions.
    pub revision: RevisionId,
    /// Who pays.
    pub tenant: Tenant,
}

/// The account of one invocation. It is complete when it was closed and the engine has let go of all that is on it.
#[derive(Debug)]
pub struct Tab {
    owner: Arc<Owner>,
    /// The invocation's number within this process.
    number: u64,
    started: Instant,
    meter: Arc<Meter>,
    /// Where it lies, and at which place there.
    tray: Arc<Tray>,
    place: usize,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    models: OnceLock<Box<Line>>,
    end: OnceLock<End>,
}

/// What it uses of one model, and those that it used after that.
#[derive(Debug)]
struct Line {
    model: ModelName,
    bill: Arc<Bill>,
    next: OnceLock<Box<Line>>,
}

/// How an invocation ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// `ok`, `client-left`, or a code of [`crate::request::RequestError`].
    pub outcome: &'static str,
    /// From the request to its end.
    pub wall: Duration,
    /// Before the gate of its function.
    pub queue: Duration,
}

/// What is on a tab at one moment.
#[derive(Debug)]
pub(super) struct Reading {
    pub owner: Arc<Owner>,
    pub number: u64,
    pub started: Instant,
    /// `None` if it runs.
    pub end: Option<End>,
    pub cpu: Duration,
    pub memory_peak: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub models: Vec<(ModelName, Billed)>,
}

impl Tab {
    /// The tab of invocation `number`, whose guest is metered by `meter`, at a `place` in a tray.
    pub(super) fn new(
        (owner, number, started, meter): (Arc<Owner>, u64, Instant, Arc<Meter>),
        tray: Arc<Tray>,
        place: usize,
    ) -> Self {
        let (bytes_in, bytes_out) = Default::default();
        let (models, end) = (OnceLock::new(), OnceLock::new());
        Self { owner, number, started, meter, tray, place, bytes_in, bytes_out, models, end }
    }

    /// Bytes of the request's body have come.
    pub fn received(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of the answer's body have gone.
    pub fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Where sequences of `model` are billed.
    pub fn bill(&self, model: &ModelName) -> Arc<Bill> {
        let mut place = &self.models;
        loop {
            let line = place
                .get_or_init(|| Box::new(Line { model: model.clone(), bill: Arc::default(), next: OnceLock::new() }));
            if line.model == *model {
                return line.bill.clone();
            }
            place = &line.next;
        }
    }

    /// The invocation is over. It ends once.
    pub fn close(&self, end: End) {
        self.tray.close(self, end);
    }

    /// Notes the end, but for the tray's part; whether it is the first.
    pub(super) fn set_end(&self, end: End) -> bool {
        self.end.set(end).is_ok()
    }

    /// Its place in its tray.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// When its invocation began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// What is on it now.
    pub(super) fn read(&self) -> Reading {
        Reading {
            owner: self.owner.clone(),
            number: self.number,
            started: self.started,
            end: self.end.get().copied(),
            cpu: self.meter.cpu(),
            memory_peak: self.meter.memory_peak(),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            models: self.lines().map(|line| (line.model.clone(), line.bill.read())).collect(),
        }
    }

    /// Whether its invocation is over.
    pub(super) fn is_closed(&self) -> bool {
        self.end.get().is_some()
    }

    /// Whether the engine may still add something.
    pub(super) fn is_billed(&self) -> bool {
        self.lines().any(|line| Arc::strong_count(&line.bill) > 1)
    }

    /// Whether nothing can be added any more.
    pub(super) fn is_complete(&self) -> bool {
        let complete = self.end.get().is_some() && !self.is_billed();
        // What others wrote before they let go is seen from here on.
        fence(Ordering::Acquire);
        complete
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        std::iter::successors(self.models.get(), |line| line.next.get()).map(|line| &**line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tab_is_complete_when_all_have_let_go() {
        let owner =
            Owner { function: "f".parse().unwrap(), revision: RevisionId::FIRST, tenant: "acme".parse().unwrap() };
        let tray = Arc::new(Tray::default());
        let tab = tray.open(owner.into(), 1, Instant::now(), Arc::new(Meter::new(Instant::now())));
        let (a, b): (ModelName, ModelName) = ("a".parse().unwrap(), "b:x".parse().unwrap());
        let bills = [tab.bill(&a), tab.bill(&b), tab.bill(&a)];
        assert!(Arc::ptr_eq(&bills[0], &bills[2]) && !Arc::ptr_eq(&bills[0], &bills[1]));
        assert_eq!(tab.read().models.iter().map(|(model, _)| model.as_str()).collect::<Vec<_>>(), ["a", "b:x"]);
        tab.close(End { outcome: "ok", wall: Duration::ZERO, queue: Duration::ZERO });
        assert!(!tab.is_complete());
        let [one, two, three] = bills;
        drop((one, three));
        assert!(!tab.is_complete(), "the engine still holds one");
        drop(two);
        assert!(tab.is_complete());
    }
}
