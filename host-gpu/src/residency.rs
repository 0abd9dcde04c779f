//! Which models are in memory.
//!
//! A model, known by the digest of its bytes, is absent, loading, resident, being evicted, or was found impossible to load.
//! A load runs on a thread of its own and outlives the caller who started it; one load serves all who wait. It first
//! learns how much room the model takes, then has it reserved, for which models that nobody uses may have to go, then
//! reads. Weights stay while a lease on them lives. A load that fails is tried again when somebody joins the model after
//! a while, which doubles each time.

use crate::engine::EngineDevice;
use crate::model::{Loaded, ModelSource};
use lease::Leased;
use plan::{Kept, NoRoom};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

mod error;
mod lease;
mod moves;
mod plan;
mod status;

pub use error::{EvictError, JoinError};
pub(crate) use lease::Lease;
use moves::AllMoves;
pub use moves::Moves;
pub use status::{ModelState, ModelStatus, Policy};

/// How long a load waits for room that others have: who has just got its answer is on the way out still.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);
/// How often it looks.
const ROOM_LOOK: Duration = Duration::from_millis(2);
/// Who finds no room is told to try again after this.
const ROOM_AGAIN: Duration = Duration::from_secs(1);
/// A load that failed is tried again after this, then twice that, and so on.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// How a load ended. What was loaded is not here: whoever waited would leave a lease behind for a
/// moment, that nobody has.
type Ended = Option<Result<(), JoinError>>;

enum Phase<T> {
    Loading {
        ended: watch::Receiver<Ended>,
        progress: Arc<Progress>,
    },
    Resident(Arc<Leased<T>>),
    Evicting(watch::Receiver<()>),
    /// Some layers of a model whose engine is another card's.
    Part,
    Failed {
        error: JoinError,
        again: Instant,
    },
}

/// What somebody who joins a model finds.
enum Found<T> {
    Resident(Lease<T>),
    Loading(watch::Receiver<Ended>),
    Evicting(watch::Receiver<()>),
}

struct Entry<T> {
    name: String,
    /// What is reserved for it, or taken.
    bytes: u64,
    policy: Policy,
    /// Loads that failed in a row.
    failed: u32,
    phase: Phase<T>,
}

/// How far a load is.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    /// Whether somebody has stopped it.
    stopped: AtomicBool,
}

/// All models that are not absent, by digest.
type Entries<T> = HashMap<String, Entry<T>>;

/// The models of one device.
pub(crate) struct Residency<T = Loaded> {
    entries: Arc<Mutex<Entries<T>>>,
    device: EngineDevice,
    /// Bytes for all models.
    budget: u64,
    /// Counts changes of state.
    changes: Arc<watch::Sender<u64>>,
    moves: AllMoves,
    /// Whether anybody can still join a model.
    open: Arc<AtomicBool>,
}

impl<T> Clone for Residency<T> {
    fn clone(&self) -> Self {
        let Self { entries, device, budget, changes, moves, open } = self;
        let (entries, changes, moves, open) = (entries.clone(), changes.clone(), moves.clone(), open.clone());
        Self { entries, device: *device, budget: *budget, changes, moves, open }
    }
}

/// What a load tells while it goes on.
pub(crate) struct Loading<'a, T = Loaded> {
    residency: &'a Residency<T>,
    source: &'a ModelSource,
    progress: &'a Progress,
}

impl<T> Loading<'_, T> {
    /// Reserves `bytes`, for which models that nobody uses may go. To be called once, before anything large is allocated.
    ///
    /// # Errors
    /// `NoRoom`.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), JoinError> {
        self.residency.reserve(self.source, bytes)
    }

    /// Bytes for all models of this device.
    pub(crate) fn budget(&self) -> u64 {
        self.residency.budget
    }

    /// Says that of `total` bytes `done` are in memory. `false` if the load is to stop.
    pub(crate) fn at(&self, done: u64, total: u64) -> bool {
        self.progress.done.store(done, Ordering::Relaxed);
        self.progress.total.store(total, Ordering::Relaxed);
        self.residency.changed();
        self.is_wanted()
    }

    /// Whether anybody may still use the model. A load goes on when those who wait for it have left, but not without an engine, nor
    /// when it was stopped.
    pub(crate) fn is_wanted(&self) -> bool {
        self.residency.open.load(Ordering::Relaxed) && !self.progress.stopped.load(Ordering::Relaxed)
    }
}

