//! The epoch clock: an operating-system thread of its own, so that no guest and no busy executor can stop it.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// Time between two epochs: how long a busy guest keeps its thread before it must yield, or a tenth longer, and how exactly its deadline is met.
pub const EPOCH: Duration = Duration::from_millis(1);

/// Advances the epoch until dropped.
pub struct Ticker {
    engines: Arc<Mutex<Vec<Engine>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the clock of `engine`.
    pub fn start(engine: Engine) -> Self {
        let engines = Arc::new(Mutex::new(vec![engine]));
        let ticking = engines.clone();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("hob-epoch".into())
            .spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EPOCH) {
                    for engine in ticking.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                        engine.increment_epoch();
                    }
                }
            })
            .expect("a thread can be started while the host starts");
        Self { engines, stop: Some(stop), thread: Some(thread) }
    }

    /// Advances the epoch of another engine too.
    pub fn add(&self, engine: Engine) {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
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
