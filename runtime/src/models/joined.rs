//! A file that is made of others, part by part, and hashed on the way.

use std::io::{Read, Write as _};

use super::fetch::Show;
use super::progress::Progress;
use super::store::ModelStore;
use crate::digest::{Digest, Hasher};

/// Which side failed.
pub enum Failed {
    /// Where the bytes come from.
    Reading(std::io::Error),
    /// The disk.
    Writing(std::io::Error),
}

/// A file that grows part by part.
pub struct Joined {
    file: tempfile::NamedTempFile,
    /// Of what it has so far.
    pub hasher: Hasher,
    /// How many that are.
    pub bytes: u64,
}

impl Joined {
    /// Begins with nothing.
    pub fn new(file: tempfile::NamedTempFile) -> Self {
        Self { file, hasher: Hasher::default(), bytes: 0 }
    }

    /// Appends what there is, at most `most` bytes, and one more to show that there were more.
    pub fn add(&mut self, from: impl Read, name: &str, most: u64, show: Show<'_>) -> Result<(), Failed> {
        let mut from = from.take(most.saturating_add(1));
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        loop {
            let n = from.read(&mut buffer).map_err(Failed::Reading)?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..n]);
            self.file.write_all(&buffer[..n]).map_err(Failed::Writing)?;
            done += n as u64;
            self.bytes += n as u64;
            show(&Progress::Unpacking { name, done: done.min(most), total: most });
        }
    }

    /// Gives it its place in the store.
    pub fn keep(self, store: &ModelStore) -> std::io::Result<(Digest, u64)> {
        let digest = self.hasher.finish();
        store.data().keep(self.file, &store.blob(&digest))?;
        Ok((digest, self.bytes))
    }
}