impl<T: Send + Sync + 'static> Residency<T> {
    /// No model yet, and `budget` bytes for those that come. `changes` counts changes of their states.
    pub(crate) fn new(device: EngineDevice, budget: u64, changes: Arc<watch::Sender<u64>>) -> Self {
        Self {
            entries: Arc::default(),
            device,
            budget,
            changes,
            moves: AllMoves::default(),
            open: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Nobody will join any more: what loads may stop.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Leases the model. If it is absent it is loaded with `load`, and `policy` holds for it.
    pub(crate) async fn join(
        &self,
        source: &ModelSource,
        policy: Option<Policy>,
        load: impl FnOnce(&ModelSource, &Loading<'_, T>) -> Result<T, JoinError> + Clone + Send + 'static,
    ) -> Result<Lease<T>, JoinError> {
        loop {
            match self.look(source, policy, &load)? {
                Found::Resident(lease) => return Ok(lease),
                Found::Loading(mut ended) => {
                    while ended.changed().await.is_ok() {}
                    match ended.borrow().clone() {
                        Some(Ok(())) => {} // it is in `entries`, unless somebody else has evicted it since
                        Some(Err(error)) => return Err(error),
                        None => return Err(fault(source, "the loading thread ended early")),
                    }
                }
                // The sender goes when the memory has.
                Found::Evicting(mut gone) => while gone.changed().await.is_ok() {},
            }
        }
    }

    /// Where the model is in its life. If it is absent, that is loading from now on.
    fn look(
        &self,
        source: &ModelSource,
        policy: Option<Policy>,
        load: &(impl FnOnce(&ModelSource, &Loading<'_, T>) -> Result<T, JoinError> + Clone + Send + 'static),
    ) -> Result<Found<T>, JoinError> {
        let mut entries = self.lock();
        let (mut failed, mut known) = (0, Policy::default());
        if let Some(entry) = entries.get(&source.digest) {
            match &entry.phase {
                Phase::Resident(model) => return Ok(Found::Resident(model.lease())),
                Phase::Loading { ended, .. } => return Ok(Found::Loading(ended.clone())),
                Phase::Evicting(gone) => return Ok(Found::Evicting(gone.clone())),
                Phase::Part => return Err(fault(source, "it is named like a part of another")),
                Phase::Failed { error, again } => {
                    let retry_after = again.saturating_duration_since(Instant::now());
                    if !retry_after.is_zero() {
                        let (reason, attempts) = (error.to_string(), entry.failed);
                        return Err(JoinError::Failed { reason, attempts, retry_after });
                    }
                    (failed, known) = (entry.failed, entry.policy);
                }
            }
        }
        let progress = Arc::<Progress>::default();
        let ended = self.start(source.clone(), progress.clone(), load.clone())?;
        let phase = Phase::Loading { ended: ended.clone(), progress };
        let (name, policy) = (source.name.clone(), policy.unwrap_or(known));
        entries.insert(source.digest.clone(), Entry { name, bytes: 0, policy, failed, phase });
        drop(entries);
        self.changed();
        Ok(Found::Loading(ended))
    }

    /// Starts a load. The thread waits for the lock, which the caller holds, before it notes its
    /// outcome: the entry is there by then.
    fn start(
        &self,
        source: ModelSource,
        progress: Arc<Progress>,
        load: impl FnOnce(&ModelSource, &Loading<'_, T>) -> Result<T, JoinError> + Send + 'static,
    ) -> Result<watch::Receiver<Ended>, JoinError> {
        let (tell, ended) = watch::channel(None);
        let (residency, failed) = (self.clone(), source.clone());
        let run = move || {
            let started = Instant::now();
            let loading = Loading { residency: &residency, source: &source, progress: &progress };
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| load(&source, &loading)));
            let outcome = caught.unwrap_or_else(|_| Err(fault(&source, "the loader panicked")));
            // Whatever it says: who stopped it was told that the memory comes back.
            let stopped = progress.stopped.load(Ordering::Relaxed);
            let outcome = if stopped { Err(JoinError::Stopped { name: source.name.clone() }) } else { outcome };
            if outcome.is_ok() {
                residency.moves.loaded(&source.digest, started.elapsed());
            }
            let ended = residency.note(&source, outcome);
            tell.send_replace(Some(ended));
            residency.changed();
        };
        let spawned = std::thread::Builder::new().name("hob-load".into()).spawn(run);
        spawned.map_err(|e| fault(&failed, &e.to_string()))?;
        Ok(ended)
    }

    /// Notes how a load ended.
    fn note(&self, source: &ModelSource, outcome: Result<T, JoinError>) -> Result<(), JoinError> {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&source.digest) else { return Ok(()) };
        match outcome {
            Ok(loaded) => {
                (entry.phase, entry.failed) = (Phase::Resident(Leased::new(loaded)), 0);
                Ok(())
            }
            // Nothing is wrong with the model.
            Err(error @ (JoinError::NoRoom { .. } | JoinError::Stopped { .. })) => {
                entries.remove(&source.digest);
                Err(error)
            }
            Err(error) => {
                let wait = RETRY_FIRST.saturating_mul(1 << entry.failed.min(10)).min(RETRY_MOST);
                (entry.bytes, entry.failed) = (0, entry.failed.saturating_add(1));
                entry.phase = Phase::Failed { error: error.clone(), again: Instant::now() + wait };
                Err(error)
            }
        }
    }

    /// Drops an idle model, or stops its load; `false` if there is neither.
    pub(crate) fn evict(&self, digest: &str) -> Result<bool, EvictError> {
        let mut entries = self.lock();
        let model = match entries.get(digest).map(|entry| &entry.phase) {
            Some(Phase::Resident(model)) => model,
            Some(Phase::Loading { progress, .. }) => {
                progress.stopped.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        // New leases come from an old one or from `join`, which needs the lock: zero stays zero.
        match model.leases() {
            0 => {
                let going = Going::of(&mut entries, [digest.to_owned()]);
                drop(entries);
                going.go(self);
                Ok(true)
            }
            leases => Err(EvictError::InUse { leases }),
        }
    }

    /// What holds for a model from now on, if it is not absent.
    pub(crate) fn set_policy(&self, digest: &str, policy: Policy) {
        if let Some(entry) = self.lock().get_mut(digest) {
            entry.policy = policy;
        }
    }

    /// Drops the models that nobody has used for as long as their policy says; how many those were.
    pub(crate) fn evict_expired(&self) -> usize {
        let mut entries = self.lock();
        let expired = |entry: &Entry<T>| match &entry.phase {
            Phase::Resident(model) if !entry.policy.pinned && model.leases() == 0 => {
                entry.policy.idle.is_some_and(|idle| model.unused() >= idle)
            }
            _ => false,
        };
        let expired: Vec<String> =
            entries.iter().filter(|(_, e)| expired(e)).map(|(digest, _)| digest.clone()).collect();
        let count = expired.len();
        let going = Going::of(&mut entries, expired);
        drop(entries);
        going.go(self);
        count
    }

    /// The models that are not absent, by name.
    pub(crate) fn list(&self) -> Vec<ModelStatus> {
        let describe = |(digest, entry): (&String, &Entry<T>)| {
            let (mut leases, mut unused, mut expires_in) = (0, Duration::ZERO, None);
            let state = match &entry.phase {
                Phase::Loading { progress, .. } => ModelState::Loading {
                    done: progress.done.load(Ordering::Relaxed),
                    total: progress.total.load(Ordering::Relaxed),
                },
                Phase::Resident(model) => {
                    leases = model.leases();
                    if leases == 0 {
                        unused = model.unused();
                        let idle = entry.policy.idle.filter(|_| !entry.policy.pinned);
                        expires_in = idle.map(|idle| idle.saturating_sub(unused));
                    }
                    ModelState::Resident
                }
                Phase::Part => {
                    leases = 1;
                    ModelState::Resident
                }
                Phase::Evicting(_) => ModelState::Evicting,
                Phase::Failed { error, again } => ModelState::Failed {
                    reason: error.to_string(),
                    attempts: entry.failed,
                    retry_in: again.saturating_duration_since(Instant::now()),
                },
            };
            let (name, digest, bytes, policy) = (entry.name.clone(), digest.clone(), entry.bytes, entry.policy);
            let moves = self.moves.of(&digest);
            ModelStatus { name, digest, state, device: self.device, bytes, leases, unused, expires_in, policy, moves }
        };
        let mut all: Vec<_> = self.lock().iter().map(describe).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// How models came and went, those that are absent now among them.
    pub(crate) fn moves(&self, digest: &str) -> Moves {
        self.moves.of(digest)
    }

    /// Bytes of the budget that no model has.
    pub(crate) fn room(&self) -> u64 {
        self.budget.saturating_sub(self.lock().values().map(|entry| entry.bytes).sum())
    }

    /// Whether a model is in memory.
    pub(crate) fn is_resident(&self, digest: &str) -> bool {
        self.lock().get(digest).is_some_and(|entry| matches!(entry.phase, Phase::Resident(_)))
    }

    /// Whether a model is in memory, or on its way there or away.
    pub(crate) fn has(&self, digest: &str) -> bool {
        self.lock().get(digest).is_some_and(|entry| !matches!(entry.phase, Phase::Failed { .. }))
    }

    /// How many evictions there were of those models.
    pub(crate) fn evictions(&self) -> u64 {
        self.moves.evictions()
    }

    /// Says when states change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl<T> Residency<T> {
    fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Reserves `bytes` for a model that is loading; waits a little for those who may be about to let go of theirs.
    fn reserve(&self, source: &ModelSource, bytes: u64) -> Result<(), JoinError> {
        let until = Instant::now() + ROOM_PATIENCE;
        loop {
            match self.try_reserve(source, bytes) {
                Err(JoinError::NoRoom { retry_after: Some(_), .. }) if Instant::now() < until => {
                    std::thread::sleep(ROOM_LOOK);
                }
                reserved => return reserved,
            }
        }
    }

    fn try_reserve(&self, source: &ModelSource, bytes: u64) -> Result<(), JoinError> {
        let mut entries = self.lock();
        let priority = entries.get(&source.digest).map_or(0, |entry| entry.policy.priority);
        let mut digests = Vec::new();
        let mut kept = Vec::new();
        for (digest, entry) in entries.iter().filter(|(digest, _)| **digest != source.digest) {
            let idle = match &entry.phase {
                Phase::Resident(model) if model.leases() == 0 => Some(model.unused()),
                Phase::Resident(_) | Phase::Loading { .. } | Phase::Part => None,
                // What goes is waited for below, by those who evict it.
                Phase::Evicting(_) | Phase::Failed { .. } => continue,
            };
            let Policy { pinned, priority, .. } = entry.policy;
            digests.push(digest.clone());
            kept.push(Kept { bytes: entry.bytes, idle, pinned, priority });
        }
        let victims = plan::victims(bytes, priority, self.budget, &kept).map_err(|NoRoom { available, ever }| {
            let (name, retry_after) = (source.name.clone(), (bytes <= ever).then_some(ROOM_AGAIN));
            JoinError::NoRoom { name, needed: bytes, available, budget: self.budget, retry_after }
        })?;
        if let Some(entry) = entries.get_mut(&source.digest) {
            entry.bytes = bytes;
        }
        let going = Going::of(&mut entries, victims.into_iter().map(|n| digests[n].clone()));
        drop(entries);
        going.go(self);
        Ok(())
    }
}

/// Memory that was taken for a part of another device's model; given back when dropped.
pub(crate) struct Taken<T = Loaded> {
    residency: Residency<T>,
    key: String,
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        self.residency.lock().remove(&self.key);
        self.residency.changed();
    }
}

impl<T> Residency<T> {
    /// Bytes for all models.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Takes `bytes` for a part of a model of another device, for which models that nobody uses may go.
    ///
    /// # Errors
    /// `NoRoom`.
    pub(crate) fn take(&self, source: &ModelSource, bytes: u64) -> Result<Taken<T>, JoinError> {
        let part = ModelSource {
            name: format!("{} (part)", source.name),
            digest: format!("part of {}", source.digest),
            path: source.path.clone(),
        };
        let (name, policy, key) = (part.name.clone(), Policy::default(), part.digest.clone());
        self.lock().insert(key.clone(), Entry { name, bytes: 0, policy, failed: 0, phase: Phase::Part });
        // From here on it goes by itself.
        let taken = Taken { residency: self.clone(), key };
        self.reserve(&part, bytes)?;
        Ok(taken)
    }
}

/// Models whose memory is being given back, which takes a while: without the lock.
struct Going<T> {
    models: Vec<(String, Arc<Leased<T>>)>,
    /// Who waits for it learns it when this is dropped.
    _tell: watch::Sender<()>,
}

impl<T> Going<T> {
    /// Resident models that nobody has a lease on.
    fn of(entries: &mut Entries<T>, digests: impl IntoIterator<Item = String>) -> Self {
        let (tell, gone) = watch::channel(());
        let mut models = Vec::new();
        for digest in digests {
            if let Some(entry) = entries.get_mut(&digest)
                && let Phase::Resident(model) = std::mem::replace(&mut entry.phase, Phase::Evicting(gone.clone()))
            {
                tracing::info!(model = entry.name, bytes = entry.bytes, "evicted");
                models.push((digest, model));
            }
        }
        Self { models, _tell: tell }
    }

    fn go(self, residency: &Residency<T>) {
        if self.models.is_empty() {
            return;
        }
        residency.changed();
        let give_back = |(digest, model): (String, Arc<Leased<T>>)| {
            let started = Instant::now();
            drop(model);
            residency.moves.evicted(&digest, started.elapsed());
            digest
        };
        let digests: Vec<String> = self.models.into_iter().map(give_back).collect();
        let mut entries = residency.lock();
        digests.iter().for_each(|digest| drop(entries.remove(digest)));
        drop(entries);
        residency.changed();
    }
}

fn fault(source: &ModelSource, reason: &str) -> JoinError {
    JoinError::Fault { name: source.name.clone(), reason: reason.into() }
}

#[cfg(test)]
mod tests;
