//! Which models are in memory.
//!
//! A model, known by the digest of its bytes, is absent, loading or resident. A load runs on a
//! thread of its own and outlives the caller who started it; one load serves all who wait. A load
//! that fails leaves the model absent, so the next join tries again. Weights stay while a lease
//! on them lives.

use crate::format::FormatError;
use crate::model::{Loaded, ModelSource};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Why a model cannot be joined.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The file is no model we can run.
    #[error("model {name}: {source}")]
    Format {
        /// The model.
        name: String,
        /// What is wrong with its file.
        source: FormatError,
    },
    /// One token's keys and values are larger than a KV page.
    #[error("model {name} needs {needed} bytes of KV for a token and a page has {page}; raise the page size")]
    KvPage {
        /// The model.
        name: String,
        /// Bytes for one token.
        needed: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// There is no memory for what a step computes.
    #[error(
        "model {name} needs {needed} bytes for its largest step and {available} are available; \
         lower the prompt tokens or the sequences of a step"
    )]
    Activations {
        /// The model.
        name: String,
        /// Bytes of activations.
        needed: u64,
        /// Bytes that the system has.
        available: u64,
    },
    /// Our fault; the text is for the operator.
    #[error("loading model {name} failed: {reason}; retry, and report it if it happens again")]
    Fault {
        /// The model.
        name: String,
        /// What happened.
        reason: String,
    },
}

/// Why a model stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvictError {
    /// Somebody uses it.
    #[error("the model has {leases} leases; stop what uses it first")]
    InUse {
        /// How many handles and running sequences hold it.
        leases: usize,
    },
}

/// A model in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentModel {
    /// The name under which it was loaded.
    pub name: String,
    /// The digest of its bytes.
    pub digest: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// How many handles and running sequences hold it.
    pub leases: usize,
}

type Outcome = Result<Arc<Loaded>, JoinError>;
/// How a load ended. What was loaded is not here: whoever waited would leave a lease behind for a
/// moment, that nobody has.
type Ended = Option<Result<(), JoinError>>;

enum Entry {
    Loading(watch::Receiver<Ended>),
    Resident(Arc<Loaded>),
}

/// All models that are not absent, by digest.
#[derive(Clone, Default)]
pub(crate) struct Residency {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

impl Residency {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases the model, loading it with `load` if it is absent.
    pub(crate) async fn join(
        &self,
        source: &ModelSource,
        load: impl FnOnce(&ModelSource) -> Outcome + Clone + Send + 'static,
    ) -> Outcome {
        loop {
            let mut loading = {
                let mut entries = self.lock();
                match entries.get(&source.digest) {
                    Some(Entry::Resident(loaded)) => return Ok(loaded.clone()),
                    Some(Entry::Loading(ended)) => ended.clone(),
                    None => {
                        let ended = self.start(source.clone(), load.clone())?;
                        entries.insert(source.digest.clone(), Entry::Loading(ended.clone()));
                        ended
                    }
                }
            };
            while loading.changed().await.is_ok() {}
            match loading.borrow().clone() {
                Some(Ok(())) => {} // it is in `entries`, unless somebody else has evicted it since
                Some(Err(error)) => return Err(error),
                None => return Err(fault(source, "the loading thread ended early")),
            }
        }
    }

    /// Starts a load. The thread waits for the lock, which the caller holds, before it notes its
    /// outcome: the entry is there by then.
    fn start(
        &self,
        source: ModelSource,
        load: impl FnOnce(&ModelSource) -> Outcome + Send + 'static,
    ) -> Result<watch::Receiver<Ended>, JoinError> {
        let (tell, ended) = watch::channel(None);
        let (residency, failed) = (self.clone(), source.clone());
        let run = move || {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| load(&source)));
            let outcome = caught.unwrap_or_else(|_| Err(fault(&source, "the loader panicked")));
            let mut entries = residency.lock();
            let ended = match outcome {
                Ok(loaded) => {
                    entries.insert(source.digest, Entry::Resident(loaded));
                    Ok(())
                }
                Err(error) => {
                    entries.remove(&source.digest);
                    Err(error)
                }
            };
            drop(entries);
            tell.send_replace(Some(ended));
        };
        let spawned = std::thread::Builder::new().name("hob-load".into()).spawn(run);
        spawned.map_err(|e| fault(&failed, &e.to_string()))?;
        Ok(ended)
    }

    /// Drops an idle model; `false` if it is not resident.
    pub(crate) fn evict(&self, digest: &str) -> Result<bool, EvictError> {
        let mut entries = self.lock();
        let Some(Entry::Resident(loaded)) = entries.get(digest) else { return Ok(false) };
        // New leases come from an old one or from `join`, which needs the lock: zero stays zero.
        match Arc::strong_count(loaded) - 1 {
            0 => Ok(entries.remove(digest).is_some()),
            leases => Err(EvictError::InUse { leases }),
        }
    }

    pub(crate) fn list(&self) -> Vec<ResidentModel> {
        let describe = |(digest, entry): (&String, &Entry)| match entry {
            Entry::Loading(_) => None,
            Entry::Resident(loaded) => Some(ResidentModel {
                name: loaded.name().into(),
                digest: digest.clone(),
                bytes: loaded.info().weight_bytes,
                leases: Arc::strong_count(loaded) - 1,
            }),
        };
        let mut all: Vec<_> = self.lock().iter().filter_map(describe).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

fn fault(source: &ModelSource, reason: &str) -> JoinError {
    JoinError::Fault { name: source.name.clone(), reason: reason.into() }
}
