//! A file in memory, as the system maps it: shared, never copied.

use super::error::FormatError;
use memmap2::Mmap;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// So many bytes are brought into memory at a time: some hundredths of a second from a fast disk.
const POPULATE: usize = 64 << 20;

/// A mapped file.
///
/// The map stays valid only while nobody truncates the file: model files are immutable.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl Mapped {
    /// Maps `path`.
    ///
    /// # Errors
    /// `Io` with what the system said.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let io = |e: Error| FormatError::Io { path: path.display().to_string(), reason: e.to_string().to_lowercase() };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(Error::new(ErrorKind::InvalidInput, "not a regular file")));
        }
        #[expect(unsafe_code, reason = "mapping a file is how weights are shared and never copied")]
        // SAFETY: we only read the map. A model file is immutable once it has its final name; were
        // it truncated nevertheless, reads raise SIGBUS, as for every mapped program.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.into(), file, map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is mapped.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Brings the whole file into memory and maps it, so that the first step meets no page fault; `at` is told how many
    /// bytes are there, now and then, and says whether to go on, which is the answer.
    pub fn populate(&self, mut at: impl FnMut(usize) -> bool) -> bool {
        #[cfg(target_os = "linux")]
        let advice = memmap2::Advice::PopulateRead;
        #[cfg(all(unix, not(target_os = "linux")))]
        let advice = memmap2::Advice::WillNeed;
        for start in (0..self.map.len()).step_by(POPULATE) {
            let end = self.map.len().min(start + POPULATE);
            // Advice may be refused without harm: pages then come one fault at a time.
            #[cfg(unix)]
            let _ = self.map.advise_range(advice, start, end - start);
            if !at(end) {
                return false;
            }
        }
        true
    }

    /// How many of its bytes the system keeps in memory. `None` where that cannot be known.
    pub fn cached(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let mut pages = vec![0u8; POPULATE / PAGE];
            let mut cached = 0;
            for part in self.map.chunks(POPULATE) {
                let pages = &mut pages[..part.len().div_ceil(PAGE)];
                #[expect(unsafe_code, reason = "no library has this call")]
                // SAFETY: the range is mapped for as long as this lives, begins at a page, and has a byte in `pages` for each of its own.
                let told = unsafe { libc::mincore(part.as_ptr().cast_mut().cast(), part.len(), pages.as_mut_ptr()) };
                if told != 0 {
                    return None;
                }
                cached += pages.iter().filter(|page| **page & 1 == 1).count() * PAGE;
            }
            Some((cached as u64).min(self.map.len() as u64))
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Lets the whole pages of `range` go from memory. Reading them brings them back.
    pub(crate) fn let_go(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if start < end {
                #[expect(unsafe_code, reason = "giving this advice on writable maps would lose what was written")]
                // SAFETY: the map is of a file and never written: its pages are read again from the file.
                let _ =
                    unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
    }
}

/// How many bytes of the file at `path` the system keeps in memory, and how many it has: what is not there is read from the disk when
/// it is needed. `None` where that cannot be known.
pub fn cached_bytes(path: &Path) -> Option<(u64, u64)> {
    let mapped = Mapped::open(path).ok()?;
    Some((mapped.cached()?, mapped.bytes().len() as u64))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_written_is_in_memory() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("weights");
        std::fs::write(&path, vec![7; 3 * 4096 + 5]).unwrap();
        assert_eq!(cached_bytes(&path), Some((3 * 4096 + 5, 3 * 4096 + 5)));
        std::fs::write(&path, b"").unwrap();
        assert!(cached_bytes(&path).is_none_or(|(cached, all)| cached == 0 && all == 0));
        assert_eq!(cached_bytes(&home.path().join("absent")), None);
    }
}
