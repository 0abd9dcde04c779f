//! Weights on their way to a card: `kernels/rows.cu`, `split`.
//!
//! The driver copies from locked memory at the bus's rate, and meanwhile the processor is free; what lies in a mapped file it would first copy
//! itself. So each of a few threads has two pieces of locked memory, and fills one from the file while the other is on its way. Where
//! copies are kept ([`super::copies`]), each piece stays instead, and the next time nothing is read. Blocks become planes on the card,
//! piece by piece.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::copies::HostCopy;
use super::device::{CudaError, Device, int, shape};
use super::matrix::DeviceMatrix;
use super::memory::{Buffer, Pinned};
use super::wait::Mark;
use crate::format::mapped::Mapped;
use crate::format::reader::{Reader, SLACK};
use crate::ops::cpu::matmul::Matrix;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How an upload is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Threads, at most.
    pub threads: usize,
    /// Bytes of a piece, or one block if that is more. Each thread has two, here and on the card.
    pub bytes: usize,
    /// Whether files are read past the page cache; `None` asks their sizes: see [`Reader`].
    pub past_cache: Option<bool>,
}

impl Default for Cut {
    /// Four threads, or as many as there are cores: one alone may copy more slowly than the bus takes it.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: cores.min(4), bytes: 4 << 20, past_cache: None }
    }
}

/// Who follows an upload: it is told how many bytes are there, of how many, and says whether to go on.
pub type Follow<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// What a matrix is filled with.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Its blocks.
    pub bytes: &'a [u8],
    /// The file that these are mapped from, and where in it they begin, if they are: then they are read, not touched.
    pub file: Option<(&'a Mapped, usize)>,
}

impl<'a> From<&'a [u8]> for Raw<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, file: None }
    }
}

impl DeviceMatrix {
    /// Copies `w` to the card, as planes.
    ///
    /// # Errors
    /// `NoMemory`, or `Shape` for a matrix that is larger than kernels count.
    pub fn upload(device: &Device, w: &Matrix<'_>) -> Result<Self, CudaError> {
        let matrix = Self::empty(device, w)?;
        upload(device, &[(&matrix, w.bytes.into())], Cut::default(), None, &|_, _| true)?;
        Ok(matrix)
    }
}

/// Some blocks of a matrix.
struct Job<'a> {
    to: &'a DeviceMatrix,
    /// The first of them.
    first: usize,
    raw: &'a [u8],
    /// Who reads them, and where.
    reader: Option<(usize, Range<usize>)>,
}

/// Memory for one job.
struct Piece {
    locked: Pinned,
    /// Blocks, before they have become planes.
    stage: Buffer<u8>,
    /// When both may be used again.
    free: Mark,
}

/// Fills each matrix with the bytes of its like in a file. All is there when it returns. What `copy` has is not read again, and what it
/// has not it gets.
///
/// # Errors
/// `Shape` for bytes that are not as many as the matrix has; `NoMemory`, if there is not even room for a piece; `File`; `Stopped`; what
/// the driver says.
pub fn upload(
    device: &Device,
    weights: &[(&DeviceMatrix, Raw<'_>)],
    cut: Cut,
    copy: Option<&HostCopy>,
    follow: Follow<'_>,
) -> Result<(), CudaError> {
    if let Some((to, raw)) = weights.iter().find(|(to, raw)| to.data().len() != raw.bytes.len()) {
        return Err(shape(format!("{} bytes for a matrix of {}", raw.bytes.len(), to.data().len())));
    }
    let total: usize = weights.iter().map(|(_, raw)| raw.bytes.len()).sum();
    let mut files: Vec<&Mapped> = Vec::new();
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for (to, raw) in weights {
        let at = raw.file.map(|(file, at)| {
            let known = files.iter().position(|known| std::ptr::eq(*known, file));
            let number = known.unwrap_or(files.len());
            if known.is_none() {
                files.push(file);
            }
            (number, at)
        });
        jobs.extend(jobs_of(to, raw.bytes, at, cut.bytes));
    }
    if let Some(copy) = copy {
        copy.expect(jobs.len())?;
    }
    // Matrices were cleared, and not on the streams that fill them.
    device.wait()?;
    let work = Work {
        jobs: &jobs,
        readers: files.iter().map(|file| Reader::new(file, cut.past_cache)).collect(),
        copy,
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        total: total as u64,
        ended: AtomicBool::new(false),
        failed: Mutex::new(None),
        follow,
    };
    std::thread::scope(|scope| {
        // What fits in a piece is not worth a thread.
        for _ in 1..cut.threads.min(total.div_ceil(cut.bytes.max(1))) {
            scope.spawn(|| work.run(device, true));
        }
        work.run(device, false);
    });
    match work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn jobs_of<'a>(
    to: &'a DeviceMatrix,
    raw: &'a [u8],
    file: Option<(usize, usize)>,
    bytes: usize,
) -> impl Iterator<Item = Job<'a>> {
    let block = to.block_bytes();
    let each = (bytes / block).max(1);
    raw.chunks(each * block).enumerate().map(move |(n, raw)| {
        let reader = file.map(|(number, at)| {
            let from = at + n * each * block;
            (number, from..from + raw.len())
        });
        Job { to, first: n * each, raw, reader }
    })
}

/// What the threads of an upload share.
struct Work<'a> {
    jobs: &'a [Job<'a>],
    readers: Vec<Reader<'a>>,
    copy: Option<&'a HostCopy>,
    next: AtomicUsize,
    /// Bytes that are there.
    done: AtomicU64,
    total: u64,
    ended: AtomicBool,
    failed: Mutex<Option<CudaError>>,
    follow: Follow<'a>,
}

