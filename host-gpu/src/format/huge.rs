//! Memory in huge pages, and copies of mapped files there.
//!
//! The system maps files in pages of 4 KiB. Reading weights from those, a core spends half its time on looking addresses
//! up, more in a virtual machine. A copy in pages of 2 MiB is read up to twice as fast; the mapped pages are let go as
//! they are copied, so that it takes no more memory, only memory that other processes do not share.
//! Keys and values lie in such pages from the start.

use super::mapped::Mapped;
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, OnceLock};

/// The size of a huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// Whether the system gives huge pages to who asks.
pub(crate) fn available() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    setting.contains("[madvise]") || setting.contains("[always]")
}

/// Anonymous memory that begins with a huge page. It is zero, and not committed until it is touched.
#[derive(Debug)]
pub(crate) struct HugeMemory {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl HugeMemory {
    /// # Errors
    /// If the system does not even promise that much memory.
    pub(crate) fn new(len: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(len + HUGE)?;
        let start = map.as_ptr().align_offset(HUGE);
        // A system that has none uses small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(Advice::HugePage, start, len);
        Ok(Self { map, start, len })
    }

    /// Has the system commit `range` now. Systems that cannot do so commit it when it is written.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only Linux can"))]
    pub(crate) fn commit(&mut self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        let _ = self.map.advise_range(Advice::PopulateWrite, self.start + range.start, range.len());
    }
}

impl Deref for HugeMemory {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }
}

impl DerefMut for HugeMemory {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}

/// A copy of a part of a file.
#[derive(Debug)]
struct HugeCopy {
    memory: HugeMemory,
    /// Which bytes of the file it has.
    range: Range<usize>,
}

/// A part of a file that gets a copy.
#[derive(Debug)]
pub(crate) struct Part {
    range: Range<usize>,
    copy: OnceLock<HugeCopy>,
}

impl Part {
    /// `range` of a file.
    pub(crate) fn new(range: Range<usize>) -> Arc<Self> {
        Arc::new(Self { range, copy: OnceLock::new() })
    }

    /// Makes the copy: `copy(n, from, to)` makes that of number `n` of `ranges`, ranges of `file` inside the part's. The
    /// mapped pages are let go.
    ///
    /// # Errors
    /// If the system has no memory for it.
    pub(crate) fn copy(
        &self,
        file: &Mapped,
        ranges: &[Range<usize>],
        mut copy: impl FnMut(usize, &[u8], &mut [u8]),
    ) -> std::io::Result<()> {
        let mut memory = HugeMemory::new(self.range.len())?;
        for (n, range) in ranges.iter().enumerate() {
            let at = range.start - self.range.start;
            copy(n, &file.bytes()[range.clone()], &mut memory[at..at + range.len()]);
        }
        // Whoever reads from now on reads the copy: only then do pages that are let go stay away.
        let _ = self.copy.set(HugeCopy { memory, range: self.range.clone() });
        self.let_go(file);
        Ok(())
    }

    /// Lets the mapped pages go once more, if there is a copy: who began to read before it was made may have brought
    /// some back.
    pub(crate) fn let_go(&self, file: &Mapped) {
        if self.copy.get().is_some() {
            file.let_go(self.range.clone());
        }
    }
}

/// Some rows of a matrix, in a part of its file that gets a copy.
#[derive(Debug)]
pub struct Piece {
    part: Arc<Part>,
    /// Which bytes of the file.
    range: Range<usize>,
    rows: Range<usize>,
    halved: bool,
}

impl Piece {
    /// `rows`, whose bytes are `range` of the file, which lies in that of `part`.
    pub(crate) fn new(part: Arc<Part>, range: Range<usize>, rows: Range<usize>) -> Self {
        Self { part, range, rows, halved: false }
    }

    /// The same, of which the copy has each weight in halves.
    pub(crate) fn in_halves(self) -> Self {
        Self { halved: true, ..self }
    }

    /// Whether its copy has, or will have.
    pub fn is_halved(&self) -> bool {
        self.halved
    }

    /// Which rows of the matrix.
    pub fn rows(&self) -> &Range<usize> {
        &self.rows
    }

    /// One whose copy has `bytes`, or none yet.
    #[cfg(test)]
    pub(crate) fn of(rows: Range<usize>, bytes: Option<&[u8]>) -> Self {
        let range = 0..bytes.map_or(0, <[u8]>::len);
        let part = Part::new(range.clone());
        if let Some(bytes) = bytes {
            let mut memory = HugeMemory::new(bytes.len()).unwrap();
            memory.copy_from_slice(bytes);
            part.copy.set(HugeCopy { memory, range: range.clone() }).unwrap();
        }
        Self::new(part, range, rows)
    }

    /// The copy, once it is there.
    #[inline]
    pub fn copy(&self) -> Option<&[u8]> {
        let HugeCopy { memory, range } = self.part.copy.get()?;
        let at = self.range.start - range.start;
        Some(&memory[at..at + self.range.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_bytes_of_the_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..3 * HUGE + 12_345).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = Mapped::open(&path).unwrap();
        let ranges = [100..HUGE, HUGE + 7..bytes.len()];
        let part = Part::new(100..bytes.len());
        let pieces: Vec<Piece> = ranges.iter().map(|range| Piece::new(part.clone(), range.clone(), 0..1)).collect();
        assert!(pieces.iter().all(|piece| piece.copy().is_none()), "not yet");
        part.copy(&file, &ranges, |_, from, to| to.copy_from_slice(from)).unwrap();
        for (piece, range) in pieces.iter().zip(ranges) {
            assert_eq!(piece.copy().unwrap(), &bytes[range.clone()], "{range:?}");
        }
        assert_eq!(file.bytes(), bytes, "what was let go comes back when it is read");
    }
}
