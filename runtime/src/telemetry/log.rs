//! The last lines of a function: what its guests printed, and what the host says of their ends.
//!
//! Kept in memory and bounded: so many lines and bytes for a function, so many bytes for all. The oldest go first, and a
//! reader that comes too late for some is told how many.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Most lines of a function.
const MAX_LINES: usize = 1000;
/// Most bytes of a function.
const MAX_BYTES: usize = 256 << 10;
/// Most bytes of all functions. Beyond, a function that prints keeps only [`SCARCE_BYTES`].
const MAX_ALL_BYTES: usize = 64 << 20;
/// What each function keeps in any case.
const SCARCE_BYTES: usize = 8 << 10;
/// What a line takes beside its text.
const LINE_BYTES: usize = 128;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counts the lines of a function, from 1.
    pub n: u64,
    /// When it was printed, in milliseconds since 1970.
    pub at_ms: u64,
    /// The invocation that it came from.
    pub id: String,
    /// `stdout`, `stderr`, `log` for `wasi:logging`, or `host` for what the host says.
    pub stream: Cow<'static, str>,
    /// The line.
    pub text: String,
}

/// What all logs hold together.
#[derive(Debug, Default)]
pub struct Room(AtomicUsize);

/// The last lines of one function.
#[derive(Debug)]
pub struct Log {
    kept: Mutex<Kept>,
    changed: Notify,
    room: Arc<Room>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    last: u64,
    closed: bool,
}

impl Kept {
    fn drop_oldest(&mut self, room: &Room) {
        if let Some(line) = self.lines.pop_front() {
            let bytes = line.text.len() + LINE_BYTES;
            self.bytes -= bytes;
            room.0.fetch_sub(bytes, Relaxed);
        }
    }
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// Lines that it has not seen.
    pub lines: Vec<Line>,
    /// The number of the last line there is; read on after that.
    pub last: u64,
    /// Lines that went before it came to them.
    pub missed: u64,
    /// There will be no more.
    pub closed: bool,
}

impl Log {
    /// An empty one.
    pub fn new(room: Arc<Room>) -> Self {
        Self { kept: Mutex::default(), changed: Notify::new(), room }
    }

    /// Adds a line.
    pub fn push(&self, id: &str, stream: &'static str, text: String) {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let bytes = text.len() + LINE_BYTES;
        let mut kept = self.kept();
        if kept.closed {
            return;
        }
        let all = self.room.0.fetch_add(bytes, Relaxed) + bytes;
        let most = if all > MAX_ALL_BYTES { SCARCE_BYTES } else { MAX_BYTES };
        kept.last += 1;
        kept.bytes += bytes;
        let line = Line { n: kept.last, at_ms, id: id.to_owned(), stream: stream.into(), text };
        kept.lines.push_back(line);
        while kept.lines.len() > MAX_LINES || kept.bytes > most && kept.lines.len() > 1 {
            kept.drop_oldest(&self.room);
        }
        drop(kept);
        self.changed.notify_waiters();
    }

    /// The lines after the one of number `after`.
    pub fn read(&self, after: u64) -> Read {
        let kept = self.kept();
        let missed = kept.lines.front().map_or(0, |first| (first.n - 1).saturating_sub(after));
        // Numbers are without gaps.
        let seen = kept.lines.front().map_or(0, |first| (after + 1).saturating_sub(first.n));
        let skip = usize::try_from(seen).unwrap_or(usize::MAX);
        let lines = kept.lines.iter().skip(skip).cloned().collect();
        Read { lines, last: kept.last, missed, closed: kept.closed }
    }

    /// Waits until there are lines after `after`, or there will be none.
    pub async fn grown(&self, after: u64) {
        loop {
            let changed = self.changed.notified();
            if self.has_grown(after) {
                return;
            }
            changed.await;
        }
    }

    fn has_grown(&self, after: u64) -> bool {
        let kept = self.kept();
        kept.last > after || kept.closed
    }

    /// Lets go of all lines; no more are taken.
    pub fn close(&self) {
        let mut kept = self.kept();
        kept.closed = true;
        while !kept.lines.is_empty() {
            kept.drop_oldest(&self.room);
        }
        drop(kept);
        self.changed.notify_waiters();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(read: &Read) -> Vec<&str> {
        read.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn a_reader_sees_each_line_once_and_hears_of_those_it_missed() {
        let log = Log::new(Arc::default());
        log.push("a", "stdout", "one".into());
        log.push("b", "stderr", "two".into());
        let read = log.read(0);
        assert_eq!((texts(&read), read.last, read.missed), (vec!["one", "two"], 2, 0));
        assert_eq!(texts(&log.read(1)), ["two"]);
        assert!(log.read(2).lines.is_empty());
        for n in 0..MAX_LINES {
            log.push("c", "stdout", n.to_string());
        }
        let read = log.read(1);
        assert_eq!((read.lines.len(), read.missed, read.lines[0].text.as_str()), (MAX_LINES, 1, "0"));
    }

    #[test]
    fn bytes_are_bounded_for_one_and_for_all() {
        let room = Arc::new(Room::default());
        let logs: Vec<_> = (0..400).map(|_| Log::new(room.clone())).collect();
        for log in &logs {
            for _ in 0..100 {
                log.push("a", "stdout", "x".repeat(4096));
            }
            assert!(log.kept().bytes <= MAX_BYTES);
        }
        assert!(room.0.load(Relaxed) <= MAX_ALL_BYTES + 400 * SCARCE_BYTES, "{room:?}");
        assert!(!logs[399].read(0).lines.is_empty(), "the last one to come has its share");
        drop(logs);
        assert_eq!(room.0.load(Relaxed), 0, "and all of it comes back");
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_line_and_by_the_end() {
        let log = Arc::new(Log::new(Arc::default()));
        let waiter = |after| {
            let log = log.clone();
            tokio::spawn(async move { log.grown(after).await })
        };
        let waits = waiter(0);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        log.push("a", "stdout", "x".into());
        waits.await.unwrap();
        let waits = waiter(1);
        tokio::task::yield_now().await;
        log.close();
        waits.await.unwrap();
        log.push("a", "stdout", "too late".into());
        assert!(log.read(0).lines.is_empty() && log.read(0).closed);
    }
}
