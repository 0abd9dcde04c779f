//! Who may run now: so many requests of a function at once, so many that wait, and not for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RequestError;
use crate::config::Concurrency;

/// The gate of one function. Requests pass in the order in which they came.
pub struct Gate {
    limits: Concurrency,
    free: Arc<Semaphore>,
    waiting: AtomicU32,
}

impl Gate {
    /// A gate that holds to `limits`.
    pub fn new(limits: Concurrency) -> Self {
        let free = Arc::new(Semaphore::new(limits.running as usize));
        Self { limits, free, waiting: AtomicU32::new(0) }
    }

    /// Lets a request in, at once or after others have ended; until the permit is dropped it counts as running.
    ///
    /// # Errors
    /// `TooMany` when the queue is full, or the wait too long.
    pub async fn admit(&self) -> Result<OwnedSemaphorePermit, RequestError> {
        match self.free.clone().try_acquire_owned() {
            Ok(permit) => Ok(permit),
            Err(_) => self.wait().await,
        }
    }

    /// Requests that run now, and that wait.
    pub fn load(&self) -> (u32, u32) {
        let running = self.limits.running.saturating_sub(self.free.available_permits() as u32);
        (running, self.waiting.load(Ordering::Relaxed))
    }

    async fn wait(&self) -> Result<OwnedSemaphorePermit, RequestError> {
        let _place = Place::take(&self.waiting, self.limits.queued)
            .ok_or_else(|| self.refusal("all places in its queue are taken"))?;
        let wait = Duration::from_millis(self.limits.queue_wait_ms.into());
        match tokio::time::timeout(wait, self.free.clone().acquire_owned()).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(self.refusal("none ended in time")),
        }
    }

    fn refusal(&self, why: &'static str) -> RequestError {
        let Concurrency { running, queued, .. } = self.limits;
        RequestError::TooMany { running, queued, why }
    }
}

/// A place in the queue; given back by `Drop`, also when the client leaves.
struct Place<'a>(&'a AtomicU32);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicU32, most: u32) -> Option<Self> {
        let more = |waiting| (waiting < most).then_some(waiting + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_and_patience_too() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let gate = Gate::new(Concurrency { running: 1, queued: 1, queue_wait_ms: 20 });
            let first = gate.admit().await.unwrap();
            assert_eq!(gate.load(), (1, 0));
            {
                let waits = gate.admit();
                tokio::pin!(waits);
                assert!(futures_now(&mut waits).await.is_none(), "the second waits");
                assert_eq!(gate.load(), (1, 1));
                assert!(
                    matches!(gate.admit().await, Err(RequestError::TooMany { .. })),
                    "the third is refused at once"
                );
                drop(first);
                let _second = waits.await.unwrap();
                let started = std::time::Instant::now();
                assert!(matches!(gate.admit().await, Err(RequestError::TooMany { .. })));
                assert!(started.elapsed() >= Duration::from_millis(20), "a place in the queue, but none ended");
            }
            assert_eq!(gate.load(), (0, 0));
        });
    }

    /// A look at a future.
    async fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
