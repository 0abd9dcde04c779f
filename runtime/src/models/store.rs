//! The models on disk: names, each a small JSON file, that point at content-addressed blobs.
//! Plain files rather than records, so that `hob models` and `hob run` work beside a running server.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::keep::Keep;
use crate::data::DataDir;
use crate::digest::Digest;
use crate::names::ModelName;

/// What a model name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name.
    pub name: ModelName,
    /// The weights, a GGUF file.
    pub digest: Digest,
    /// Their size in bytes.
    pub bytes: u64,
    /// Where they came from.
    pub source: String,
    /// When, in seconds since 1970.
    pub pulled_at: u64,
    /// How long it stays in memory.
    #[serde(default, skip_serializing_if = "Keep::is_nothing")]
    pub keep: Keep,
}

/// Why the store cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such name.
    #[error("no model `{0}` here; get it with `hob models pull {0}`")]
    NotFound(ModelName),
    /// A name whose file is damaged, or whose weights are gone.
    #[error("model `{name}` is damaged ({why}); get it again with `hob models pull {name}`")]
    Damaged {
        /// The name.
        name: ModelName,
        /// What is wrong.
        why: String,
    },
    /// The system refused.
    #[error("the model store cannot be read or written: {0}")]
    Disk(#[from] io::Error),
}

/// The models of a data directory.
#[derive(Clone, Debug)]
pub struct ModelStore {
    data: DataDir,
}

impl ModelStore {
    /// The models of `data`.
    pub fn new(data: DataDir) -> Self {
        Self { data }
    }

    /// The directory it lies in.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// What `name` stands for.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Disk`.
    pub fn get(&self, name: &ModelName) -> Result<Manifest, StoreError> {
        let damaged = |why: String| StoreError::Damaged { name: name.clone(), why };
        let text = match fs::read(self.manifest(name)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::NotFound(name.clone())),
            Err(error) => return Err(error.into()),
        };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match fs::metadata(self.blob(&manifest.digest)) {
            Ok(blob) if blob.len() == manifest.bytes => Ok(manifest),
            Ok(blob) => Err(damaged(format!("its file has {} bytes instead of {}", blob.len(), manifest.bytes))),
            Err(error) => Err(damaged(format!("its file cannot be read: {error}"))),
        }
    }

    /// All models, by name; what is damaged is left out and logged.
    ///
    /// # Errors
    /// `Disk`.
    pub fn list(&self) -> Result<Vec<Manifest>, StoreError> {
        let mut models = Vec::new();
        for file in fs::read_dir(self.data.model_names())? {
            let file = file?.file_name();
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".json")) else { continue };
            match name.parse().map(|name| self.get(&name)) {
                Ok(Ok(manifest)) => models.push(manifest),
                Ok(Err(error)) => tracing::warn!(%error, "left out"),
                Err(error) => tracing::warn!(%error, "left out"),
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Gives a name to weights that are in the store already.
    ///
    /// # Errors
    /// `Disk`.
    pub fn name(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(manifest).expect("a manifest has only string keys");
        Ok(self.data.write(&self.manifest(&manifest.name), &text)?)
    }

    /// Where weights lie.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.data.model_blob(digest)
    }

    fn manifest(&self, name: &ModelName) -> PathBuf {
        self.data.model_names().join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_point_at_blobs() {
        let home = tempfile::tempdir().unwrap();
        let store = ModelStore::new(DataDir::open(Some(home.path())).unwrap());
        let name: ModelName = "toy:1".parse().unwrap();
        assert!(matches!(store.get(&name), Err(StoreError::NotFound(_))));

        let digest = Digest::of(b"weights");
        let manifest = Manifest {
            name: name.clone(),
            digest,
            bytes: 7,
            source: "test".into(),
            pulled_at: 0,
            keep: Keep::default(),
        };
        store.name(&manifest).unwrap();
        assert!(matches!(store.get(&name), Err(StoreError::Damaged { .. })), "the blob is missing");
        fs::write(store.blob(&digest), b"weights").unwrap();
        assert_eq!(store.list().unwrap(), [manifest]);
        fs::write(store.blob(&digest), b"weigh").unwrap();
        let error = store.get(&name).unwrap_err().to_string();
        assert!(error.contains("5 bytes instead of 7") && error.contains("hob models pull toy:1"), "{error}");
    }
}
