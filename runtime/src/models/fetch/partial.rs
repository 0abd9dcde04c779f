//! A file that is on its way: its bytes, and beside them which of them are there.
//!
//! A file comes in pieces, each from its beginning on; how far each one is, is written down after the bytes are. So what a
//! killed process has got is there for the next one, to the last quarter of a megabyte. What a crash of the machine does
//! to this the digest shows, and it is got again. One process at a time holds the file, by a lock that dies with it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What a connection gets at once.
pub const PIECE: u64 = 8 << 20;
/// The head of the record; the pieces' numbers follow.
const HEAD: usize = 4096;

/// A file on its way, held by this process.
pub struct Partial {
    path: PathBuf,
    data: File,
    record: File,
    pieces: Vec<Piece>,
    /// Whether bytes are here from an earlier attempt.
    resumed: bool,
}

/// A part of a file.
#[derive(Debug)]
pub struct Piece {
    /// Where it begins.
    pub start: u64,
    /// Where the next one does.
    pub end: u64,
    done: AtomicU64,
}

impl Piece {
    /// Where its next byte goes.
    pub fn at(&self) -> u64 {
        self.start + self.done.load(Ordering::Acquire)
    }

    /// Whether it is whole.
    pub fn is_done(&self) -> bool {
        self.at() == self.end
    }
}

/// What is known about the file of which pieces are here.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    total: u64,
    piece: u64,
    /// What changes when the file does.
    validator: Option<String>,
}

impl Partial {
    /// Takes hold of the file `key` in `folder`. `None` if another process, or another thread, has it.
    ///
    /// # Errors
    /// What the system said.
    pub fn take(folder: &Path, key: &str) -> io::Result<Option<Self>> {
        let path = folder.join(key);
        let open =
            |path: &Path| File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        loop {
            let data = open(&path)?;
            match data.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Who had it before may have moved it away: then this is a file without a name.
            let (held, named) = (data.metadata()?.ino(), fs::metadata(&path).map(|meta| meta.ino()));
            if named.is_ok_and(|named| named == held) {
                let record = open(&record_of(&path))?;
                let mut partial = Self { path, data, record, pieces: Vec::new(), resumed: false };
                partial.read();
                return Ok(Some(partial));
            }
        }
    }

    /// What is here of it: bytes, and how many it has, if that is known.
    pub fn known(&self) -> (u64, Option<u64>) {
        (self.done(), self.pieces.last().map(|piece| piece.end))
    }

    /// What changes when the file that is here in part does.
    pub fn validator(&self) -> Option<String> {
        self.head().and_then(|head| head.validator)
    }

    /// Whether bytes are here from an earlier attempt.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Makes room for a file of `total` bytes, in pieces; forgets what is here of another one.
    ///
    /// # Errors
    /// What the system said; `StorageFull` if there is no room.
    pub fn fit(&mut self, total: u64, piece: u64, validator: Option<&str>) -> io::Result<()> {
        let head = Head { total, piece, validator: validator.filter(|text| text.len() < 1024).map(str::to_owned) };
        if self.head().as_ref() == Some(&head) && !self.pieces.is_empty() {
            return Ok(());
        }
        self.forget()?;
        self.pieces = pieces(total, piece);
        self.reserve(total)?;
        let mut text = serde_json::to_vec(&head).expect("it has only string keys");
        text.resize(HEAD, b' ');
        self.record.set_len((HEAD + 8 * self.pieces.len()) as u64)?;
        self.record.write_all_at(&text, 0)
    }

    /// Makes ready for a file whose bytes come in one go, from the first one.
    ///
    /// # Errors
    /// What the system said.
    pub fn begin(&mut self, total: Option<u64>) -> io::Result<()> {
        self.forget()?;
        self.pieces = vec![Piece { start: 0, end: total.unwrap_or(u64::MAX), done: AtomicU64::new(0) }];
        total.map_or(Ok(()), |total| self.reserve(total))
    }

    /// The file is as long as what came.
    pub fn end_here(&mut self) {
        for piece in &mut self.pieces {
            piece.end = piece.at();
        }
    }

