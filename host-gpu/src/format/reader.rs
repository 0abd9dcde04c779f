//! Reading parts of a mapped file into memory of one's own.
//!
//! What is read once, to be sent on, needs no map: the system's own reading ahead is faster than its page faults. A file that is large
//! beside the memory that is free would even push out of the page cache what others use, its own beginning among it: it is read past
//! the cache (`O_DIRECT`, `open(2)`), where its file system has that.

use super::mapped::Mapped;
use crate::measure;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// What reading past the cache begins and ends at, in the file and in memory: no file system asks for more.
const ALIGNED: usize = 4096;

/// So much longer than what is read must the memory be that it is read to.
pub const SLACK: usize = 3 * ALIGNED;

/// Reads one file.
#[derive(Debug)]
pub struct Reader<'a> {
    mapped: &'a Mapped,
    direct: Option<File>,
    /// Whether the file system has refused after all.
    refused: AtomicBool,
}

impl<'a> Reader<'a> {
    /// Of a file that is mapped. `past_cache` says how; by default as the file's size asks for.
    pub fn new(mapped: &'a Mapped, past_cache: Option<bool>) -> Self {
        let direct = past_cache.unwrap_or_else(|| is_large(mapped)).then(|| open_past_cache(mapped)).flatten();
        Self { mapped, direct, refused: AtomicBool::new(false) }
    }

    /// Whether the page cache is left alone.
    pub fn is_past_cache(&self) -> bool {
        self.direct.is_some() && !self.refused.load(Ordering::Relaxed)
    }

    /// Reads `range` of the file. It is in the part of `into` that is returned.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` if the file has no such bytes any more.
    ///
    /// # Panics
    /// If `into` is not at least [`SLACK`] longer than what is read.
    pub fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<Range<usize>> {
        assert!(range.len() + SLACK <= into.len(), "{range:?} into {}", into.len());
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) {
            match read_aligned(direct, range.clone(), into) {
                // Some file systems open such files, and then have rules of their own.
                Err(error) if error.kind() == ErrorKind::InvalidInput => self.refused.store(true, Ordering::Relaxed),
                read => return read,
            }
        }
        let part = 0..range.len();
        #[cfg(unix)]
        std::os::unix::fs::FileExt::read_exact_at(self.mapped.file(), &mut into[part.clone()], range.start as u64)?;
        #[cfg(not(unix))]
        into[part.clone()].copy_from_slice(&self.mapped.bytes()[range]);
        Ok(part)
    }
}

/// Whether a file is better read past the cache: most of it is not there, and it would take most of what is free.
fn is_large(mapped: &Mapped) -> bool {
    let len = mapped.bytes().len() as u64;
    let Some(free) = measure::available_memory() else { return false };
    len > free / 2 && mapped.cached().is_some_and(|cached| cached < len / 2)
}

/// Once more, and only if what is there is still the same file.
#[cfg(target_os = "linux")]
fn open_past_cache(mapped: &Mapped) -> Option<File> {
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(mapped.path()).ok()?;
    let (is, was) = (direct.metadata().ok()?, mapped.file().metadata().ok()?);
    ((is.dev(), is.ino()) == (was.dev(), was.ino())).then_some(direct)
}

#[cfg(not(target_os = "linux"))]
fn open_past_cache(_: &Mapped) -> Option<File> {
    None
}

/// Reads from the last aligned byte before `range` to the first behind it, to aligned memory.
#[cfg(unix)]
fn read_aligned(file: &File, range: Range<usize>, into: &mut [u8]) -> Result<Range<usize>> {
    use std::os::unix::fs::FileExt as _;
    let (from, until) = (range.start / ALIGNED * ALIGNED, range.end.next_multiple_of(ALIGNED));
    let first = into.as_ptr().align_offset(ALIGNED);
    let (begin, end) = (first + range.start - from, first + range.end - from);
    let mut at = first;
    // The file may end before the last aligned byte.
    while at < end {
        match file.read_at(&mut into[at..first + until - from], (from + at - first) as u64) {
            Ok(0) => return Err(Error::new(ErrorKind::UnexpectedEof, "the file is shorter than it was")),
            Ok(read) => at += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(begin..end)
}

#[cfg(not(unix))]
fn read_aligned(_: &File, _: Range<usize>, _: &mut [u8]) -> Result<Range<usize>> {
    Err(Error::from(ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_read_either_way() {
        // On the disk: a file system in memory may have no cache to read past.
        let here = std::env::current_exe().unwrap();
        let home = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
        let path = home.path().join("weights");
        let bytes: Vec<u8> = (0..5 * ALIGNED + 77).map(|n| (n * 7 + n / 256) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        assert!(!Reader::new(&mapped, None).is_past_cache(), "it is small");
        let mut into = vec![0u8; bytes.len() + SLACK + 1];
        for past_cache in [false, true] {
            let reader = Reader::new(&mapped, Some(past_cache));
            for start in [0, 1, 511, 4095, 4096, 4097, 8191, bytes.len() - 1, bytes.len()] {
                for len in [0, 1, 2, 511, 4096, 4097, 9000, bytes.len()] {
                    let range = start..bytes.len().min(start + len);
                    into.fill(0xee);
                    let part = reader.read(range.clone(), &mut into[1..]).unwrap();
                    assert_eq!(into[1..][part], bytes[range.clone()], "{range:?}, past the cache: {past_cache}");
                }
            }
            // SIGBUS is what a map would give.
            std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
            assert_eq!(reader.read(50..4200, &mut into).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            std::fs::write(&path, &bytes).unwrap();
        }
    }
}
