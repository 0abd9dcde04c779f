//! Instances that answer several requests at once (WASI 0.3, when a function asks for it).
//!
//! Each runs in a task of its own that takes requests from a channel. What ends the instance - a trap, an exit, time
//! that is spent - ends all requests in it: that is the price of sharing, and why it must be asked for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use wasmtime::component::{Accessor, AccessorTask};
use wasmtime_wasi_http::handler::Proxy;
use wasmtime_wasi_http::p3::bindings::Service;

use super::callable::Callable;
use super::meter::Meter;
use super::serve::{Call, answer};
use crate::host::State;
use crate::request::{Invocation, RequestError, explain, spent_error};

/// The shared instances of one function.
#[derive(Default)]
pub(super) struct Shared(Mutex<Vec<Arc<Worker>>>);

/// An instance that takes requests.
pub(crate) struct Worker {
    calls: mpsc::UnboundedSender<Placed>,
    running: AtomicU32,
    served: AtomicU32,
    /// A request in it has ended.
    ended: Notify,
    /// Why it ended all that ran in it.
    fate: OnceLock<RequestError>,
}

/// A request with its place in an instance and among the running ones of its function.
struct Placed {
    call: Call,
    place: Place,
    _permit: OwnedSemaphorePermit,
}

/// Given back by `Drop`.
struct Place(Arc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_one();
    }
}

impl Worker {
    /// Why requests that were in it have no answer.
    pub(crate) fn fate(&self) -> RequestError {
        self.fate.get().cloned().unwrap_or(RequestError::Failed)
    }
}

impl Callable {
    /// Whether its instances answer several requests at once.
    pub(crate) fn is_shared(&self) -> bool {
        self.reuse.requests > 1 && self.reuse.concurrent > 1 && self.linked.is_concurrent()
    }

    /// Puts a request into an instance that has room, or a new one.
    pub(crate) fn place(self: &Arc<Self>, call: Call, permit: OwnedSemaphorePermit) -> Arc<Worker> {
        let mut workers = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        workers
            .retain(|worker| !worker.calls.is_closed() && worker.served.load(Ordering::Relaxed) < self.reuse.requests);
        let room = |worker: &&Arc<Worker>| worker.running.load(Ordering::Relaxed) < self.reuse.concurrent;
        let worker = match workers.iter().find(room) {
            Some(worker) => worker.clone(),
            None => {
                let (calls, taken) = mpsc::unbounded_channel();
                let worker = Arc::new(Worker {
                    calls,
                    running: AtomicU32::new(0),
                    served: AtomicU32::new(0),
                    ended: Notify::new(),
                    fate: OnceLock::new(),
                });
                workers.push(worker.clone());
                tokio::spawn(work(self.clone(), worker.clone(), taken));
                worker
            }
        };
        worker.running.fetch_add(1, Ordering::Relaxed);
        worker.served.fetch_add(1, Ordering::Relaxed);
        let placed = Placed { call, place: Place(worker.clone()), _permit: permit };
        // Under the lock: a worker closes its channel under it too, so what is sent is taken.
        let _ = worker.calls.send(placed);
        worker
    }
}

/// The life of a shared instance.
async fn work(callable: Arc<Callable>, worker: Arc<Worker>, mut calls: mpsc::UnboundedReceiver<Placed>) {
    run(&callable, &worker, &mut calls).await;
    let workers = callable.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    calls.close();
    drop(workers);
}

async fn run(callable: &Arc<Callable>, worker: &Arc<Worker>, calls: &mut mpsc::UnboundedReceiver<Placed>) {
    let Some(first) = calls.recv().await else { return };
    let invocation = first.call.invocation.clone();
    let meter = Arc::new(Meter::new(Instant::now()));
    allow(&meter, callable, &first);
    // Said before the requests are dropped, with the instance or after it: their callers ask at once.
    let end = |fate: RequestError| drop(worker.fate.set(fate));
    let mut instance = match meter.run(callable.start(&invocation, &meter)).await {
        Ok(Ok(instance)) => instance,
        Ok(Err(error)) => return end(explain(&error, callable.bounds(), &invocation, &meter)),
        Err(spent) => return end(spent_error(spent, callable.limits())),
    };
    let Proxy::P3(service) = instance.proxy else { return };
    let mut taker = Taker { callable, worker, calls, meter: meter.clone(), service: Arc::new(service) };
    let served = meter.run(instance.store.run_concurrent(async |store| taker.take(store, first).await)).await;
    let latest = instance.store.data().invocation.clone();
    match served.map(|served| served.and_then(|inner| inner)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => end(explain(&error, callable.bounds(), &latest, &meter)),
        // Nothing ran any more.
        Err(_) if worker.running.load(Ordering::Relaxed) == 0 => {}
        Err(spent) => end(spent_error(spent, callable.limits())),
    }
}

