//! The audit log: who changed what, and how that ended. A JSON object a line, only ever appended.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Calls without a good key are noted no oftener than this: whoever has none must not fill the disk.
const REFUSED: Duration = Duration::from_secs(1);

/// One call.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The key's id; `local` is the key of `control.json`, `-` no good key.
    pub who: &'a str,
    /// The tenant it acted for.
    pub tenant: &'a str,
    /// The method and path of the call.
    pub call: &'a str,
    /// The status that was answered.
    pub status: u16,
    /// What came of it, as in `chat r7`, or why it was refused.
    pub result: &'a str,
}

/// The file.
pub struct Audit {
    file: Mutex<File>,
    refused: Mutex<Option<Instant>>,
}

impl Audit {
    /// Opens the log at `path`, readable by its owner only.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file: Mutex::new(file), refused: Mutex::default() })
    }

    /// Notes a call.
    pub fn note(&self, entry: &Entry<'_>) {
        let mut line = serde_json::to_vec(entry).expect("an entry has only string keys");
        line.push(b'\n');
        // One write a line: a process that dies leaves whole lines.
        if let Err(error) = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line) {
            tracing::error!(%error, call = entry.call, "the audit log cannot be written");
        }
    }

    /// Whether a call without a good key is to be noted now.
    pub fn notes_refused(&self) -> bool {
        let mut last = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= REFUSED);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// Now, as entries say it.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