    /// Its parts.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Writes the next bytes of a piece.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self, number: usize, bytes: &[u8]) -> io::Result<()> {
        let piece = &self.pieces[number];
        self.data.write_all_at(bytes, piece.at())?;
        let done = piece.done.load(Ordering::Acquire) + bytes.len() as u64;
        // A file that comes in one go has no record: it cannot be gone on with.
        if self.record.metadata()?.len() > HEAD as u64 {
            self.record.write_all_at(&done.to_le_bytes(), (HEAD + 8 * number) as u64)?;
        }
        piece.done.store(done, Ordering::Release);
        Ok(())
    }

    /// Bytes that are here.
    pub fn done(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.done.load(Ordering::Acquire)).sum()
    }

    /// Bytes that the disk has promised already, or holds.
    pub fn reserved(&self) -> u64 {
        self.data.metadata().map_or(0, |meta| meta.blocks() * 512)
    }

    /// Bytes that are here without a gap from the beginning.
    pub fn prefix(&self) -> u64 {
        let mut prefix = 0;
        for piece in &self.pieces {
            prefix = piece.at();
            if !piece.is_done() {
                break;
            }
        }
        prefix
    }

    /// Whether all of it is here.
    pub fn is_whole(&self) -> bool {
        !self.pieces.is_empty() && self.pieces.iter().all(Piece::is_done)
    }

    /// Reads bytes that are here.
    ///
    /// # Errors
    /// What the system said.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.data.read_at(buffer, offset)
    }

    /// Another handle to its bytes, from the beginning.
    ///
    /// # Errors
    /// What the system said.
    pub fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Forgets all bytes that are here.
    ///
    /// # Errors
    /// What the system said.
    pub fn forget(&mut self) -> io::Result<()> {
        self.pieces.clear();
        self.resumed = false;
        self.record.set_len(0)?;
        self.data.set_len(0)
    }

    /// Gives the file its place, durably, and lets go of it.
    ///
    /// # Errors
    /// What the system said.
    pub fn keep(self, place: &Path) -> io::Result<()> {
        self.data.set_len(self.prefix())?;
        self.data.sync_all()?;
        fs::rename(&self.path, place)?;
        let _ = fs::remove_file(record_of(&self.path));
        File::open(place.parent().unwrap_or(place))?.sync_all()
    }

    /// Removes it: what came was wrong, or is not needed any more.
    pub fn discard(self) {
        // While it is locked: who takes a file of this name next makes a new one.
        for path in [record_of(&self.path), self.path] {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "left-over file could not be removed");
            }
        }
    }

    /// Has the disk promise room for `total` bytes, where it can.
    fn reserve(&self, total: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        if total > 0
            && let Err(error) = fallocate(&self.data, FallocateFlags::empty(), 0, total)
            && [rustix::io::Errno::NOSPC, rustix::io::Errno::FBIG, rustix::io::Errno::DQUOT].contains(&error)
        {
            return Err(error.into());
        }
        Ok(())
    }

    fn head(&self) -> Option<Head> {
        let mut text = [0; HEAD];
        self.record.read_exact_at(&mut text, 0).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Takes up what an earlier attempt wrote down, if it makes sense.
    fn read(&mut self) {
        let (Some(head), Ok(meta), Ok(data)) = (self.head(), self.record.metadata(), self.data.metadata()) else {
            return;
        };
        let count = head.total.div_ceil(head.piece.max(1)).max(1);
        if head.piece < 4096 || meta.len() != HEAD as u64 + 8 * count {
            return;
        }
        let mut numbers = vec![0; count as usize * 8];
        if self.record.read_exact_at(&mut numbers, HEAD as u64).is_err() {
            return;
        }
        let pieces = pieces(head.total, head.piece);
        for (piece, number) in pieces.iter().zip(numbers.chunks_exact(8)) {
            let done = u64::from_le_bytes(number.try_into().expect("chunks of eight"));
            // What is beyond the file, or the piece, was never written.
            let sound = done <= piece.end - piece.start && piece.start + done <= data.len() || done == 0;
            piece.done.store(if sound { done } else { 0 }, Ordering::Release);
        }
        self.pieces = pieces;
        self.resumed = self.done() > 0;
    }
}

