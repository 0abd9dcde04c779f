//! A few threads that share the work of one operation at a time.
//!
//! The thread that calls [`Pool::run`] works too, and takes chunks from the same counter: a
//! worker that the system preempted delays the operation by one chunk at most, and one that
//! has not woken delays nothing. Workers spin briefly after an operation, because the next one
//! usually follows within microseconds, then sleep.

#![expect(unsafe_code, reason = "threads borrow a caller's closure and disjoint parts of a buffer")]

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for the next operation before it sleeps: longer than the gaps inside
/// a step, shorter than anybody would notice on a bill.
const SPIN: Duration = Duration::from_micros(60);

/// How long a caller looks for workers to finish before it sleeps: longer than a chunk takes.
const PATIENCE: Duration = Duration::from_micros(100);

/// One operation: `body` is called once for each chunk number below `chunks`.
struct Operation<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    chunks: usize,
    next: OwnLine<AtomicUsize>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Operation<'_> {
    /// Takes chunks until none is left.
    fn work(&self) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let chunk = self.next.0.fetch_add(1, Ordering::Relaxed);
                if chunk >= self.chunks {
                    break;
                }
                (self.body)(chunk);
            }
        }));
        if let Err(panic) = result {
            self.next.0.store(self.chunks, Ordering::Relaxed);
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

/// What the caller and its workers share.
struct Shared {
    /// The operation that is open, or null. The lifetime is erased; see [`Pool::run`].
    current: AtomicPtr<Operation<'static>>,
    /// Counts operations, so that a worker enters each at most once.
    epoch: AtomicU64,
    stop: AtomicBool,
    /// Workers that may be looking at `current`.
    inside: OwnLine<AtomicUsize>,
    /// The caller, while it sleeps until no worker is inside.
    waiting: Mutex<Option<Thread>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<Thread>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On cache lines of its own: who waits for one thing is not slowed by writes to another.
#[repr(align(128))]
struct OwnLine<T>(T);

struct Worker {
    asleep: Arc<AtomicBool>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// Threads that wait for operations. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

impl Pool {
    /// A pool where `threads` threads work on an operation, the caller of [`Pool::run`] included.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            current: AtomicPtr::new(ptr::null_mut()),
            epoch: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            inside: OwnLine(AtomicUsize::new(0)),
            waiting: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for number in 1..threads.max(1) {
            pool.workers.push(start_worker(&pool.shared, number)?);
        }
        Ok(pool)
    }

    /// How many threads work on an operation.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once for every chunk number below `chunks`, on all threads, and returns when
    /// all calls have returned. A panic in `body` is raised again here.
    pub fn run(&mut self, chunks: usize, body: impl Fn(usize) + Sync) {
        let operation = Operation { body: &body, chunks, next: OwnLine(AtomicUsize::new(0)), panic: Mutex::new(None) };
        if chunks > 1 && !self.workers.is_empty() {
            let erased = ptr::from_ref(&operation).cast_mut().cast::<Operation<'static>>();
            // From here until `inside` is seen at zero below, workers may read `operation`.
            self.shared.current.store(erased, Ordering::SeqCst);
            // Only now: a worker that saw the count before the operation would pass it by.
            self.shared.epoch.fetch_add(1, Ordering::SeqCst);
            self.wake();
            operation.work(); // catches panics: the borrow never ends early
            self.shared.current.store(ptr::null_mut(), Ordering::SeqCst);
            self.wait_until_left();
        } else {
            operation.work();
        }
        let panic = operation.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn wake(&self) {
        for worker in &self.workers {
            if worker.asleep.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
    }

    /// Waits for workers to finish their chunks. One that takes long was preempted, perhaps by us: then we sleep, so that
    /// it gets the core and we keep our claim to one.
    fn wait_until_left(&self) {
        let since = Instant::now();
        let mut spins = 0u32;
        while self.shared.inside.0.load(Ordering::SeqCst) != 0 {
            spins = spins.wrapping_add(1);
            if !spins.is_multiple_of(64) || since.elapsed() < PATIENCE {
                std::hint::spin_loop();
                continue;
            }
            *self.shared.waiting() = Some(thread::current());
            // A worker that left before it could see us waiting would not wake us: look once more.
            if self.shared.inside.0.load(Ordering::SeqCst) != 0 {
                thread::park();
            }
            *self.shared.waiting() = None;
        }
    }

    /// Runs `body(row, values)` for each row of `out`, which has rows of `width` values.
    pub fn rows<T: Send>(&mut self, out: &mut [T], width: usize, body: impl Fn(usize, &mut [T]) + Sync) {
        assert!(width > 0 && out.len().is_multiple_of(width), "rows are whole");
        let rows = out.len() / width;
        let columns = Columns::new(out, width);
        self.run(rows, |row| {
            // SAFETY: `run` calls with each number once, so each row is handed out once.
            let values = unsafe { columns.part(row, 0..width) };
            body(row, values);
        });
    }

    /// Runs `body` for ranges of at most `chunk` columns that together cover the `width` columns
    /// of `out` once. Row `r` of the range is `view.row(r)`.
    pub fn columns<T: Send>(&mut self, out: &mut [T], width: usize, chunk: usize, body: impl Fn(View<'_, T>) + Sync) {
        self.columns_of(out, width, 0..width, chunk, body);
    }

    /// The same for the columns `of` alone.
    pub fn columns_of<T: Send>(
        &mut self,
        out: &mut [T],
        width: usize,
        of: Range<usize>,
        chunk: usize,
        body: impl Fn(View<'_, T>) + Sync,
    ) {
        assert!(width > 0 && chunk > 0 && out.len().is_multiple_of(width), "rows are whole");
        assert!(of.start <= of.end && of.end <= width, "columns of the matrix");
        let columns = Columns::new(out, width);
        self.run(of.len().div_ceil(chunk), |n| {
            let range = of.start + n * chunk..of.end.min(of.start + (n + 1) * chunk);
            // Each call has a range of its own: the ranges of different `n` do not overlap.
            body(View { columns: &columns, range, rows: 0..columns.rows() });
        });
    }

    /// Runs `body(n, c, view)` for each of the ranges of rows in `rows` and each `chunk` columns of `out`: `n` says
    /// which range it is, `c` which chunk, and row `r` of the range is `view.row(r)`. Of each chunk the last range comes
    /// first: put the longest work there, so that threads end together.
    ///
    /// # Panics
    /// If ranges overlap or are not in order, or `chunk` does not divide `width`.
    pub fn tiles<T: Send>(
        &mut self,
        out: &mut [T],
        width: usize,
        rows: &[Range<usize>],
        chunk: usize,
        body: impl Fn(usize, usize, View<'_, T>) + Sync,
    ) {
        assert!(chunk > 0 && width.is_multiple_of(chunk) && out.len().is_multiple_of(width), "rows are whole");
        assert!(rows.windows(2).all(|pair| pair[0].end <= pair[1].start), "no row is in two ranges");
        let (columns, chunks) = (Columns::new(out, width), width / chunk);
        let tiles = rows.len() * chunks;
        self.run(tiles, |n| {
            let (c, n) = (n / rows.len(), rows.len() - 1 - n % rows.len());
            // Each call has a tile of its own: ranges of rows do not overlap, nor do chunks of columns.
            body(n, c, View { columns: &columns, range: c * chunk..(c + 1) * chunk, rows: rows[n].clone() });
        });
    }
}

fn start_worker(shared: &Arc<Shared>, number: usize) -> std::io::Result<Worker> {
    let asleep = Arc::new(AtomicBool::new(false));
    let (theirs, flag) = (shared.clone(), asleep.clone());
    let handle = thread::Builder::new().name(format!("hob-compute-{number}")).spawn(move || serve(&theirs, &flag))?;
    Ok(Worker { asleep, thread: handle.thread().clone(), handle: Some(handle) })
}

/// A worker's life: look for an operation, work on it, sleep when none comes.
fn serve(shared: &Shared, asleep: &AtomicBool) {
    let mut seen = 0;
    let mut idle_since = Instant::now();
    let mut spins = 0u32;
    while !shared.stop.load(Ordering::Relaxed) {
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            seen = epoch;
            enter(shared);
            idle_since = Instant::now();
            continue;
        }
        spins = spins.wrapping_add(1);
        if !spins.is_multiple_of(64) || idle_since.elapsed() < SPIN {
            std::hint::spin_loop();
            continue;
        }
        asleep.store(true, Ordering::SeqCst);
        // An operation opened before the flag was seen set would not wake us: look once more.
        if shared.epoch.load(Ordering::SeqCst) == seen && !shared.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
        idle_since = Instant::now();
    }
}

fn enter(shared: &Shared) {
    shared.inside.0.fetch_add(1, Ordering::SeqCst);
    let current = shared.current.load(Ordering::SeqCst);
    if let Some(operation) = NonNull::new(current) {
        // SAFETY: `inside` was raised before `current` was read, and `run` clears `current`
        // before it waits for `inside` to be zero (all sequentially consistent): as we saw the
        // pointer, `run` is still waiting for us, so the operation and all it borrows live.
        unsafe { operation.as_ref() }.work();
    }
    if shared.inside.0.fetch_sub(1, Ordering::SeqCst) == 1
        && let Some(caller) = shared.waiting().take()
    {
        caller.unpark();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches what operations raise, so it has nothing to tell.
                let _ = handle.join();
            }
        }
    }
}

/// A matrix whose columns are handed out in ranges that do not overlap.
pub(super) struct Columns<'a, T> {
    start: *mut T,
    len: usize,
    width: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` from which threads take disjoint parts.
unsafe impl<T: Send> Sync for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    pub(super) fn new(out: &'a mut [T], width: usize) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), width, borrow: PhantomData }
    }

    fn rows(&self) -> usize {
        self.len / self.width
    }

    /// # Safety
    /// Nobody else may hold a part of `row` that overlaps `range` while the result lives.
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint, as the contract says")]
    unsafe fn part(&self, row: usize, range: Range<usize>) -> &mut [T] {
        let begin = row * self.width + range.start;
        assert!(range.start <= range.end && range.end <= self.width, "range inside a row");
        assert!(begin + range.len() <= self.len, "row inside the matrix");
        // SAFETY: inside the buffer by the assertions, not aliased by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), range.len()) }
    }
}

/// A range of columns of some rows of a matrix, of which its holder is the only user.
pub struct View<'a, T = f32> {
    columns: &'a Columns<'a, T>,
    range: Range<usize>,
    rows: Range<usize>,
}

impl<'a, T> View<'a, T> {
    /// All of a matrix. The only view of it: it borrows what hands out others.
    pub(super) fn whole(columns: &'a mut Columns<'_, T>) -> Self {
        let range = 0..columns.width;
        Self { columns, range, rows: 0..columns.rows() }
    }
}

impl<T> View<'_, T> {
    /// Which columns.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The values of the view's row `row` in the range.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows.len(), "row of the view");
        // SAFETY: views of one matrix have no value in common, and `self` is borrowed mutably.
        unsafe { self.columns.part(self.rows.start + row, self.range.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_for_any_number_of_threads() {
        for threads in 1..5 {
            let mut pool = Pool::new(threads).unwrap();
            for chunks in [0, 1, 2, 3, 17, 1000] {
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, |n| {
                    counts[n].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_operations_and_sleeps_between_them() {
        let mut pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(4, |n| {
                total.fetch_add(n + 1, Ordering::Relaxed);
            });
            if round % 4_000 == 0 {
                while !pool.workers.iter().all(|w| w.asleep.load(Ordering::SeqCst)) {
                    thread::yield_now();
                }
            }
        }
        assert_eq!(total.into_inner(), 20_000 * 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives() {
        let mut pool = Pool::new(2).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, |n| assert_ne!(n, 7))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(10, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 10);
    }

    #[test]
    fn columns_cover_the_matrix() {
        let mut pool = Pool::new(2).unwrap();
        let mut out = vec![0.0; 3 * 10];
        pool.columns(&mut out, 10, 4, |mut view| {
            for row in 0..3 {
                let first = view.range().start;
                for (i, value) in view.row(row).iter_mut().enumerate() {
                    *value += (row * 10 + first + i) as f32;
                }
            }
        });
        assert!(out.iter().enumerate().all(|(i, v)| *v == i as f32));
        pool.columns_of(&mut out, 10, 3..8, 2, |mut view| view.row(1).fill(-1.0));
        assert!(out.iter().enumerate().all(|(i, v)| *v == if (13..18).contains(&i) { -1.0 } else { i as f32 }));
    }

    #[test]
    fn tiles_cover_the_rows_they_are_given() {
        let mut pool = Pool::new(2).unwrap();
        let mut out = vec![0; 6 * 4];
        pool.tiles(&mut out, 4, &[0..1, 2..5], 2, |n, c, mut view| {
            for row in 0..if n == 0 { 1 } else { 3 } {
                view.row(row).fill(1 + 10 * n + c);
            }
        });
        let want = [[1, 1, 2, 2], [0; 4], [11, 11, 12, 12], [11, 11, 12, 12], [11, 11, 12, 12], [0; 4]];
        assert_eq!(out, want.concat());
        let overlap = AssertUnwindSafe(|| pool.tiles(&mut out, 4, &[0..2, 1..3], 2, |_, _, _| ()));
        assert!(catch_unwind(overlap).is_err());
    }
}
