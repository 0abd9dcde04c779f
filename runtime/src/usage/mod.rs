//! The meter: what each invocation used, written down so that it counts whatever happens to the host.
//!
//! A request has a [`Tab`], to which it, its guest's meter and the engine add without a lock. It lies in a tray of the request's
//! thread: the clerk, a thread of its own, comes by four times a second, and appends what those have used that ended
//! to the journal, and how far those are that run on. What is on disk there is billed; `billed_through` says up to which
//! record. When a host dies, the next one finds in the journal what ran, and bills what was written down last: at most
//! a second is lost. Records have numbers, and the books that sum them up know the last one they have, so that none counts twice.
//!
//! ```text
//! usage/000000000017.journal    frames of records, checksummed; the newest grows, the oldest go
//! usage/books.redb              sums by hour, tenant, function and model
//! ```

mod books;
mod clerk;
mod frame;
mod journal;
mod query;
mod record;
mod since;
mod tab;
mod tray;
pub mod when;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use self::books::Books;
use self::clerk::{Clerk, now_ms};
use self::frame::{Frame, FrameBuilder, Row};
use self::journal::{Frames, Journal};
pub use self::query::{BilledThrough, By, NumberedRecord, Query, Report, UsageRow};
use self::record::Sums;
pub use self::record::{Key, ModelUse, Record, Totals};
pub use self::tab::{End, Owner, Tab};
use self::tray::Trays;
use crate::instance::Meter;
use crate::names::{FunctionName, Tenant};

/// Functions and models of which tokens are counted under their own names; beyond that they are counted as `(other)`.
const MAX_COUNTED: usize = 4096;
/// Most records that are given at once.
pub const MAX_RECORDS: usize = 10_000;