impl Work<'_> {
    /// Does jobs until there are none. One that only helps does without if there is no memory for it.
    fn run(&self, device: &Device, helps: bool) {
        let pieces = device.beside().and_then(|device| Ok((self.pieces(&device)?, device)));
        let result = match pieces {
            Err(CudaError::NoMemory { .. }) if helps => Ok(()),
            Err(error) => Err(error),
            Ok((mut pieces, device)) => {
                let carried = self.carry(&device, &mut pieces);
                // Nothing is on its way any more that others may let go of.
                carried.and(device.wait())
            }
        };
        if let Err(error) = result {
            self.ended.store(true, Ordering::Relaxed);
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    fn pieces(&self, device: &Device) -> Result<[Piece; 2], CudaError> {
        let bytes = self.jobs.iter().map(|job| job.raw.len()).max().unwrap_or(0);
        // What is copied has locked memory of its own.
        let locked = if self.copy.is_some() { 0 } else { bytes + SLACK };
        let piece = || Ok(Piece { locked: device.pinned(locked)?, stage: device.buffer(bytes)?, free: device.mark()? });
        Ok([piece()?, piece()?])
    }

    fn carry(&self, device: &Device, pieces: &mut [Piece; 2]) -> Result<(), CudaError> {
        for turn in (0..2).cycle() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.jobs.get(number) else { break };
            if self.ended.load(Ordering::Relaxed) {
                break;
            }
            let piece = &mut pieces[turn];
            match self.copy {
                None => {
                    // SAFETY: the mark is set behind what reads them, and where it could not be, nobody comes here again.
                    let locked = unsafe { piece.locked.bytes_after(&piece.free)? };
                    let part = self.read(job, locked)?;
                    send(device, job, &locked[part], &piece.stage)?;
                }
                // Its stage is used by this stream alone, in order.
                Some(copy) => {
                    let read = |locked: &mut [u8]| self.read(job, locked);
                    send(device, job, copy.piece(device, number, job.raw.len() + SLACK, read)?, &piece.stage)?;
                }
            }
            piece.free.set(device)?;
            let bytes = job.raw.len() as u64;
            let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if !(self.follow)(done, self.total) {
                return Err(CudaError::Stopped);
            }
        }
        Ok(())
    }

    /// Brings a job's bytes to locked memory, to the part of it that is returned.
    fn read(&self, job: &Job<'_>, locked: &mut [u8]) -> Result<Range<usize>, CudaError> {
        match &job.reader {
            Some((number, range)) => self.readers[*number]
                .read(range.clone(), locked)
                .map_err(|error| CudaError::File { reason: error.to_string() }),
            None => {
                let part = 0..job.raw.len();
                locked[part.clone()].copy_from_slice(job.raw);
                Ok(part)
            }
        }
    }
}

/// Sends a job's bytes, which lie in locked memory. They are on their way when it returns.
fn send(device: &Device, job: &Job<'_>, locked: &[u8], stage: &Buffer<u8>) -> Result<(), CudaError> {
    let Job { to, first, .. } = *job;
    if to.takes_bytes() {
        device.write(stage.view(), locked)?;
        return split(device, stage, locked.len(), first, to);
    }
    let at = first * to.block_bytes();
    device.write(to.data().part(at..at + locked.len()), locked)
}

/// Makes planes of `bytes` bytes of blocks, of which the first is number `first` of the matrix.
fn split(device: &Device, stage: &Buffer<u8>, bytes: usize, first: usize, to: &DeviceMatrix) -> Result<(), CudaError> {
    let (block, mut plane) = (to.block_bytes(), 0);
    let (blocks, count) = (to.data().len() / block, bytes / block);
    if bytes > stage.len() || first + count > blocks {
        return Err(shape(format!("blocks {first} and {count} more of {blocks}")));
    }
    for (offset, length) in to.planes() {
        let grid = [(count * length / 2).div_ceil(256), 1, 1];
        let [size, begin, length, offset] = [int(block)?, int(plane)?, int(*length)?, int(*offset)?];
        let arguments: [Arg; 9] = [
            stage.into(),
            to.data().into(),
            (blocks as u64).into(),
            (first as u64).into(),
            (count as u64).into(),
            size.into(),
            begin.into(),
            length.into(),
            offset.into(),
        ];
        // SAFETY: in the order of `split` in rows.cu. `stage` has `count` blocks, which are some of the matrix; planes together have a
        // block's bytes, so the last one ends where the data does.
        unsafe { device.launch("split", grid, 256, &arguments)? };
        plane += length as usize;
    }
    Ok(())
}
