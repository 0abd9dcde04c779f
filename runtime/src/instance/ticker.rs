//! The epoch clock: an operating-system thread of its own, so that no guest and no busy executor can stop it.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// Time between two epochs: how long a busy guest keeps its thread before it must yield, and how exactly its deadline is met.
pub const EPOCH: Duration = Duration::from_millis(1);

/// Advances the epoch until dropped.
pub struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the clock of `engine`.
    pub fn start(engine: Engine) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("hob-epoch".into())
            .spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EPOCH) {
                    engine.increment_epoch();
                }
            })
            .expect("a thread can be started while the host starts");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The clock cannot panic; if it did, deadlines are moot, since the host is going away.
            let _ = thread.join();
        }
    }
}
