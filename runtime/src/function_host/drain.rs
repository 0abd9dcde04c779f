//! A host that stops: what runs may end, and nothing begins.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, Version, header};

use super::Host;
use crate::request::{Body, RequestError};

/// How often it is looked at whether all has ended.
const LOOK: Duration = Duration::from_millis(10);

impl Host {
    /// Takes no more requests from now on: they are refused, as ones that may succeed elsewhere or later. What runs, and what
    /// waits for its turn, goes on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing runs any more, and for `patience` at most. Gives how many requests still run.
    pub async fn drained(&self, patience: Duration) -> u64 {
        let until = Instant::now() + patience;
        loop {
            let running = self.running();
            if running == 0 || Instant::now() >= until {
                return running;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What still runs, and is dropped from now on, is dropped because the host stops.
    pub fn give_up(&self) {
        self.recent.stop();
    }

    /// Whether no more requests are taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The refusal of a request, if none is taken any more.
    pub(super) fn refuse<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        if !self.is_draining() {
            return None;
        }
        let mut response = self.lost(&RequestError::Stopping);
        if request.version() < Version::HTTP_2 {
            // Whoever keeps the connection would ask here again.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Some(response)
    }

    /// Requests that run or wait.
    fn running(&self) -> u64 {
        let table = self.table.load();
        let loads = table.functions().flat_map(|function| function.revisions.values()).map(|revision| revision.load());
        let calls = std::sync::Arc::strong_count(&self.calls) as u64 - 1;
        loads.map(|load| load.running + load.queued).sum::<u64>() + calls
    }
}
