//! The first question to a server, and what its answer makes of the rest: pieces, or all in one go.

use std::io::Read as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::http::{Call, Reply, WebError, shown};
use super::partial::{PIECE, Partial};
use super::work::{BUFFER, after, content_range, pause, watch};
use super::{Fetcher, Remote, Show, TICK};
use crate::digest::Digest;
use crate::models::error::PullError;
use crate::models::progress::Progress;

/// A file in one go is begun again so often.
const MOST_STARTS: usize = 3;
/// Of a file of unknown length so much is taken before it is looked again whether there is room.
const LOOK: u64 = 64 << 20;

impl Fetcher<'_> {
    /// Gets what is missing, and the digest of all of it.
    pub(super) fn fill(
        &self,
        file: &Remote,
        partial: &mut Partial,
        show: Show<'_>,
    ) -> Result<(Digest, u64), PullError> {
        if let (_, Some(total)) = partial.known()
            && file.bytes.is_some_and(|bytes| bytes != total)
        {
            partial.forget()?;
        }
        if partial.is_whole() && file.digest().is_some() {
            return watch(&self.work(file, partial, None), None, show);
        }
        if file.bytes == Some(0) {
            partial.begin(Some(0))?;
            return watch(&self.work(file, partial, None), None, show);
        }
        let mut starts = 0;
        loop {
            let reply = match self.ask(file, partial) {
                // What is here is of a longer file than there is now.
                Err(PullError::Web(WebError::Refused { status: 416, .. })) if partial.done() > 0 => {
                    tracing::warn!(file = file.name, "there is another file now; all of it is fetched again");
                    partial.forget()?;
                    continue;
                }
                reply => reply?,
            };
            if reply.status() == 200 && partial.done() > 0 {
                // It is another file now, or this server knows no ranges: what is here is of no use.
                partial.forget()?;
                continue;
            }
            if reply.status() == 206 {
                let (first, total) = content_range(&reply).ok_or_else(|| PullError::Protocol {
                    url: shown(&reply.url),
                    why: "answers with a range of bytes and does not say which".into(),
                })?;
                self.is_expected(file, total)?;
                let validator = if file.digest().is_some() { None } else { reply.validator() };
                self.space.check(&file.name, total.saturating_sub(partial.reserved()))?;
                partial.fit(total, PIECE, validator.as_deref())?;
                let wanted = partial.pieces().iter().position(|piece| !piece.is_done());
                // The first answer is good for the first piece, if that is the one that it begins.
                let fits = wanted.is_some_and(|piece| partial.pieces()[piece].at() == first);
                let work = self.work(file, partial, validator);
                return watch(&work, fits.then_some(reply), show);
            }
            let length = reply.length();
            if let Some(length) = length {
                self.is_expected(file, length)?;
            }
            let total = length.or(file.bytes);
            self.space.check(&file.name, total.unwrap_or(1))?;
            partial.begin(total)?;
            starts += 1;
            match self.in_one_go(file, partial, reply, &mut *show)? {
                None => {
                    partial.end_here();
                    return watch(&self.work(file, partial, None), None, show);
                }
                Some(why) if starts >= MOST_STARTS => {
                    let total = total.map_or("?".into(), |total| total.to_string());
                    let done = partial.done();
                    partial.forget()?;
                    let why = format!(
                        "it broke off at {done} of {total} bytes {starts} times, and cannot be gone on with: {why}"
                    );
                    return Err(PullError::Protocol { url: shown(&file.url), why });
                }
                Some(_) => pause(Duration::from_millis(500 << starts), &self.stop),
            }
        }
    }

    /// The first question: for the first piece that is missing. Asked again for as long as patience lasts.
    fn ask(&self, file: &Remote, partial: &Partial) -> Result<Reply, PullError> {
        let missing = partial.pieces().iter().find(|piece| !piece.is_done());
        let range = missing.map_or((0, PIECE - 1), |piece| (piece.at(), piece.end.max(1) - 1));
        let validator = partial.validator().filter(|_| file.digest().is_none());
        let call = Call { range: Some(range), if_range: validator.as_deref(), ..Call::new(&file.url, &file.access) };
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            let asked = self.web.get(&call).and_then(|reply| match reply.status() {
                200 | 206 => Ok(reply),
                _ => Err(reply.refusal()),
            });
            let error = match asked {
                Ok(reply) => return Ok(reply),
                // A range beyond the end: there are fewer bytes than was said, or none.
                Err(WebError::Refused { status: 416, url, .. }) if partial.done() == 0 => {
                    return Err(PullError::Protocol {
                        url,
                        why: "has fewer bytes than it should; nothing more was kept, try again".into(),
                    });
                }
                Err(error) => error,
            };
            tries += 1;
            // Where nothing was got before, nobody listens perhaps: that is better told at once.
            let patience = if partial.done() > 0 { self.settings.patience } else { Duration::from_secs(3) };
            if !error.passes() || begun.elapsed() > patience.min(self.settings.patience) || tries > 8 {
                return Err(error.into());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(PullError::Stopped);
            }
            pause(after(&error).unwrap_or(Duration::from_millis(400 * tries)), &self.stop);
        }
    }

    /// The server's number of bytes against what the hub, the index or the manifest says.
    fn is_expected(&self, file: &Remote, got: u64) -> Result<(), PullError> {
        match file.bytes {
            Some(expected) if expected != got => Err(PullError::Wrong {
                what: file.name.clone(),
                expected: format!("{expected} bytes"),
                got: format!("{got}"),
            }),
            _ => Ok(()),
        }
    }

    /// Takes a whole answer. `Some` of what went wrong if it broke off.
    fn in_one_go(
        &self,
        file: &Remote,
        partial: &Partial,
        reply: Reply,
        show: Show<'_>,
    ) -> Result<Option<String>, PullError> {
        let total = partial.known().1.filter(|total| *total != u64::MAX);
        let mut reader = reply.into_reader();
        let mut buffer = vec![0; BUFFER];
        let (mut told, mut looked) = (Instant::now(), 0);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(PullError::Stopped);
            }
            let done = partial.done();
            let got = match reader.read(&mut buffer) {
                Ok(0) if total.is_none_or(|total| total == done) => return Ok(None),
                Ok(0) => return Ok(Some("the server closed the connection".into())),
                Ok(got) => got,
                Err(error) => return Ok(Some(error.to_string())),
            };
            if total.is_some_and(|total| done + got as u64 > total) {
                return Err(PullError::Wrong {
                    what: file.name.clone(),
                    expected: format!("{} bytes", total.unwrap_or(0)),
                    got: "more".into(),
                });
            }
            if total.is_none() && done >= looked {
                self.space.check(&file.name, LOOK)?;
                looked = done + LOOK;
            }
            partial.write(0, &buffer[..got])?;
            if told.elapsed() >= TICK {
                told = Instant::now();
                show(&Progress::File { name: &file.name, digest: file.digest(), done: partial.done(), total });
            }
        }
    }
}