/// The instance runs on until the deadline of its latest request, and may compute as long as that one may.
fn allow(meter: &Meter, callable: &Callable, placed: &Placed) {
    let limits = callable.limits();
    let deadline = placed.call.invocation.started + limits.wall();
    meter.allow(deadline, limits.cpu());
}

/// Hands requests from the channel to the instance.
struct Taker<'a> {
    callable: &'a Arc<Callable>,
    worker: &'a Arc<Worker>,
    calls: &'a mut mpsc::UnboundedReceiver<Placed>,
    meter: Arc<Meter>,
    service: Arc<Service>,
}

impl Taker<'_> {
    async fn take(&mut self, store: &Accessor<State>, first: Placed) -> wasmtime::Result<()> {
        self.begin(store, first)?;
        let idle_time = Duration::from_millis(self.callable.reuse.idle_ms.into());
        loop {
            tokio::select! {
                placed = self.calls.recv() => match placed {
                    Some(placed) => self.begin(store, placed)?,
                    None => return Ok(()),
                },
                () = self.worker.ended.notified() => if self.is_used_up() && self.close() { return Ok(()) },
                () = tokio::time::sleep(idle_time) => if self.close() { return Ok(()) },
            }
        }
    }

    fn begin(&self, store: &Accessor<State>, placed: Placed) -> wasmtime::Result<()> {
        allow(&self.meter, self.callable, &placed);
        let invocation = placed.call.invocation.clone();
        store.with(|mut store| store.get().renew(invocation, self.meter.clone()));
        let wall = self.callable.limits().wall();
        store.spawn(Task {
            service: self.service.clone(),
            placed,
            wall,
            meter: self.meter.clone(),
            resting: self.callable.resting.clone(),
        })?;
        Ok(())
    }

    fn is_used_up(&self) -> bool {
        self.worker.served.load(Ordering::Relaxed) >= self.callable.reuse.requests
    }

    /// Takes no more requests, unless some run or are on their way.
    fn close(&mut self) -> bool {
        let _workers = self.callable.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.worker.running.load(Ordering::Relaxed) == 0;
        if done {
            self.calls.close();
        }
        done
    }
}

/// One request in a shared instance.
struct Task {
    service: Arc<Service>,
    placed: Placed,
    wall: Duration,
    /// The instance's.
    meter: Arc<Meter>,
    resting: Arc<Invocation>,
}

impl AccessorTask<State> for Task {
    async fn run(self, store: &Accessor<State>) -> wasmtime::Result<()> {
        let Placed { call, place, _permit } = self.placed;
        let deadline = call.invocation.started + self.wall;
        let (invocation, before) = (call.invocation.clone(), self.meter.cpu());
        let answered = tokio::time::timeout_at(deadline.into(), answer(&self.service, store, call, false)).await;
        // What others computed meanwhile is in it: the guest's tasks take turns within one turn of ours.
        invocation.meter.charge(self.meter.cpu().saturating_sub(before));
        invocation.meter.memory(usize::try_from(self.meter.memory_peak()).unwrap_or(usize::MAX));
        store.with(|mut store| {
            let state = store.get();
            if Arc::ptr_eq(&state.invocation, &invocation) {
                state.renew(self.resting.clone(), self.meter.clone());
            }
        });
        match answered {
            Ok(answered) => answered,
            Err(_) => {
                // Its task in the guest cannot be ended alone: the instance takes no more requests, and goes with the last.
                place.0.served.store(u32::MAX, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}
