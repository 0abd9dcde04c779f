//! The thread that writes the journal: it comes by all trays, writes down what those have used that ended, and how far those
//! are that run on. Nobody waits for it.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Shared;
use super::frame::{Frame, FrameBuilder, RUNNING};
use super::journal::Journal;
use super::tray::Trays;

/// How often it looks. With [`TELL`], the look itself and the disk this is less than the second that may be lost.
const LOOK: Duration = Duration::from_millis(250);
/// How often it writes down how far an invocation is that runs on.
const TELL: Duration = Duration::from_millis(400);
/// How often what was written is put into the books.
const COMPACT: Duration = Duration::from_secs(5);
/// Bytes of a file of the journal, after which another begins: what is read at most when a host starts.
const FILE_BYTES: u64 = 8 << 20;
/// Bytes of all files that are kept, for who wants single records.
const KEPT_BYTES: u64 = 256 << 20;
/// Hours for which sums are kept by the hour: five weeks. After that they are by the day.
const HOURS: u64 = 35 * 24;
/// Records that are kept in memory while the disk takes none; beyond that the oldest are lost.
const BACKLOG: usize = 200_000;
/// How long the engine has to let go of sequences that were cut off: a step, or some.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the log says that the disk takes none.
const COMPLAIN: Duration = Duration::from_secs(30);

/// What the thread works on.
pub(super) struct Clerk {
    pub folder: PathBuf,
    pub trays: Arc<Trays>,
    pub shared: Arc<Shared>,
    /// What the ids of this process's invocations begin with.
    pub start: u32,
    /// The number of the next record.
    pub next: u64,
    /// The newest file; none after it could not be written.
    pub journal: Option<Journal>,
    backlog: VecDeque<Frame>,
    compacted: Instant,
    complained: Option<Instant>,
}

impl Clerk {
    /// A clerk that goes on after record `next - 1` in `journal`.
    pub fn new(
        folder: PathBuf,
        trays: Arc<Trays>,
        shared: Arc<Shared>,
        start: u32,
        next: u64,
        journal: Journal,
    ) -> Self {
        let (journal, backlog, compacted, complained) = (Some(journal), VecDeque::new(), Instant::now(), None);
        Self { folder, trays, shared, start, next, journal, backlog, compacted, complained }
    }

    /// Works until the other end of `stop` is gone; then writes down all there is.
    pub fn run(mut self, stop: &Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOOK) {
            self.look(false);
            self.compact(false);
        }
        self.look(false);
        let until = Instant::now() + PATIENCE;
        while self.trays.waits() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            self.look(false);
        }
        self.look(true);
        self.compact(true);
        let lost = self.waiting();
        if lost > 0 {
            self.shared.lose(lost);
            tracing::error!(
                records = lost,
                "the host stops, and the disk took no usage to the end: these records are lost"
            );
        }
    }

    /// Records that the disk did not take yet.
    fn waiting(&self) -> u64 {
        self.backlog.iter().map(|frame| frame.ended.len() as u64).sum()
    }

    /// Takes what is in the trays, and writes. The last time also what is not complete.
    fn look(&mut self, last: bool) {
        let now = Instant::now();
        let mut frame = FrameBuilder::new(self.next, self.start, now_ms(), now);
        if last {
            for tab in self.trays.take_all(|ended| frame.add(ended, None)) {
                frame.add(&tab.read(), (!tab.is_closed()).then_some("shutdown"));
            }
        } else {
            for tab in self.trays.take(now, TELL, |ended| frame.add(ended, None)) {
                frame.add(&tab.read(), Some(RUNNING));
            }
        }
        let frame = frame.build();
        if !frame.is_empty() {
            self.next = frame.last() + 1;
            self.backlog.push_back(frame);
        }
        if let Err(error) = self.write() {
            self.journal = None;
            self.keep_within_bounds();
            self.complain(&error);
        }
        self.shared.keep_waiting(self.waiting());
    }

    /// Writes what waits to be written.
    fn write(&mut self) -> io::Result<()> {
        while let Some(frame) = self.backlog.front() {
            let journal = match &mut self.journal {
                Some(journal) => journal,
                // One that could not be written to is not gone on with: nobody knows how it ends.
                None => {
                    self.shared.compact().map_err(io::Error::other)?;
                    let begin = self.running(frame.first);
                    self.journal.insert(Journal::begin(&self.folder, &begin)?)
                }
            };
            journal.append(frame)?;
            if let Some(frame) = self.backlog.pop_front() {
                self.shared.settle(&frame);
            }
        }
        Ok(())
    }

    /// A frame that begins a file: what runs now, before record `first`.
    fn running(&self, first: u64) -> Frame {
        let now = Instant::now();
        let mut frame = FrameBuilder::new(first, self.start, now_ms(), now);
        self.trays.told(now, TELL, |reading| frame.add(reading, Some(RUNNING)));
        self.backlog.iter().for_each(|unwritten| frame.add_unwritten(unwritten, TELL));
        Frame { begins: true, ..frame.build() }
    }

    /// Puts what was written into the books, if it is time.
    fn compact(&mut self, now: bool) {
        let full = self.journal.as_ref().is_some_and(|journal| journal.bytes() >= FILE_BYTES);
        if !now && !full && self.compacted.elapsed() < COMPACT {
            return;
        }
        self.compacted = Instant::now();
        if let Err(error) = self.shared.compact() {
            return self.complain(&error);
        }
        // One at a time: the next look must not wait.
        if let Err(error) = self.shared.fold((now_ms() / 3_600_000).saturating_sub(HOURS) as u32) {
            self.complain(&error);
        }
        // Not before all of it is in the books: of the journal a host that starts reads only the newest file.
        if full && let Some(journal) = self.journal.take() {
            match Journal::begin(&self.folder, &self.running(self.next)) {
                Ok(new) => {
                    if let Err(error) = new.prune(KEPT_BYTES) {
                        tracing::warn!(%error, "an old file of the journal cannot be removed");
                    }
                    self.journal = Some(new);
                }
                Err(error) => {
                    self.journal = Some(journal);
                    self.complain(&error);
                }
            }
        }
    }

    fn keep_within_bounds(&mut self) {
        let mut waiting: usize = self.backlog.iter().map(|frame| frame.ended.len()).sum();
        // How far those are that run is told again.
        self.backlog.retain(|frame| !frame.ended.is_empty());
        while waiting > BACKLOG
            && let Some(lost) = self.backlog.pop_front()
        {
            waiting -= lost.ended.len();
            self.shared.lose(lost.ended.len() as u64);
        }
    }

    fn complain(&mut self, error: &dyn std::error::Error) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            let waiting = self.waiting();
            tracing::error!(%error, waiting, "usage cannot be written down; is the disk full?");
            self.complained = Some(Instant::now());
        }
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        // Also when it has panicked: what nobody takes must not pile up.
        self.trays.close();
    }
}

