//! Weights on their way to a card: `kernels/rows.cu`, `split`.
//!
//! The driver copies from locked memory at the bus's rate, and meanwhile the processor is free; what lies in a mapped file it would first copy
//! itself. So each of a few threads has two pieces of locked memory, and fills one while the other is on its way. Blocks become planes on
//! the card, piece by piece.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::device::{CudaError, Device, int, shape};
use super::matrix::DeviceMatrix;
use super::memory::{Buffer, Mark, Pinned};
use crate::ops::cpu::matmul::Matrix;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How an upload is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Threads, at most.
    pub threads: usize,
    /// Bytes of a piece, or one block if that is more. Each thread has two, here and on the card.
    pub bytes: usize,
}

impl Default for Cut {
    /// Four threads, or as many as there are cores: one alone may copy more slowly than the bus takes it.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: cores.min(4), bytes: 4 << 20 }
    }
}

/// Who follows an upload: it is told how many bytes are there, of how many, and says whether to go on.
pub type Follow<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

impl DeviceMatrix {
    /// Copies `w` to the card, as planes.
    ///
    /// # Errors
    /// `NoMemory`, or `Shape` for a matrix that is larger than kernels count.
    pub fn upload(device: &Device, w: &Matrix<'_>) -> Result<Self, CudaError> {
        let matrix = Self::empty(device, w)?;
        upload(device, &[(&matrix, w.bytes)], Cut::default(), &|_, _| true)?;
        Ok(matrix)
    }
}

/// Some blocks of a matrix.
struct Job<'a> {
    to: &'a DeviceMatrix,
    /// The first of them.
    first: usize,
    raw: &'a [u8],
}

/// Memory for one job.
struct Piece {
    locked: Pinned,
    /// Blocks, before they have become planes.
    stage: Buffer<u8>,
    /// When both may be used again.
    free: Mark,
}

/// Fills each matrix with the bytes of its like in a file. All is there when it returns.
///
/// # Errors
/// `Shape` for bytes that are not as many as the matrix has; `NoMemory`, if there is not even room for a piece; `Stopped`; what the
/// driver says.
pub fn upload(
    device: &Device,
    weights: &[(&DeviceMatrix, &[u8])],
    cut: Cut,
    follow: Follow<'_>,
) -> Result<(), CudaError> {
    if let Some((to, raw)) = weights.iter().find(|(to, raw)| to.data().len() != raw.len()) {
        return Err(shape(format!("{} bytes for a matrix of {}", raw.len(), to.data().len())));
    }
    let total: usize = weights.iter().map(|(_, raw)| raw.len()).sum();
    let jobs: Vec<Job<'_>> = weights.iter().flat_map(|(to, raw)| jobs(to, raw, cut.bytes)).collect();
    // Matrices were cleared, and not on the streams that fill them.
    device.wait()?;
    let work = Work {
        jobs: &jobs,
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

fn jobs<'a>(to: &'a DeviceMatrix, raw: &'a [u8], bytes: usize) -> impl Iterator<Item = Job<'a>> {
    let block = to.block_bytes();
    let each = (bytes / block).max(1);
    raw.chunks(each * block).enumerate().map(move |(n, raw)| Job { to, first: n * each, raw })
}

/// What the threads of an upload share.
struct Work<'a> {
    jobs: &'a [Job<'a>],
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
        let pieces = device.beside().and_then(|device| Ok((Piece::pair(&device, self.largest())?, device)));
        let result = match pieces {
            Err(CudaError::NoMemory { .. }) if helps => Ok(()),
            Err(error) => Err(error),
            Ok((mut pieces, device)) => self.carry(&device, &mut pieces),
        };
        if let Err(error) = result {
            self.ended.store(true, Ordering::Relaxed);
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    fn largest(&self) -> usize {
        self.jobs.iter().map(|job| job.raw.len()).max().unwrap_or(0)
    }

    fn carry(&self, device: &Device, pieces: &mut [Piece; 2]) -> Result<(), CudaError> {
        for turn in (0..2).cycle() {
            let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) else { break };
            if self.ended.load(Ordering::Relaxed) {
                break;
            }
            pieces[turn].send(device, job)?;
            let bytes = job.raw.len() as u64;
            let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if !(self.follow)(done, self.total) {
                return Err(CudaError::Stopped);
            }
        }
        device.wait()
    }
}

impl Piece {
    fn pair(device: &Device, bytes: usize) -> Result<[Self; 2], CudaError> {
        let piece = || Ok(Self { locked: device.pinned(bytes)?, stage: device.buffer(bytes)?, free: device.mark()? });
        Ok([piece()?, piece()?])
    }

    /// Sends a job's bytes. They are on their way when it returns.
    fn send(&mut self, device: &Device, job: &Job<'_>) -> Result<(), CudaError> {
        let Job { to, first, raw } = *job;
        // SAFETY: the mark is set behind what reads them, and where it could not be, nobody comes here again.
        let locked = unsafe { self.locked.bytes_after(&self.free)? };
        let Some(locked) = locked.get_mut(..raw.len()) else { return Err(shape("a piece that is too small".into())) };
        locked.copy_from_slice(raw);
        if to.takes_bytes() {
            device.write(self.stage.view(), locked)?;
            split(device, &self.stage, raw.len(), first, to)?;
        } else {
            let at = first * to.block_bytes();
            device.write(to.data().part(at..at + raw.len()), locked)?;
        }
        self.free.set(device)
    }
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
