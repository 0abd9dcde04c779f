//! Blobs that callers send, and models that are made of them.
//!
//! A blob has a digest that its sender says first: other bytes are not kept. One that no name needs goes with the next `gc`.

use std::io::{self, Write as _};

use super::error::PullError;
use super::space::Space;
use super::store::{Defaults, FilePath, Manifest, ModelFile, ModelStore, StoreError};
use crate::digest::{Digest, Hasher};
use crate::names::ModelName;

/// After so many bytes it is looked again whether there is room.
const LOOK: u64 = 64 << 20;

/// Why a blob was not taken. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Other bytes than were said.
    #[error("what was sent has the digest {got} and not {expected}; nothing was kept, send it again")]
    Wrong {
        /// As was said.
        expected: Digest,
        /// As it came.
        got: Digest,
    },
    /// More bytes than were said, or fewer.
    #[error("{got} bytes came of {expected}; nothing was kept, send it again")]
    Length {
        /// As was said.
        expected: u64,
        /// As came.
        got: u64,
    },
    /// It does not fit.
    #[error("{0}")]
    Room(Box<PullError>),
    /// The disk refused.
    #[error("writing failed: {0}; is the disk full? `hob models gc` removes what is of no use, `hob models rm` models")]
    Disk(#[from] io::Error),
}

/// Why no model was made of blobs.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A blob that nobody sent.
    #[error("there is no blob {0}; send it first, with POST /api/blobs/{0}")]
    NoBlob(Digest),
    /// The files are no model.
    #[error("these files are no model: {0}")]
    NotAModel(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A blob on its way. Dropped, nothing is left of it.
pub struct Upload {
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    digest: Digest,
    /// Bytes that came, of so many.
    done: u64,
    total: Option<u64>,
    /// When it is looked next whether there is room.
    look: u64,
    space: Space,
    store: ModelStore,
}

impl Upload {
    /// Takes the next bytes. Waits for the disk.
    ///
    /// # Errors
    /// `Length`, `Room`, `Disk`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        let done = self.done + bytes.len() as u64;
        if let Some(expected) = self.total.filter(|total| done > *total) {
            return Err(UploadError::Length { expected, got: done });
        }
        if done > self.look {
            self.room(LOOK)?;
            self.look = done + LOOK;
        }
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.done = done;
        Ok(())
    }

    /// Gives it its place, if it is what was said. Waits for the disk.
    ///
    /// # Errors
    /// `Wrong`, `Length`, `Disk`.
    pub fn finish(self) -> Result<(), UploadError> {
        if let Some(expected) = self.total.filter(|total| *total != self.done) {
            return Err(UploadError::Length { expected, got: self.done });
        }
        let (expected, got) = (self.digest, self.hasher.finish());
        if expected != got {
            return Err(UploadError::Wrong { expected, got });
        }
        Ok(self.store.data().keep(self.file, &self.store.blob(&expected))?)
    }

    fn room(&self, bytes: u64) -> Result<(), UploadError> {
        self.space.check(&self.digest.to_string(), bytes).map_err(|error| UploadError::Room(error.into()))
    }
}

impl ModelStore {
    /// Whether a blob is here, and as long as it must be, where that is known.
    pub fn has_blob(&self, digest: &Digest, bytes: Option<u64>) -> bool {
        let blob = std::fs::metadata(self.blob(digest));
        blob.is_ok_and(|blob| blob.is_file() && bytes.is_none_or(|bytes| bytes == blob.len()))
    }

    /// Begins to take a blob of `total` bytes, if that is known; all models may take `limit` on disk.
    ///
    /// # Errors
    /// `Room`, `Disk`.
    pub fn upload(&self, digest: Digest, total: Option<u64>, limit: Option<u64>) -> Result<Upload, UploadError> {
        let data = self.data();
        let space = Space::new(vec![data.model_blobs(), data.model_partials(), data.tmp()], limit);
        let (file, hasher, store) = (data.temporary()?, Hasher::default(), self.clone());
        let upload = Upload { file, hasher, digest, done: 0, total, look: LOOK, space, store };
        upload.room(total.unwrap_or(LOOK))?;
        Ok(upload)
    }

