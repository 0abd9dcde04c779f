//! Getting one file: in pieces over several connections, going on where an earlier attempt stopped, checked by its digest.
//!
//! The first answer decides: a server that knows ranges is asked for pieces by several threads, one that does not gives
//! the file in one go. Bytes are hashed as they come, from the beginning of the file to the first gap. A connection that
//! breaks is made again for as long as bytes come now and then (`HOB_PULL_PATIENCE`). Progress is told by the thread that
//! asked, some times a second.

pub mod access;
mod fill;
pub mod http;
pub(crate) mod partial;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha1::{Digest as _, Sha1};
use url::Url;

use super::error::PullError;
use super::progress::Progress;
use super::settings::PullSettings;
use super::space::Space;
use crate::digest::Digest;
use access::Access;
use http::Web;
use partial::Partial;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// A file that can be fetched.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where it is.
    pub url: Url,
    /// Who asks.
    pub access: Access,
    /// For people.
    pub name: String,
    /// How many bytes it has, if that is known.
    pub bytes: Option<u64>,
    /// What it must be.
    pub expect: Expect,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// This, by what it is.
    Sha256(Digest),
    /// This, by the name that git has for it: hexadecimal.
    Git(String),
    /// Whatever the server says, over a connection that is trusted.
    Anything,
}

impl Remote {
    /// What it is called while it is on its way: the same for the same file, wherever it comes from.
    fn key(&self) -> String {
        match &self.expect {
            Expect::Sha256(digest) => digest.file_name(),
            Expect::Git(id) => format!("git-{id}"),
            Expect::Anything => format!("url-{}", Digest::of(self.url.as_str().as_bytes()).hex()),
        }
    }

    /// Its digest, where that is known before.
    pub fn digest(&self) -> Option<Digest> {
        match self.expect {
            Expect::Sha256(digest) => Some(digest),
            _ => None,
        }
    }
}

/// A file that is here, whole and right, and has no place yet.
pub struct Fetched {
    partial: Partial,
    /// What it is.
    pub digest: Digest,
    /// How many bytes it has.
    pub bytes: u64,
}

impl Fetched {
    /// Its bytes, from the beginning.
    ///
    /// # Errors
    /// What the system said.
    pub fn reader(&self) -> std::io::Result<std::fs::File> {
        self.partial.reader()
    }

    /// Gives it its place.
    ///
    /// # Errors
    /// What the system said.
    pub fn keep(self, place: &Path) -> std::io::Result<()> {
        self.partial.keep(place)
    }

    /// Removes it.
    pub fn discard(self) {
        self.partial.discard();
    }
}

/// Gets files into a folder.
pub struct Fetcher<'a> {
    /// Makes the calls.
    pub web: &'a Web,
    /// How.
    pub settings: &'a PullSettings,
    /// Where files lie while they are on their way.
    pub folder: PathBuf,
    /// Who says whether there is room.
    pub space: &'a Space,
    /// Set when whoever asked has left.
    pub stop: Arc<AtomicBool>,
}

/// Who is told how far it is.
pub type Show<'a> = &'a mut dyn FnMut(&Progress<'_>);

impl Fetcher<'_> {
    /// Gets a file, or what is missing of it. `None` if what it is for has come to be meanwhile, as `is_here` says: another
    /// process had the same aim.
    ///
    /// # Errors
    /// See [`PullError`]. Of a file that is wrong nothing is left; one that broke off is gone on with the next time.
    pub fn fetch(
        &self,
        file: &Remote,
        is_here: &dyn Fn() -> bool,
        show: Show<'_>,
    ) -> Result<Option<Fetched>, PullError> {
        let mut partial = self.take(file, &mut *show)?;
        if is_here() {
            partial.discard();
            return Ok(None);
        }
        loop {
            let resumed = partial.is_resumed();
            let (digest, bytes) = match self.fill(file, &mut partial, &mut *show) {
                Ok(done) => done,
                // What would be of no use the next time is not left behind.
                Err(error) if partial.done() == 0 || matches!(error, PullError::Wrong { .. }) => {
                    partial.discard();
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            let (expected, got) = match &file.expect {
                Expect::Sha256(expected) => (expected.to_string(), digest.to_string()),
                Expect::Git(id) => (format!("git blob {id}"), format!("git blob {}", git_id(&partial, bytes)?)),
                Expect::Anything => return Ok(Some(Fetched { partial, digest, bytes })),
            };
            if expected == got {
                return Ok(Some(Fetched { partial, digest, bytes }));
            }
            if !resumed {
                partial.discard();
                return Err(PullError::Wrong { what: file.name.clone(), expected, got });
            }
            // What an earlier attempt left may be what is wrong, after a crash of the machine.
            tracing::warn!(file = file.name, "what was left of an earlier pull is wrong; all of it is fetched again");
            partial.forget()?;
        }
    }

    /// How much of the room for a file is taken already by an earlier attempt, or by another process that gets it.
    pub fn here(&self, file: &Remote) -> u64 {
        match Partial::take(&self.folder, &file.key()) {
            Ok(Some(partial)) if partial.done() == 0 => {
                partial.discard();
                0
            }
            Ok(Some(partial)) => partial.reserved(),
            _ => file.bytes.unwrap_or(0),
        }
    }

    /// Takes hold of the file, waiting for whoever has it.
    fn take(&self, file: &Remote, show: Show<'_>) -> Result<Partial, PullError> {
        loop {
            if let Some(partial) = Partial::take(&self.folder, &file.key())? {
                return Ok(partial);
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(PullError::Stopped);
            }
            show(&Progress::Waiting { name: &file.name });
            std::thread::sleep(TICK);
        }
    }
}

/// The name that git has for the bytes of a file.
fn git_id(partial: &Partial, bytes: u64) -> std::io::Result<String> {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {bytes}\0"));
    std::io::copy(&mut partial.reader()?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
