//! Instances that answer several requests at once (WASI 0.3, when a function asks for it).
//!
//! Each runs in a task of its own that takes requests from a channel. What ends the instance - a trap, an exit, time
//! that is spent - ends all requests in it: that is the price of sharing, and why it must be asked for.
//!
//! A thread that serves has instances of its own: between threads each piece of an answer would wake the other one, which costs more than
//! what a second instance takes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
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

/// The shared instances of one function that take requests.
#[derive(Default)]
pub(super) struct Shared(Mutex<Vec<Open>>);

/// An instance, and the way into it: once that has gone, it ends with what runs in it.
struct Open {
    worker: Arc<Worker>,
    calls: mpsc::UnboundedSender<Placed>,
}

/// An instance that takes requests, or has.
pub(crate) struct Worker {
    /// Where it was started, and takes requests from.
    thread: ThreadId,
    running: AtomicU32,
    served: AtomicU32,
    /// Requests that it takes in all.
    most: u32,
    /// When it was made, and how long after that the latest request came, in milliseconds.
    origin: Instant,
    latest: AtomicU64,
    /// No request runs in it.
    empty: Notify,
    /// It is to take no more.
    used_up: Notify,
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
        if self.0.running.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.empty.notify_one();
        }
    }
}

impl Worker {
    fn new(most: u32) -> Self {
        Self {
            thread: std::thread::current().id(),
            running: AtomicU32::new(0),
            served: AtomicU32::new(0),
            most,
            origin: Instant::now(),
            latest: AtomicU64::new(0),
            empty: Notify::new(),
            used_up: Notify::new(),
            fate: OnceLock::new(),
        }
    }

    fn is_used_up(&self) -> bool {
        self.served.load(Ordering::Relaxed) >= self.most
    }

    fn is_empty(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 0
    }

    /// Takes no more requests than it has.
    fn use_up(&self) {
        self.served.store(u32::MAX, Ordering::Relaxed);
        self.used_up.notify_one();
    }

    /// For how long no request has come.
    fn idle(&self) -> Duration {
        let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
        self.origin.elapsed().saturating_sub(latest)
    }

    /// Why requests that were in it have no answer.
    pub(crate) fn fate(&self) -> RequestError {
        self.fate.get().cloned().unwrap_or(RequestError::Failed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the way into `worker`, if that `is` so.
    fn close(&self, worker: &Arc<Worker>, is: impl Fn(&Worker) -> bool) {
        self.lock().retain(|open| !Arc::ptr_eq(&open.worker, worker) || !is(worker));
    }
}

impl Callable {
    /// Whether its instances answer several requests at once.
    pub(crate) fn is_shared(&self) -> bool {
        self.reuse.requests > 1 && self.reuse.concurrent > 1 && self.linked.is_concurrent()
    }

    /// Puts a request into an instance that has room, or a new one.
    pub(crate) fn place(self: &Arc<Self>, call: Call, permit: OwnedSemaphorePermit) -> Arc<Worker> {
        let thread = std::thread::current().id();
        let has_room = |open: &Open| {
            let Worker { thread: of, running, .. } = &*open.worker;
            *of == thread && running.load(Ordering::Relaxed) < self.reuse.concurrent && !open.worker.is_used_up()
        };
        let mut all = self.shared.lock();
        // Those whose task has gone without a word: it panicked, or its runtime ended.
        all.retain(|open| !open.calls.is_closed());
        let at = all.iter().position(has_room).unwrap_or_else(|| {
            let (calls, taken) = mpsc::unbounded_channel();
            let worker = Arc::new(Worker::new(self.reuse.requests));
            all.push(Open { worker: worker.clone(), calls });
            tokio::spawn(work(self.clone(), worker, taken));
            all.len() - 1
        });
        let Open { worker, calls } = &all[at];
        let worker = worker.clone();
        worker.running.fetch_add(1, Ordering::Relaxed);
        let served = worker.served.fetch_add(1, Ordering::Relaxed) + 1;
        let latest = worker.origin.elapsed().as_millis();
        worker.latest.store(u64::try_from(latest).unwrap_or(u64::MAX), Ordering::Relaxed);
        // Under the lock: an instance closes its channel under it too, so what is sent is taken.
        let _ = calls.send(Placed { call, place: Place(worker.clone()), _permit: permit });
        if served >= worker.most {
            all.swap_remove(at);
        }
        worker
    }
}

/// The life of a shared instance.
async fn work(callable: Arc<Callable>, worker: Arc<Worker>, mut calls: mpsc::UnboundedReceiver<Placed>) {
    tokio::select! {
        biased;
        () = run(&callable, &worker, &mut calls) => {}
        () = watch(&callable, &worker) => {}
    }
    let mut all = callable.shared.lock();
    all.retain(|open| !Arc::ptr_eq(&open.worker, &worker));
    calls.close();
    drop(all);
}

/// Closes the way into an instance once it is used up, or has been idle for long. Outside the instance's loop, which would look after each of
/// its steps.
async fn watch(callable: &Arc<Callable>, worker: &Arc<Worker>) {
    let idle_time = Duration::from_millis(callable.reuse.idle_ms.into());
    let mut left = idle_time;
    loop {
        tokio::select! {
            () = worker.used_up.notified() => callable.shared.close(worker, |_| true),
            () = tokio::time::sleep(left.max(Duration::from_millis(1))) => {
                callable.shared.close(worker, |worker| worker.is_empty() && worker.idle() >= idle_time);
                left = match idle_time.saturating_sub(worker.idle()) {
                    // Something runs on.
                    Duration::ZERO => idle_time.max(Duration::from_millis(10)),
                    left => left,
                };
            }
        }
    }
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
        Err(_) if worker.is_empty() => {}
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
    /// Until no more can come and none runs.
    async fn take(&mut self, store: &Accessor<State>, first: Placed) -> wasmtime::Result<()> {
        self.begin(store, first)?;
        while let Some(placed) = self.calls.recv().await {
            self.begin(store, placed)?;
        }
        while !self.worker.is_empty() {
            self.worker.empty.notified().await;
        }
        Ok(())
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
                place.0.use_up();
                Ok(())
            }
        }
    }
}