/// Now, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::instance::Meter;
    use crate::usage::books::Books;
    use crate::usage::journal::Frames;
    use crate::usage::tab::{End, Owner};

    fn run(trays: &Trays, number: u64) {
        let owner =
            Owner { function: "f".parse().unwrap(), revision: "r1".parse().unwrap(), tenant: "acme".parse().unwrap() };
        let tab = trays.mine().open(owner.into(), number, Instant::now(), Arc::new(Meter::new(Instant::now())));
        tab.close(End { outcome: "ok", wall: Duration::ZERO, queue: Duration::ZERO });
    }

    /// A clerk whose disk takes nothing until the folder that is given is made.
    fn without_a_disk(home: &std::path::Path) -> (Clerk, Arc<Trays>, PathBuf) {
        let folder = home.join("usage");
        let books = Books::open(&home.join("books.redb")).unwrap();
        let shared = Arc::new(Shared { books, state: Default::default() });
        let trays = Arc::new(Trays::new());
        (Clerk::new(folder.clone(), trays.clone(), shared, 1, 1, Journal::full(&folder)), trays, folder)
    }

    #[test]
    fn a_full_disk_loses_nothing_when_there_is_room_again() {
        let home = tempfile::tempdir().unwrap();
        let (mut clerk, trays, folder) = without_a_disk(home.path());
        for n in 1..=3 {
            run(&trays, n);
            clerk.look(false);
            let state = clerk.shared.state();
            assert_eq!((state.billed.record, state.waiting, state.lost), (0, n, 0), "none of it is billed yet");
        }
        assert!(clerk.complained.is_some(), "the log says so");
        std::fs::create_dir(&folder).unwrap();
        run(&trays, 4);
        clerk.look(false);
        {
            let state = clerk.shared.state();
            assert_eq!((state.billed.record, state.waiting, state.lost), (4, 0, 0));
        }
        let frames = Frames::open(&folder.join("000000000001.journal")).unwrap();
        assert_eq!(frames.map(|frame| frame.ended.len()).sum::<usize>(), 4);
    }

    #[test]
    fn what_the_disk_never_took_is_counted_as_lost() {
        let home = tempfile::tempdir().unwrap();
        let (clerk, trays, _) = without_a_disk(home.path());
        let shared = clerk.shared.clone();
        (1..=5).for_each(|n| run(&trays, n));
        let (stop, stopped) = mpsc::channel::<()>();
        drop(stop);
        clerk.run(&stopped);
        let state = shared.state();
        assert_eq!((state.billed.record, state.lost), (0, 5));
    }

    #[test]
    fn there_is_a_bound_to_what_waits() {
        let home = tempfile::tempdir().unwrap();
        let (mut clerk, trays, _) = without_a_disk(home.path());
        let beyond = 1000;
        for n in 0..(BACKLOG + beyond) as u64 {
            run(&trays, n);
            if n % 500 == 499 {
                clerk.look(false);
            }
        }
        clerk.look(false);
        let state = clerk.shared.state();
        assert_eq!((state.waiting, state.lost), (BACKLOG as u64, beyond as u64));
    }
}
