//! The threads that get the pieces of a file, and the one that watches them.

use std::collections::VecDeque;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use url::Url;

use super::http::{Call, Reply, WebError, shown};
use super::partial::Partial;
use super::{Fetcher, Remote, Show, TICK};
use crate::digest::{Digest, Hasher};
use crate::models::error::PullError;
use crate::models::progress::Progress;

/// Bytes that are written, and written down, at once.
pub(super) const BUFFER: usize = 256 << 10;
/// Between two attempts there is at most this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the threads share.
pub(super) struct Work<'a> {
    fetcher: &'a Fetcher<'a>,
    file: &'a Remote,
    partial: &'a Partial,
    /// How many bytes the file has, and what changes when it does.
    total: u64,
    validator: Option<String>,
    queue: Mutex<VecDeque<usize>>,
    /// Where the last answer came from, which spares asking the way for each piece.
    place: Mutex<Option<Url>>,
    last_byte: Mutex<Instant>,
    failed: Mutex<Option<PullError>>,
    stopped: AtomicBool,
    working: AtomicUsize,
    bell: Condvar,
}

/// What a piece came to.
enum Piece {
    Done,
    /// It may go on in a moment.
    Again(String, Option<Duration>),
}

impl Fetcher<'_> {
    /// What is missing of a file.
    pub(super) fn work<'a>(&'a self, file: &'a Remote, partial: &'a Partial, validator: Option<String>) -> Work<'a> {
        let missing = |(number, piece): (usize, &super::partial::Piece)| (!piece.is_done()).then_some(number);
        Work {
            fetcher: self,
            file,
            partial,
            total: partial.known().1.unwrap_or(0),
            validator,
            queue: Mutex::new(partial.pieces().iter().enumerate().filter_map(missing).collect()),
            place: Mutex::new(None),
            last_byte: Mutex::new(Instant::now()),
            failed: Mutex::new(None),
            stopped: AtomicBool::new(false),
            working: AtomicUsize::new(0),
            bell: Condvar::new(),
        }
    }
}

/// Sees to it that all pieces come, hashes what is there, and tells how far it is. The digest, and how many bytes.
pub(super) fn watch(work: &Work<'_>, first: Option<Reply>, show: Show<'_>) -> Result<(Digest, u64), PullError> {
    let mut queue = work.queue.lock().expect("nobody panics with it");
    let threads = work.fetcher.settings.connections.min(queue.len());
    // An answer that is there already is to the question for the first piece: whoever reads it must have that one.
    let mut first = first.and_then(|reply| Some((queue.pop_front()?, reply)));
    drop(queue);
    work.working.store(threads, Ordering::Release);
    let mut hash = Hash::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let first = first.take();
            scope.spawn(move || work.run(first));
        }
        let all = work.total;
        let tell = |show: Show<'_>| {
            let (name, digest) = (work.file.name.as_str(), work.file.digest());
            show(&Progress::File { name, digest, done: work.partial.done(), total: Some(all) });
        };
        while work.working.load(Ordering::Acquire) > 0 {
            tell(&mut *show);
            if work.fetcher.stop.load(Ordering::Relaxed) {
                work.fail(PullError::Stopped);
            }
            let until = Instant::now() + TICK;
            if let Err(error) = hash.go_on(work.partial, until - TICK / 4) {
                work.fail(error.into());
            }
            let guard = work.failed.lock().expect("nobody panics with it");
            if work.working.load(Ordering::Acquire) > 0 {
                let left = until.saturating_duration_since(Instant::now());
                drop(work.bell.wait_timeout(guard, left));
            }
        }
        tell(&mut *show);
    });
    if let Some(error) = work.failed.lock().expect("nobody panics with it").take() {
        return Err(error);
    }
    while hash.done < work.partial.prefix() {
        show(&Progress::Checking { name: &work.file.name, done: hash.done, total: work.total });
        hash.go_on(work.partial, Instant::now() + TICK)?;
        if work.fetcher.stop.load(Ordering::Relaxed) {
            return Err(PullError::Stopped);
        }
    }
    Ok((hash.hasher.finish(), hash.done))
}

/// A digest that follows the bytes that are there.
#[derive(Default)]
struct Hash {
    hasher: Hasher,
    done: u64,
}

impl Hash {
    /// Takes bytes in up to the first gap, until then at most.
    fn go_on(&mut self, partial: &Partial, until: Instant) -> std::io::Result<()> {
        let end = partial.prefix();
        let mut buffer = vec![0; (1 << 20).min(end - self.done) as usize];
        while self.done < end {
            let most = buffer.len().min((end - self.done) as usize);
            let got = partial.read_at(&mut buffer[..most], self.done)?;
            if got == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.hasher.update(&buffer[..got]);
            self.done += got as u64;
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }
}

impl Work<'_> {
    /// One thread's part.
    fn run(&self, mut first: Option<(usize, Reply)>) {
        let mut buffer = vec![0; BUFFER];
        let mut tries = 0;
        while !self.stopped.load(Ordering::Acquire) {
            let next = match first.take() {
                Some((number, reply)) => Some((number, Some(reply))),
                None => self.queue.lock().expect("nobody panics with it").pop_front().map(|number| (number, None)),
            };
            let Some((number, mut reply)) = next else { break };
            loop {
                match self.piece(number, reply.take(), &mut buffer, &mut tries) {
                    Ok(Piece::Done) => break,
                    Ok(Piece::Again(why, wait)) => {
                        tries += 1;
                        if !self.is_patient(&why) || !self.pause(tries, wait) {
                            break;
                        }
                    }
                    Err(error) => {
                        self.fail(error);
                        break;
                    }
                }
            }
        }
        self.working.fetch_sub(1, Ordering::AcqRel);
        let _guard = self.failed.lock();
        self.bell.notify_all();
    }

