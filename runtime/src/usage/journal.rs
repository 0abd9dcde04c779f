//! The journal: frames, each with its length and checksum, in files of which only the newest grows.
//!
//! A process that dies leaves at most one torn frame at the end of the newest file; reading stops before it, and the next
//! process begins another file. A frame that begins makes what was before it needless for whoever wants to know what runs.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::frame::Frame;

/// What a file begins with: what it is, and the version of its frames.
const MAGIC: &[u8; 8] = b"hobuse\x00\x01";
/// Largest frame that is read: none that is written comes near.
const MAX_FRAME: u32 = 256 << 20;

/// The newest file.
pub(super) struct Journal {
    folder: PathBuf,
    number: u64,
    file: File,
    bytes: u64,
}

impl Journal {
    /// Begins a file after all others, with a frame in it; both are on disk when this returns.
    ///
    /// # Errors
    /// What the system said; then the file is as if it was not there.
    pub fn begin(folder: &Path, frame: &Frame) -> io::Result<Self> {
        let number = files(folder)?.last().map_or(1, |(number, _)| number + 1);
        let path = path(folder, number);
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(path)?;
        let bytes = [&MAGIC[..], &encode(frame)].concat();
        file.write_all(&bytes)?;
        file.sync_data()?;
        File::open(folder)?.sync_all()?;
        Ok(Self { folder: folder.to_owned(), number, file, bytes: bytes.len() as u64 })
    }

    /// Adds a frame; on disk when this returns.
    ///
    /// # Errors
    /// What the system said; the frame may be there or not. Begin another file then.
    pub fn append(&mut self, frame: &Frame) -> io::Result<()> {
        let bytes = encode(frame);
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// One on a disk that is full; others would be begun in `folder`.
    #[cfg(test)]
    pub fn full(folder: &Path) -> Self {
        let file = File::options().append(true).open("/dev/full").expect("the system has it");
        Self { folder: folder.to_owned(), number: 1, file, bytes: 0 }
    }

    /// How large the file is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes the oldest files while all together have more than `most` bytes.
    pub fn prune(&self, most: u64) -> io::Result<()> {
        let mut sum = 0;
        for (number, path) in files(&self.folder)?.into_iter().rev() {
            sum += fs::metadata(&path)?.len();
            if sum > most && number != self.number {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// All files, the oldest first, with their numbers.
pub(super) fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_one = path.extension().is_some_and(|extension| extension == "journal");
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).filter(|_| is_one);
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    Ok(files)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.journal"))
}

fn encode(frame: &Frame) -> Vec<u8> {
    // Room for length and checksum in front.
    let bytes = postcard::to_extend(frame, vec![0; 8]).expect("a frame is numbers, texts and lists");
    let mut bytes = bytes;
    let length = u32::try_from(bytes.len() - 8).expect("a frame is far smaller");
    let checksum = crc32fast::hash(&bytes[8..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The frames of a file, one after the other, up to the first that is not whole.
pub(super) struct Frames {
    file: Option<io::BufReader<File>>,
}

impl Frames {
    /// The frames of the file at `path`.
    ///
    /// # Errors
    /// What the system said; or that a later version of hob has written it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = io::BufReader::new(File::open(path)?);
        let mut magic = [0; 8];
        let whole = file.read_exact(&mut magic).is_ok();
        if whole && magic[..7] == MAGIC[..7] && magic[7] != MAGIC[7] {
            let why =
                format!("{} was written by another version of hob; use that one, or move it away", path.display());
            return Err(io::Error::other(why));
        }
        Ok(Self { file: (whole && magic == *MAGIC).then_some(file) })
    }

    fn read(&mut self) -> Option<Frame> {
        let file = self.file.as_mut()?;
        let mut head = [0; 8];
        file.read_exact(&mut head).ok()?;
        let [length, checksum] = [0, 4].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")));
        let mut bytes = Vec::new();
        if length > MAX_FRAME || file.take(length.into()).read_to_end(&mut bytes).ok()? != length as usize {
            return None;
        }
        if crc32fast::hash(&bytes) != checksum {
            return None;
        }
        postcard::from_bytes(&bytes).ok()
    }
}

impl Iterator for Frames {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let frame = self.read();
        if frame.is_none() {
            self.file = None;
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u64, begins: bool) -> Frame {
        Frame { first, begins, ..Frame::default() }
    }

    fn numbers(path: &Path) -> Vec<u64> {
        Frames::open(path).unwrap().map(|frame| frame.first).collect()
    }

    #[test]
    fn a_torn_or_changed_frame_and_what_follows_is_not_read() {
        let home = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(home.path(), &frame(1, true)).unwrap();
        for n in 2..=4 {
            journal.append(&frame(n, false)).unwrap();
        }
        let path = files(home.path()).unwrap()[0].1.clone();
        assert_eq!(numbers(&path), [1, 2, 3, 4]);
        let whole = fs::read(&path).unwrap();
        assert_eq!(journal.bytes(), whole.len() as u64);
        let each = (whole.len() - 8) / 4;
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let frames = cut.saturating_sub(8) / each;
            assert_eq!(numbers(&path).len(), frames, "{cut} bytes");
            let mut changed = whole.clone();
            changed[cut] ^= 0x10;
            fs::write(&path, changed).unwrap();
            match cut {
                7 => assert!(Frames::open(&path).is_err(), "another version is told"),
                0..7 => assert_eq!(numbers(&path), [0; 0]),
                _ => assert_eq!(numbers(&path).len(), (cut - 8) / each, "byte {cut} changed"),
            }
        }
    }

    #[test]
    fn files_follow_one_another_and_the_oldest_go() {
        let home = tempfile::tempdir().unwrap();
        for n in 1..=5 {
            Journal::begin(home.path(), &frame(n, true)).unwrap();
        }
        let last = Journal::begin(home.path(), &frame(6, true)).unwrap();
        let numbers = |folder: &Path| files(folder).unwrap().iter().map(|(n, _)| *n).collect::<Vec<_>>();
        assert_eq!(numbers(home.path()), [1, 2, 3, 4, 5, 6]);
        last.prune(last.bytes() * 3).unwrap();
        assert_eq!(numbers(home.path()), [4, 5, 6]);
        last.prune(0).unwrap();
        assert_eq!(numbers(home.path()), [6], "the newest stays");
    }
}