    /// Makes a model of files whose blobs are here: a GGUF file, shards of one, or a checkpoint.
    ///
    /// # Errors
    /// `NoBlob`, `NotAModel`, and what [`ModelStore::put`] says.
    pub fn create(
        &self,
        name: &ModelName,
        files: Vec<(FilePath, Digest)>,
        defaults: Defaults,
    ) -> Result<Manifest, CreateError> {
        let file = |(path, digest): (FilePath, Digest)| match std::fs::metadata(self.blob(&digest)) {
            Ok(blob) => Ok(ModelFile { path, digest, bytes: blob.len() }),
            Err(_) => Err(CreateError::NoBlob(digest)),
        };
        let files: Vec<_> = files.into_iter().map(file).collect::<Result<_, _>>()?;
        let manifest = match &files[..] {
            [] => return Err(CreateError::NotAModel("there are none".into())),
            [one] if one.path.is_gguf() => Manifest::of_file(name.clone(), one.digest, one.bytes, "sent by a caller"),
            _ => Manifest::of_files(name.clone(), files, "sent by a caller"),
        };
        manifest.check(name).map_err(CreateError::NotAModel)?;
        let path = self.path(&manifest).map_err(StoreError::Disk)?;
        match hob_gpu::inspect(&path) {
            Err(error) if !super::pull::is_sound(&error) => {
                self.drop_tree(&manifest)?;
                return Err(CreateError::NotAModel(error.to_string()));
            }
            // What this version cannot run is a model all the same.
            _ => {}
        }
        let keep = self.get(name).map(|known| known.keep).unwrap_or_default();
        let manifest = Manifest { keep, defaults, ..manifest };
        self.put(&manifest)?;
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataDir;

    fn store() -> (tempfile::TempDir, ModelStore) {
        let home = tempfile::tempdir().unwrap();
        let store = ModelStore::new(DataDir::open(Some(home.path())).unwrap());
        (home, store)
    }

    fn golden(file: &str) -> Vec<u8> {
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/").to_owned() + file).unwrap()
    }

    fn send(store: &ModelStore, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut upload = store.upload(digest, Some(bytes.len() as u64), None).unwrap();
        bytes.chunks(1000).for_each(|chunk| upload.write(chunk).unwrap());
        upload.finish().unwrap();
        assert!(store.has_blob(&digest, Some(bytes.len() as u64)) && !store.has_blob(&digest, Some(0)));
        digest
    }

    fn path(text: &str) -> FilePath {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn what_is_not_what_was_said_is_not_kept() {
        let (home, store) = store();
        let begin = |total, limit| store.upload(Digest::of(b"right"), total, limit);
        let mut wrong = begin(None, None).unwrap();
        wrong.write(b"wrong").unwrap();
        assert!(matches!(wrong.finish(), Err(UploadError::Wrong { .. })));
        let mut short = begin(Some(5), None).unwrap();
        short.write(b"righ").unwrap();
        assert!(matches!(short.finish(), Err(UploadError::Length { expected: 5, got: 4 })));
        let mut long = begin(Some(5), None).unwrap();
        assert!(matches!(long.write(b"right!"), Err(UploadError::Length { expected: 5, got: 6 })));
        drop(long);
        let error = begin(Some(1 << 20), Some(1000)).err().expect("there is a limit").to_string();
        assert!(error.contains("HOB_MODELS_LIMIT"), "{error}");
        assert!(matches!(begin(Some(u64::MAX), None), Err(UploadError::Room(_))));
        for folder in ["tmp", "models/blobs"] {
            assert_eq!(std::fs::read_dir(home.path().join(folder)).unwrap().count(), 0, "{folder}");
        }
        let mut unknown = begin(None, Some(70 << 20)).unwrap();
        let error = (0..80).find_map(|_| unknown.write(&vec![1; 1 << 20]).err()).expect("there is a limit");
        assert!(matches!(error, UploadError::Room(_)), "{error}");
    }

    #[test]
    fn a_model_is_made_of_what_was_sent() {
        let (_home, store) = store();
        let name: ModelName = "mine".parse().unwrap();
        let tiny = send(&store, &golden("arch/llama.gguf"));
        let defaults = Defaults { system: Some("Arr.".into()), ..Defaults::default() };
        let made = store.create(&name, vec![(path("x.gguf"), tiny)], defaults).unwrap();
        assert_eq!(store.get(&name).unwrap(), made);
        assert_eq!((made.digest, made.defaults.system.as_deref()), (tiny, Some("Arr.")));
        let files = ["config.json", "tokenizer.json", "model.safetensors"];
        let folder = "hf/llama/";
        let files = files.map(|file| (path(file), send(&store, &golden(&format!("{folder}{file}"))))).to_vec();
        let folder = store.create(&"folder".parse().unwrap(), files.clone(), Defaults::default()).unwrap();
        assert!(store.path(&folder).unwrap().join("config.json").exists());

        let refused = |files: Vec<(FilePath, Digest)>| {
            store.create(&"bad".parse().unwrap(), files, Defaults::default()).unwrap_err().to_string()
        };
        let missing = Digest::of(b"missing");
        assert!(refused(vec![(path("x.gguf"), missing)]).contains(&format!("POST /api/blobs/{missing}")));
        assert!(refused(vec![]).contains("no model"));
        let page = send(&store, b"<html>");
        assert!(refused(vec![(path("x.gguf"), page)]).contains("no model"));
        let twice = [files.clone(), vec![files[0].clone()]].concat();
        assert!(refused(twice).contains("same name"));
        assert!(refused(files[..2].to_vec()).contains("no model"));
        assert_eq!(store.names().unwrap().len(), 2);
        assert_eq!(std::fs::read_dir(store.data().model_trees()).unwrap().count(), 1);
        assert_eq!(store.collect().unwrap().files, 1, "the page goes");
    }
}