    /// Gets what is missing of a piece.
    fn piece(
        &self,
        number: usize,
        reply: Option<Reply>,
        buffer: &mut [u8],
        tries: &mut u32,
    ) -> Result<Piece, PullError> {
        let piece = &self.partial.pieces()[number];
        if piece.is_done() {
            return Ok(Piece::Done);
        }
        let reply = match reply {
            Some(reply) => reply,
            None => match self.request(piece.at(), piece.end)? {
                Ok(reply) => reply,
                Err(again) => return Ok(again),
            },
        };
        *self.place.lock().expect("nobody panics with it") = Some(reply.url.clone());
        let mut reader = reply.into_reader();
        while !piece.is_done() {
            if self.stopped.load(Ordering::Acquire) {
                return Ok(Piece::Done);
            }
            let most = buffer.len().min((piece.end - piece.at()) as usize);
            match reader.read(&mut buffer[..most]) {
                Ok(0) => return Ok(Piece::Again("the server closed the connection".into(), None)),
                Ok(got) => {
                    self.partial.write(number, &buffer[..got])?;
                    *self.last_byte.lock().expect("nobody panics with it") = Instant::now();
                    *tries = 0;
                }
                Err(error) => return Ok(Piece::Again(error.to_string(), None)),
            }
        }
        // At its end the connection is free for the next piece; it would not be with bytes that nobody read.
        let _ = reader.read(&mut buffer[..1]);
        Ok(Piece::Done)
    }

    /// Asks for bytes: at the place where the last answer came from, or where the file is said to be.
    fn request(&self, first: u64, end: u64) -> Result<Result<Reply, Piece>, PullError> {
        let place = self.place.lock().expect("nobody panics with it").clone();
        let url = place.as_ref().unwrap_or(&self.file.url);
        let tag = self.validator.as_deref();
        let call = Call { range: Some((first, end - 1)), if_range: tag, ..Call::new(url, &self.file.access) };
        let error = match self.fetcher.web.get(&call) {
            Ok(reply) if reply.status() == 206 => {
                let same = content_range(&reply) == Some((first, self.total));
                let tag_is_same = tag.is_none() || reply.validator().is_none_or(|now| Some(now.as_str()) == tag);
                if same && tag_is_same {
                    return Ok(Ok(reply));
                }
                return Err(self.changed(&reply));
            }
            // Either it is another file now, or one of several servers knows no ranges.
            Ok(reply) if reply.status() == 200 && tag.is_some() => return Err(self.changed(&reply)),
            Ok(reply) if reply.status() == 200 => {
                return Ok(Err(Piece::Again("the server gives all bytes where some were asked for".into(), None)));
            }
            // A range beyond its end: it is a shorter one.
            Ok(reply) if reply.status() == 416 => return Err(self.changed(&reply)),
            Ok(reply) => reply.refusal(),
            Err(error) => error,
        };
        // The right to read at a place ends after a while: then the way is asked again.
        let lapsed = place.as_ref().is_some_and(|place| place != &self.file.url)
            && matches!(error.status(), Some(400 | 401 | 403 | 404 | 410));
        *self.place.lock().expect("nobody panics with it") = None;
        if lapsed || error.passes() {
            return Ok(Err(Piece::Again(error.to_string(), after(&error))));
        }
        Err(error.into())
    }

    fn changed(&self, reply: &Reply) -> PullError {
        PullError::Protocol {
            url: shown(&reply.url),
            why: "has another file than a moment ago, or other bytes of it than were asked for; pull again".into(),
        }
    }

    /// Whether it is worth to go on; else says that it is not.
    fn is_patient(&self, why: &str) -> bool {
        let silence = self.last_byte.lock().expect("nobody panics with it").elapsed();
        let patience = self.fetcher.settings.patience;
        if silence < patience {
            return true;
        }
        let (done, total) = (self.partial.done(), self.total.to_string());
        self.fail(PullError::Broken { what: self.file.name.clone(), done, total, patience, why: why.to_owned() });
        false
    }

    /// Waits before the next attempt. `false` if there is to be none.
    fn pause(&self, tries: u32, wait: Option<Duration>) -> bool {
        let wait = wait.unwrap_or(Duration::from_millis(200) * 2_u32.pow(tries.min(5)));
        pause(wait.min(LONGEST_PAUSE), &self.stopped);
        !self.stopped.load(Ordering::Acquire)
    }

    /// The first failure counts, and stops the rest.
    fn fail(&self, error: PullError) {
        self.failed.lock().expect("nobody panics with it").get_or_insert(error);
        self.stopped.store(true, Ordering::Release);
    }
}

/// When a server says that it may be asked again.
pub(super) fn after(error: &WebError) -> Option<Duration> {
    match error {
        WebError::Refused { retry_after, .. } => retry_after.map(|wait| wait.min(LONGEST_PAUSE)),
        _ => None,
    }
}

/// Waits, but not beyond the moment at which `stop` is set.
pub(super) fn pause(wait: Duration, stop: &AtomicBool) {
    let until = Instant::now() + wait;
    while Instant::now() < until && !stop.load(Ordering::Acquire) {
        std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
    }
}

/// Where the bytes begin, and how many the file has: `bytes 0-99/1000`.
pub(super) fn content_range(reply: &Reply) -> Option<(u64, u64)> {
    let (range, total) = reply.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last < total).then_some((first, total))
}
