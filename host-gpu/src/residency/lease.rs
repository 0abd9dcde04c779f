//! The right to something that stays while somebody has it, and when somebody last had.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What is leased, and when the last lease ended.
#[derive(Debug)]
pub(super) struct Leased<T> {
    value: T,
    /// Milliseconds of [`clock`].
    used: AtomicU64,
}

/// While one lives, what it is of stays.
#[derive(Debug)]
pub(crate) struct Lease<T>(Arc<Leased<T>>);

/// Time since the first call in this process.
fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

impl<T> Leased<T> {
    pub(super) fn new(value: T) -> Arc<Self> {
        let leased = Self { value, used: AtomicU64::new(0) };
        leased.touch();
        Arc::new(leased)
    }

    fn touch(&self) {
        self.used.store(clock().as_millis() as u64, Ordering::Relaxed);
    }

    /// How many leases there are on what only the caller holds besides.
    pub(super) fn leases(self: &Arc<Self>) -> usize {
        Arc::strong_count(self) - 1
    }

    /// For how long nobody has had one.
    pub(super) fn unused(&self) -> Duration {
        clock().saturating_sub(Duration::from_millis(self.used.load(Ordering::Relaxed)))
    }

    pub(super) fn lease(self: &Arc<Self>) -> Lease<T> {
        Lease(self.clone())
    }
}

impl<T> Clone for Lease<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Deref for Leased<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.0.touch();
    }
}