fn pieces(total: u64, piece: u64) -> Vec<Piece> {
    let count = total.div_ceil(piece).max(1);
    let piece = |n: u64| Piece { start: n * piece, end: ((n + 1) * piece).min(total), done: AtomicU64::new(0) };
    (0..count).map(piece).collect()
}

/// What is written down beside a file.
pub(crate) fn record_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pieces");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Path) -> Partial {
        Partial::take(folder, "key").unwrap().expect("nobody has it")
    }

    #[test]
    fn what_was_written_is_there_for_the_next_one() {
        let home = tempfile::tempdir().unwrap();
        let mut partial = take(home.path());
        partial.fit(10_000, 4096, Some("\"a\"")).unwrap();
        assert_eq!(partial.pieces().iter().map(|piece| piece.end).collect::<Vec<_>>(), [4096, 8192, 10_000]);
        partial.write(0, &[1; 4096]).unwrap();
        partial.write(2, &[3; 100]).unwrap();
        assert!(Partial::take(home.path(), "key").unwrap().is_none(), "one at a time");
        drop(partial);

        let mut partial = take(home.path());
        assert!(partial.is_resumed());
        assert_eq!((partial.known(), partial.prefix()), ((4196, Some(10_000)), 4096));
        partial.fit(10_000, 4096, Some("\"a\"")).unwrap();
        assert_eq!(partial.done(), 4196, "the same file goes on");
        partial.write(1, &[2; 4096]).unwrap();
        partial.write(2, &[3; 1708]).unwrap();
        assert!(partial.is_whole());
        let place = home.path().join("whole");
        partial.keep(&place).unwrap();
        let bytes = fs::read(&place).unwrap();
        assert_eq!((bytes.len(), bytes[4096], bytes[9999]), (10_000, 2, 3));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn another_file_begins_anew() {
        let home = tempfile::tempdir().unwrap();
        let mut partial = take(home.path());
        partial.fit(10_000, 4096, Some("\"a\"")).unwrap();
        partial.write(0, &[1; 4096]).unwrap();
        partial.fit(10_000, 4096, Some("\"b\"")).unwrap();
        assert_eq!(partial.done(), 0);
        partial.write(0, &[1; 5]).unwrap();
        partial.begin(None).unwrap();
        partial.write(0, &[7; 5]).unwrap();
        assert!(!partial.is_whole());
        partial.end_here();
        assert!(partial.is_whole() && partial.prefix() == 5);
        drop(partial);
        assert_eq!(take(home.path()).known(), (0, None), "what comes in one go cannot be gone on with");
        take(home.path()).discard();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_none() {
        let home = tempfile::tempdir().unwrap();
        let mut partial = take(home.path());
        partial.fit(10_000, 4096, None).unwrap();
        partial.write(0, &[1; 4096]).unwrap();
        drop(partial);
        let record = home.path().join("key.pieces");
        let sound = fs::read(&record).unwrap();
        for (at, bytes) in [(0, &b"{"[..]), (HEAD, &u64::MAX.to_le_bytes()), (HEAD, &4097_u64.to_le_bytes())] {
            let mut wrong = sound.clone();
            wrong[at..at + bytes.len()].copy_from_slice(bytes);
            if at == 0 {
                wrong[1] = b'x';
            }
            fs::write(&record, wrong).unwrap();
            assert_eq!(take(home.path()).done(), 0);
        }
        fs::write(&record, &sound[..HEAD + 8]).unwrap();
        assert_eq!(take(home.path()).done(), 0, "cut short");
        let huge = format!("{{\"total\":{},\"piece\":4096,\"validator\":null}}", u64::MAX);
        fs::write(&record, huge).unwrap();
        assert_eq!(take(home.path()).done(), 0);
    }
}
