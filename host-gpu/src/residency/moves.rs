//! How models came into memory and left it, and how long that took. Known also of those that are absent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Models of which this is known; beyond that all are forgotten, and learnt anew.
const MANY: usize = 1024;

/// How often a model came and went, and how long the last time took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// How often it was brought into memory.
    pub loads: u64,
    /// How long the last of these took.
    pub last_load: Option<Duration>,
    /// How often its memory was given back.
    pub evictions: u64,
    /// How long the last of these took.
    pub last_eviction: Option<Duration>,
}

/// Those of all models, by digest.
#[derive(Clone, Debug, Default)]
pub(super) struct AllMoves(Arc<Mutex<HashMap<String, Moves>>>);

impl AllMoves {
    pub(super) fn of(&self, digest: &str) -> Moves {
        self.lock().get(digest).copied().unwrap_or_default()
    }

    /// How many there were of all models.
    pub(super) fn evictions(&self) -> u64 {
        self.lock().values().map(|moves| moves.evictions).sum()
    }

    pub(super) fn loaded(&self, digest: &str, time: Duration) {
        self.note(digest, |moves| (moves.loads, moves.last_load) = (moves.loads + 1, Some(time)));
    }

    pub(super) fn evicted(&self, digest: &str, time: Duration) {
        self.note(digest, |moves| (moves.evictions, moves.last_eviction) = (moves.evictions + 1, Some(time)));
    }

    fn note(&self, digest: &str, note: impl FnOnce(&mut Moves)) {
        let mut all = self.lock();
        if all.len() >= MANY && !all.contains_key(digest) {
            all.clear();
        }
        note(all.entry(digest.to_owned()).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Moves>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
