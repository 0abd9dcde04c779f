//! Models by name: which there are, where they come from, and joining them.

pub mod catalog;
mod error;
pub mod fetch;
mod follow;
mod from;
mod joined;
pub mod keep;
mod plan;
pub mod progress;
pub mod pull;
pub mod settings;
mod shards;
mod space;
mod stay;
pub mod store;
mod sweep;
pub mod tier;
mod unpack;
pub mod upload;
pub mod view;
pub mod wanted;

use std::path::Path;
use std::time::Duration;

use hob_gpu::{Engines, JoinError, Model, ModelSource};

use crate::names::{ModelName, ModelRef};
use keep::Share;
pub use stay::Stay;
use stay::Stays;
use store::{Manifest, ModelStore, StoreError};
pub use sweep::Freed;

/// Why a model cannot be joined.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinRefusal {
    /// Nothing of this name is in the store.
    #[error("no model is called `{0}`; `hob models list` shows those that are, `hob models pull` gets more")]
    NotFound(String),
    /// The function was not granted it.
    #[error("this function was not granted model `{0}`; deploy it with `--model {0}`")]
    NotGranted(String),
    /// There is no room for it now.
    #[error("busy; try again in {} ms", .0.as_millis())]
    Busy(Duration),
    /// It cannot be loaded.
    #[error("{0}")]
    Fault(String),
}

/// The models of a host: the store on disk, and the engines that hold those in use.
pub struct Library {
    store: ModelStore,
    engines: Engines,
    stays: Stays,
}

impl Library {
    /// The models of `store`, to be run by an engine, or several.
    pub fn new(store: ModelStore, engines: impl Into<Engines>) -> Self {
        Self { store, engines: engines.into(), stays: Stays::default() }
    }

    /// The models on disk.
    pub fn store(&self) -> &ModelStore {
        &self.store
    }

    /// The engines.
    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Whether the store has a model of this name.
    pub fn has(&self, name: &ModelName) -> bool {
        self.store.get(name).is_ok()
    }

    /// Whether a model of the store is in memory.
    pub fn is_resident(&self, name: &ModelName) -> bool {
        let Ok(entry) = self.store.get(name) else { return false };
        let digest = entry.digest.to_string();
        self.engines.resident().iter().any(|model| model.digest == digest)
    }

    /// The right to use a model; it is loaded first if it is not resident.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Fault`.
    pub async fn join(&self, name: &ModelName) -> Result<Model, JoinRefusal> {
        let entry = self.store.get(name).map_err(|error| match error {
            StoreError::NotFound(name) => JoinRefusal::NotFound(name.to_string()),
            error => fault(name, &error),
        })?;
        self.join_stored(&entry).await
    }

    /// The same for one that was looked up in the store.
    ///
    /// # Errors
    /// `Busy`, `Fault`.
    pub async fn join_stored(&self, entry: &Manifest) -> Result<Model, JoinRefusal> {
        let name = &entry.name;
        let source = ModelSource {
            name: name.to_string(),
            path: self.store.path(entry).map_err(|error| fault(name, &error))?,
            digest: entry.digest.to_string(),
        };
        let policy = self.stays.over(&source.digest, entry.keep.policy());
        let joined = self.engines.join_as(&source, Some(policy)).await;
        let shared = entry.keep.share == Share::All;
        joined.map(|model| model.sharing_prefixes(shared)).map_err(|error| join_refusal(name, error))
    }

    /// The right to use a model that is not in the store: a GGUF file, any shard of one, or a folder with a
    /// checkpoint. Nobody has hashed these files: their path stands for the digest.
    ///
    /// # Errors
    /// `Fault`.
    pub async fn join_files(&self, path: &Path) -> Result<Model, JoinRefusal> {
        let shown = path.display();
        let path = path.canonicalize().map_err(|error| fault(&shown, &error))?;
        let source = ModelSource { name: shown.to_string(), digest: format!("path:{}", path.display()), path };
        self.engines.join(&source).await.map_err(|error| join_refusal(&shown, error))
    }

    /// The right to use what the command line names.
    ///
    /// # Errors
    /// As [`Library::join`] and [`Library::join_files`].
    pub async fn join_ref(&self, model: &ModelRef) -> Result<Model, JoinRefusal> {
        match model {
            ModelRef::Stored(name) => self.join(name).await,
            ModelRef::Files(path) => self.join_files(path).await,
        }
    }

    /// Has the engine do as the store says of models that are in memory already.
    fn apply_wishes(&self) {
        let models = self.engines.models();
        self.stays.keep_only(&models.iter().map(|model| model.digest.clone()).collect());
        for model in models {
            let Some(name) = model.name.parse().ok() else { continue };
            if let Ok(stored) = self.store.get(&name)
                && stored.digest.to_string() == model.digest
            {
                let policy = self.stays.over(&model.digest, stored.keep.policy());
                if policy != model.policy {
                    self.engines.set_policy(&model.digest, policy);
                }
            }
        }
    }

    /// A caller wishes that a model stays so long after it was used, if the operator has said nothing.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn wish(&self, name: &ModelName, stay: Stay) -> Result<(), StoreError> {
        let stored = self.store.get(name)?;
        let digest = stored.digest.to_string();
        self.stays.set(digest.clone(), stay);
        self.engines.set_policy(&digest, self.stays.over(&digest, stored.keep.policy()));
        Ok(())
    }

    /// Removes a name, and what no other name needs; also from memory, as soon as nobody uses it.
    ///
    /// # Errors
    /// `NotFound`, `Disk`.
    pub fn remove(&self, name: &ModelName) -> Result<Freed, StoreError> {
        let digest = self.store.get(name).ok().map(|model| model.digest);
        let freed = self.store.remove(name)?;
        let needed = self.store.list()?.iter().any(|model| Some(model.digest) == digest);
        if let Some(digest) = digest.filter(|_| !needed)
            && let Err(error) = self.engines.evict(&digest.to_string())
        {
            tracing::info!(%digest, %error, "removed, and in use still");
        }
        Ok(freed)
    }

    /// Gives back the memory of a model that nobody uses, or stops its load. `false` if it was neither.
    ///
    /// # Errors
    /// A sentence, when it is in use or unknown.
    pub fn evict(&self, name: &ModelName) -> anyhow::Result<bool> {
        let entry = self.store.get(name)?;
        Ok(self.engines.evict(&entry.digest.to_string())?)
    }
}

fn join_refusal(name: &dyn std::fmt::Display, error: JoinError) -> JoinRefusal {
    match error {
        JoinError::NoRoom { retry_after: Some(wait), .. } => {
            tracing::warn!(model = %name, %error, "no room");
            JoinRefusal::Busy(wait)
        }
        error => fault(name, &error),
    }
}

fn fault(name: &dyn std::fmt::Display, error: &dyn std::error::Error) -> JoinRefusal {
    tracing::error!(model = %name, %error, "model cannot be joined");
    JoinRefusal::Fault(format!("model {name} cannot be joined: {error}"))
}
