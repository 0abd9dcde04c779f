//! Copies of weights in locked memory of the host, between a card and the disk.
//!
//! A model that goes from its card and has a copy comes back at the bus's rate, with nothing read. Copies have a budget of their own; in
//! it, those that were used longest ago go first. Without them there is the system's page cache, which costs a copy by the processor.

#![expect(unsafe_code, reason = "fills memory that a card will read")]

use super::device::{CudaError, Device, shape};
use super::memory::Pinned;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A piece of an upload.
#[derive(Debug)]
struct Held {
    locked: Pinned,
    /// Where in it the bytes lie.
    part: Range<usize>,
}

/// A copy of one model's matrices, in the pieces in which they are sent.
#[derive(Debug, Default)]
pub struct HostCopy {
    pieces: OnceLock<Box<[OnceLock<Held>]>>,
}

impl HostCopy {
    /// Says of how many pieces it is.
    ///
    /// # Errors
    /// `Shape` if it is of another number already.
    pub(super) fn expect(&self, pieces: usize) -> Result<(), CudaError> {
        let all = self.pieces.get_or_init(|| (0..pieces).map(|_| OnceLock::new()).collect());
        if all.len() == pieces { Ok(()) } else { Err(shape(format!("a copy of {} pieces, not {pieces}", all.len()))) }
    }

    /// The bytes of a piece. If it is not there, `read` puts it somewhere in so many bytes, and says where. Each piece is asked for by
    /// one thread.
    ///
    /// # Errors
    /// Those of `read`; `NoLocked`.
    pub(super) fn piece(
        &self,
        device: &Device,
        number: usize,
        room: usize,
        read: impl FnOnce(&mut [u8]) -> Result<Range<usize>, CudaError>,
    ) -> Result<&[u8], CudaError> {
        let slot = self.pieces.get().and_then(|all| all.get(number));
        let slot = slot.ok_or_else(|| shape(format!("a copy without a piece {number}")))?;
        if let Some(held) = slot.get() {
            return Ok(&held.locked.bytes()[held.part.clone()]);
        }
        let mut locked = device.pinned(room)?;
        // SAFETY: it is new, and the card knows nothing of it.
        let part = read(unsafe { locked.bytes_now() })?;
        let held = slot.get_or_init(|| Held { locked, part });
        Ok(&held.locked.bytes()[held.part.clone()])
    }
}

#[derive(Debug)]
struct Kept {
    digest: String,
    bytes: u64,
    copy: Arc<HostCopy>,
    /// Whether all of it is there.
    whole: bool,
}

/// All copies of an engine; the one that was used last is at the end.
#[derive(Debug)]
pub struct Copies {
    budget: u64,
    kept: Mutex<Vec<Kept>>,
}

impl Copies {
    /// None yet, and so many bytes for those that come.
    pub fn new(budget: u64) -> Self {
        Self { budget, kept: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Nothing that runs under the lock can leave it half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The copy of a model, or one to be made of so many bytes, for which others go if they must. `None` if it does not fit beside those
    /// in use.
    pub fn of(&self, digest: &str, bytes: u64) -> Option<Arc<HostCopy>> {
        let mut kept = self.lock();
        if let Some(at) = kept.iter().position(|one| one.digest == digest) {
            let one = kept.remove(at);
            let copy = one.copy.clone();
            kept.push(one);
            return Some(copy);
        }
        let taken = |kept: &[Kept]| kept.iter().map(|one| one.bytes).sum::<u64>();
        let in_use = |one: &Kept| Arc::strong_count(&one.copy) > 1;
        let stays: u64 = kept.iter().filter(|one| in_use(one)).map(|one| one.bytes).sum();
        if stays.saturating_add(bytes) > self.budget {
            return None;
        }
        while taken(&kept) + bytes > self.budget {
            let oldest = kept.iter().position(|one| !in_use(one))?;
            kept.remove(oldest);
        }
        let copy = Arc::<HostCopy>::default();
        kept.push(Kept { digest: digest.into(), bytes, copy: copy.clone(), whole: false });
        Some(copy)
    }

    /// Says that the copy of `digest` is whole, or that it is of no use.
    pub fn note(&self, digest: &str, whole: bool) {
        let mut kept = self.lock();
        match kept.iter().position(|one| one.digest == digest) {
            Some(at) if whole => kept[at].whole = true,
            // One that was whole still is.
            Some(at) if !kept[at].whole => drop(kept.remove(at)),
            _ => {}
        }
    }

    /// Whether there is a whole copy of a model.
    pub fn has(&self, digest: &str) -> bool {
        self.lock().iter().any(|one| one.digest == digest && one.whole)
    }

    /// Bytes that copies may take, and that they take.
    pub fn memory(&self) -> (u64, u64) {
        (self.budget, self.lock().iter().map(|one| one.bytes).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_copies_go_and_those_in_use_stay() {
        let all = Copies::new(100);
        let copy = |digest, bytes| all.of(digest, bytes);
        let a = copy("a", 40);
        assert!(a.is_some() && !all.has("a"), "nothing is in it");
        all.note("a", true);
        drop(copy("b", 40));
        all.note("b", true);
        assert!(all.has("a") && all.has("b"));
        assert!(copy("c", 61).is_none(), "a is in use");
        assert_eq!(all.memory(), (100, 80), "and nothing went for that");
        drop(a);
        drop(copy("a", 40));
        drop(copy("c", 60));
        assert!(all.has("a") && !all.has("b") && !all.has("c"), "b was used before a");
        all.note("c", false);
        assert_eq!(all.memory(), (100, 40));
        all.note("a", false);
        assert!(all.has("a"), "a load that failed later takes nothing from it");
        assert!(copy("d", 101).is_none());
    }
}
