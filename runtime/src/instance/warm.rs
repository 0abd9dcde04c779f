//! Instances that have answered and may answer again: the ones left last are taken first, those left long ago go.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::callable::{Callable, Instance};

/// The idle instances of one function.
#[derive(Default)]
pub(super) struct Warm(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    idle: Vec<Idle>,
    /// A task looks after them.
    watched: bool,
}

struct Idle {
    instance: Instance,
    since: Instant,
    /// Who left it: what it has touched is in that core's caches, and what it has allocated in that thread's heap.
    thread: ThreadId,
    /// Its share of the room for idle instances.
    _room: OwnedSemaphorePermit,
}

impl Callable {
    /// An instance that was kept: the last that this thread has left, or that anybody has.
    pub(super) fn take_warm(&self) -> Option<Instance> {
        if self.reuse.requests == 1 {
            return None;
        }
        let mut kept = self.warm.0.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = std::thread::current().id();
        let at = kept.idle.iter().rposition(|idle| idle.thread == thread).or(kept.idle.len().checked_sub(1))?;
        let idle = kept.idle.remove(at);
        drop(kept);
        // The watch may be late.
        (idle.since.elapsed() < self.idle_time()).then_some(idle.instance)
    }

    /// Keeps an instance for a next request, if it may serve one and there is room.
    pub(super) fn keep_warm(self: &Arc<Self>, mut instance: Instance) {
        instance.served += 1;
        if instance.served >= self.reuse.requests {
            return;
        }
        // It must not hold on to a request that has ended.
        instance.store.data_mut().renew(self.resting.clone(), self.resting.meter.clone());
        let Ok(room) = self.services.idle.clone().try_acquire_owned() else { return };
        let mut kept = self.warm.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.push(Idle { instance, since: Instant::now(), thread: std::thread::current().id(), _room: room });
        if !std::mem::replace(&mut kept.watched, true) {
            tokio::spawn(watch(Arc::downgrade(self), self.idle_time()));
        }
    }

    fn idle_time(&self) -> Duration {
        Duration::from_millis(self.reuse.idle_ms.into())
    }

    /// Drops what has been idle too long. `false` when nothing is left to look after.
    fn sweep(&self) -> bool {
        let idle_time = self.idle_time();
        let mut gone = Vec::new();
        let mut kept = self.warm.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = kept.idle.iter().position(|idle| idle.since.elapsed() < idle_time).unwrap_or(kept.idle.len());
        gone.extend(kept.idle.drain(..fresh));
        kept.watched = !kept.idle.is_empty();
        let watched = kept.watched;
        drop(kept);
        // Instances are dropped without the lock: that takes a while.
        drop(gone);
        watched
    }
}

async fn watch(callable: Weak<Callable>, idle_time: Duration) {
    loop {
        tokio::time::sleep(idle_time.max(Duration::from_millis(10))).await;
        // The function may be gone, and its idle instances with it.
        match callable.upgrade() {
            Some(callable) if callable.sweep() => {}
            _ => return,
        }
    }
}