/// Why usage cannot be written down, or read.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The journal.
    #[error("the journal of usage in {path} fails: {source}", path = path.display())]
    Journal {
        /// Its folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The books.
    #[error("the books of usage in {path} fail: {source}", path = path.display())]
    Books {
        /// Their folder.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
}

/// The meter of a host.
pub struct Usage {
    folder: PathBuf,
    trays: Arc<Trays>,
    shared: Arc<Shared>,
    clerk: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

/// What the clerk and those who ask share.
struct Shared {
    books: Books,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is in the journal, and not in the books yet.
    pending: Sums,
    billed: BilledThrough,
    /// Since the host started: prompt, cached and generated tokens, by function and model.
    tokens: BTreeMap<(String, String), [u64; 3]>,
    lost: u64,
    /// Records that the disk did not take yet.
    waiting: u64,
}

impl Usage {
    /// Opens the meter in `folder`; ids of invocations begin with `start`. What ran when the process before died is billed.
    /// Blocks while it reads.
    ///
    /// # Errors
    /// See [`UsageError`].
    pub fn open(folder: &Path, start: u32) -> Result<Self, UsageError> {
        let journal_error = |source| UsageError::Journal { path: folder.to_owned(), source };
        let books_error = |source: redb::Error| UsageError::Books { path: folder.to_owned(), source: Box::new(source) };
        std::fs::create_dir_all(folder).map_err(journal_error)?;
        let books = Books::open(&folder.join("books.redb")).map_err(books_error)?;
        let through = books.through().map_err(books_error)?;
        let left = Left::read(folder, through).map_err(journal_error)?;
        books.add(&left.sums, left.last).map_err(books_error)?;
        let killed = left.killed();
        if !killed.ended.is_empty() {
            tracing::warn!(
                invocations = killed.ended.len(),
                "the process before was killed while these ran; billed as far as known"
            );
        }
        let journal = Journal::begin(folder, &killed).map_err(journal_error)?;
        let shared = Arc::new(Shared { books, state: Mutex::default() });
        shared.settle(&killed);
        shared.state().tokens.clear();
        let trays = Arc::new(Trays::new());
        let (stop, stopped) = mpsc::channel();
        let clerk = Clerk::new(folder.to_owned(), trays.clone(), shared.clone(), start, killed.last() + 1, journal);
        let thread = std::thread::Builder::new().name("hob-usage".into()).spawn(move || clerk.run(&stopped));
        let thread = thread.map_err(journal_error)?;
        Ok(Self { folder: folder.to_owned(), trays, shared, clerk: Mutex::new(Some((stop, thread))) })
    }

    /// Opens the tab of an invocation.
    pub fn begin(&self, owner: Arc<Owner>, number: u64, started: Instant, meter: Arc<Meter>) -> Arc<Tab> {
        self.trays.mine().open(owner, number, started, meter)
    }

    /// Writes down all there is, and ends: what runs on is billed as far as it is.
    pub fn stop(&self) {
        let clerk = self.clerk.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = clerk {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the thread that writes usage down has panicked");
            }
        }
    }

    /// Up to where usage is durable.
    pub fn billed_through(&self) -> BilledThrough {
        self.shared.state().billed
    }

    /// Sums of usage.
    ///
    /// # Errors
    /// `Books`.
    pub fn report(&self, query: &Query) -> Result<Report, UsageError> {
        let (page, pending, billed_through) = {
            // Compacting moves sums from one to the other: both are looked at before or after.
            let state = self.shared.state();
            let page = self.shared.books.page().map_err(|source| self.books_error(source))?;
            (page, state.pending.clone(), state.billed)
        };
        let mut sums = Sums::new();
        let mut add = |key: Key, totals: &Totals| {
            if query.has(&key) {
                sums.entry(query.group(key)).or_default().add(totals);
            }
        };
        page.read(query.hours(), &mut add).map_err(|source| self.books_error(source))?;
        pending.into_iter().for_each(|(key, totals)| add(key, &totals));
        Ok(Report { billed_through, rows: query.rows(sums) })
    }

    /// Records after number `after`, in the order of their numbers, `most` and [`MAX_RECORDS`] at most. Only durable ones; and
    /// only as far back as the journal is kept.
    ///
    /// # Errors
    /// `Journal`.
    pub fn records(&self, query: &Query, after: u64, most: usize) -> Result<Vec<NumberedRecord>, UsageError> {
        let most = most.min(MAX_RECORDS);
        self.read(query, after, most).map_err(|source| UsageError::Journal { path: self.folder.clone(), source })
    }

    fn read(&self, query: &Query, after: u64, most: usize) -> std::io::Result<Vec<NumberedRecord>> {
        let through = self.billed_through().record;
        let (mut found, mut last) = (Vec::new(), after);
        for path in files_after(&self.folder, after)? {
            for frame in Frames::open(&path)? {
                for (number, record) in frame.records() {
                    if found.len() >= most || number > through {
                        return Ok(found);
                    }
                    // A frame that could not be written for sure was written again.
                    if number <= last {
                        continue;
                    }
                    last = number;
                    if query.has_record(&record) {
                        found.push(NumberedRecord { record: number, of: record });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Prompt, cached and generated tokens since the host started, by function and model.
    pub fn tokens(&self) -> BTreeMap<(String, String), [u64; 3]> {
        self.shared.state().tokens.clone()
    }

    /// Records that were lost because the disk took none for too long.
    pub fn lost(&self) -> u64 {
        self.shared.state().lost
    }

    /// Records that wait, because the disk took none when it was tried last.
    pub fn waiting(&self) -> u64 {
        self.shared.state().waiting
    }

    /// Tokens of prompts and answers since a moment, in seconds since 1970, that is not long ago: of all that is in the journal, also by
    /// what runs on or did when a process before was killed. Blocks while it reads.
    ///
    /// # Errors
    /// `Journal`.
    pub fn tokens_since(&self, since: u64) -> Result<Vec<(Tenant, FunctionName, u64)>, UsageError> {
        let taken = since::tokens(&self.folder, since.saturating_mul(1000));
        taken.map_err(|source| UsageError::Journal { path: self.folder.clone(), source })
    }

    fn books_error(&self, source: redb::Error) -> UsageError {
        UsageError::Books { path: self.folder.clone(), source: Box::new(source) }
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a frame is durable.
    fn settle(&self, frame: &Frame) {
        let sums = frame.sums();
        let mut state = self.state();
        state.billed = BilledThrough { record: frame.last(), at_ms: frame.at_ms };
        for (key, totals) in sums {
            if !key.model.is_empty() {
                state.count(&key, &totals);
            }
            state.pending.entry(key).or_default().add(&totals);
        }
    }

    /// Puts what is durable into the books.
    fn compact(&self) -> Result<(), redb::Error> {
        let mut state = self.state();
        if state.pending.is_empty() {
            return Ok(());
        }
        self.books.add(&state.pending, state.billed.record)?;
        state.pending.clear();
        Ok(())
    }

    /// Makes an hour before hour `before` part of its day, if there is one.
    fn fold(&self, before: u32) -> Result<(), redb::Error> {
        self.books.fold(before).map(drop)
    }

    fn lose(&self, records: u64) {
        self.state().lost += records;
    }

    fn keep_waiting(&self, records: u64) {
        self.state().waiting = records;
    }
}

impl State {
    fn count(&mut self, key: &Key, totals: &Totals) {
        let mut of = (key.function.clone(), key.model.clone());
        if !self.tokens.contains_key(&of) && self.tokens.len() >= MAX_COUNTED {
            of = ("(other)".into(), "(other)".into());
        }
        let counts = self.tokens.entry(of).or_default();
        for (count, more) in
            counts.iter_mut().zip([totals.prompt_tokens, totals.cached_tokens, totals.generated_tokens])
        {
            *count = count.saturating_add(more);
        }
    }
}

/// What a process left in the journal.
struct Left {
    /// Records that are not in the books, summed up.
    sums: Sums,
    /// The number of the last record.
    last: u64,
    /// What ran, and the frame that says so.
    running: HashMap<u64, (Arc<Frame>, Row)>,
}

impl Left {
    /// Reads from the newest file that begins on: all before it is in the books, and what runs is in its first frame.
    fn read(folder: &Path, through: u64) -> std::io::Result<Self> {
        let mut left = Self { sums: Sums::new(), last: through, running: HashMap::new() };
        let mut begun = Vec::new();
        for (_, path) in journal::files(folder)?.into_iter().rev() {
            let begins = Frames::open(&path)?.next().is_some_and(|first| first.begins);
            begun.push(path);
            if begins {
                break;
            }
        }
        for path in begun.into_iter().rev() {
            Frames::open(&path)?.for_each(|frame| left.note(frame));
        }
        Ok(left)
    }

    fn note(&mut self, frame: Frame) {
        for row in &frame.ended {
            self.running.remove(&row.number);
        }
        if frame.begins {
            self.running.clear();
        }
        if frame.first > self.last {
            self.last = frame.last().max(self.last);
            for (key, totals) in frame.sums() {
                self.sums.entry(key).or_default().add(&totals);
            }
        }
        if !frame.running.is_empty() {
            let frame = Arc::new(frame);
            self.running.extend(frame.running.iter().map(|row| (row.number, (frame.clone(), row.clone()))));
        }
    }

    /// A frame that begins a file, and has as ended what ran.
    fn killed(&self) -> Frame {
        let start = self.running.values().next().map_or(0, |(frame, _)| frame.start);
        let mut builder = FrameBuilder::new(self.last + 1, start, now_ms(), Instant::now());
        let ordered: BTreeMap<_, _> = self.running.iter().collect();
        ordered.values().for_each(|(frame, row)| builder.add_killed(frame, row));
        Frame { begins: true, ..builder.build() }
    }
}

/// The files that may have records after number `after`, the oldest first.
fn files_after(folder: &Path, after: u64) -> std::io::Result<Vec<PathBuf>> {
    let mut wanted = Vec::new();
    for (_, path) in journal::files(folder)?.into_iter().rev() {
        let first = Frames::open(&path)?.next().map(|frame| frame.first);
        wanted.push(path);
        if first.is_some_and(|first| first <= after + 1) {
            break;
        }
    }
    wanted.reverse();
    Ok(wanted)
}

#[cfg(test)]
mod tests;
