//! The audit log: who changed what, and how that ended. A JSON object a line, only ever appended.
//!
//! A change is on disk here before its caller is told of it. A file that is full is put aside (`audit.1.jsonl`, the newest
//! of those, then `audit.2.jsonl`...); the oldest go.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Calls without a good key are noted no oftener than this: whoever has none must not fill the disk.
const REFUSED: Duration = Duration::from_secs(1);
/// Bytes of a file, after which it is put aside.
const FILE_BYTES: u64 = 16 << 20;
/// Files that are kept beside the one that is written: a million changes, about.
const KEPT: u32 = 15;

/// One call.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The key's id; `local` is the key of `control.json`, `-` no good key.
    pub who: String,
    /// The tenant it acted for.
    pub tenant: String,
    /// The method and path of the call.
    pub call: String,
    /// The status that was answered.
    pub status: u16,
    /// What came of it, as in `chat r7`, or why it was refused.
    pub result: String,
}

/// The file.
pub struct Audit {
    open: Mutex<Open>,
    path: PathBuf,
    file_bytes: u64,
    refused: Mutex<Option<Instant>>,
}

struct Open {
    file: File,
    bytes: u64,
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

impl Audit {
    /// Opens the log at `path`, readable by its owner only.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with(path, FILE_BYTES)
    }

    fn with(path: &Path, file_bytes: u64) -> io::Result<Self> {
        let open = Mutex::new(Open::at(path)?);
        Ok(Self { open, path: path.to_owned(), file_bytes, refused: Mutex::default() })
    }

    /// Notes a call; it is on disk when this returns. Blocks while it gets there.
    ///
    /// # Errors
    /// What the system said.
    pub fn note(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry).expect("an entry has only string keys");
        line.push(b'\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.bytes > 0 && open.bytes + line.len() as u64 > self.file_bytes {
            self.put_aside()?;
            *open = Open::at(&self.path)?;
        }
        // One write a line: a process that dies leaves whole lines.
        open.file.write_all(&line)?;
        open.bytes += line.len() as u64;
        open.file.sync_data()
    }

    /// Makes room for a new file under the log's name.
    fn put_aside(&self) -> io::Result<()> {
        let aside = |n: u32| self.path.with_extension(format!("{n}.jsonl"));
        for n in (1..KEPT).rev() {
            match fs::rename(aside(n), aside(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, aside(1))?;
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_the_oldest_go() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("audit.jsonl");
        let entry = |n: u64| {
            let (who, tenant, call, result) = ("local".into(), "t".into(), "PUT /x".into(), String::new());
            Entry { at_ms: n, who, tenant, call, status: 200, result }
        };
        for n in 0..100 {
            // Opened anew each time, as by a process that starts again.
            Audit::with(&path, 200).unwrap().note(&entry(n)).unwrap();
        }
        let numbers = |path: &Path| -> Vec<u64> {
            let text = fs::read_to_string(path).unwrap();
            let number = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["at_ms"].as_u64();
            text.lines().map(|line| number(line).unwrap()).collect()
        };
        let mut files: Vec<_> = (1..=KEPT).rev().map(|n| path.with_extension(format!("{n}.jsonl"))).collect();
        assert!(!path.with_extension(format!("{}.jsonl", KEPT + 1)).exists());
        files.push(path);
        let all: Vec<u64> = files.iter().flat_map(|path| numbers(path)).collect();
        assert!(all.len() > 20 && all.len() < 100, "{}", all.len());
        assert_eq!(all, (100 - all.len() as u64..100).collect::<Vec<_>>(), "in order, and none is missing");
        assert!(files.iter().all(|path| fs::metadata(path).unwrap().len() <= 200));
    }
}
