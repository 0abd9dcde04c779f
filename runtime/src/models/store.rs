//! The models on disk: names, each a small JSON file, that point at content-addressed blobs.
//! Plain files rather than records, so that `hob models` and `hob run` work beside a running server.
//!
//! A model of one GGUF file is its blob. One of several files - shards, or a checkpoint - is a folder of links to blobs,
//! under the names that the files must have beside each other; its digest is that of the list of names and digests, so
//! that two models with the same files are the same. Names and lists come from hubs: they are checked as they are read.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::keep::Keep;
use super::plan::MOST_FILES;
use super::wanted::safe_path;
use crate::data::DataDir;
use crate::digest::Digest;
use crate::names::ModelName;

/// A licence and a template are in it, in the worst case several.
const MAX_MANIFEST: u64 = 16 << 20;

/// What a model name stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name.
    pub name: ModelName,
    /// The weights, a GGUF file; of a model in several files, the digest of their list.
    pub digest: Digest,
    /// Their size in bytes.
    pub bytes: u64,
    /// Where they came from.
    pub source: String,
    /// The model that it was made from: the same weights, with words and parameters of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ModelName>,
    /// When, in seconds since 1970.
    pub pulled_at: u64,
    /// How long it stays in memory.
    #[serde(default, skip_serializing_if = "Keep::is_nothing")]
    pub keep: Keep,
    /// The files, if it has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ModelFile>,
    /// What its maker says about using it.
    #[serde(default, skip_serializing_if = "Defaults::is_nothing")]
    pub defaults: Defaults,
}

/// One of the files of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// What it is called among them.
    pub path: FilePath,
    /// Its bytes.
    pub digest: Digest,
    /// How many.
    pub bytes: u64,
}

/// What comes with a model, for whoever talks to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// What frames each answer, if nobody says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// How prompts are written, in the language that its registry uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// How tokens are chosen, by the names that its registry uses.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// What one may do with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

impl Defaults {
    /// Whether nothing came.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A relative path that stays below the folder that it is put into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(String);

/// A text is no path of a model's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is called {0:?}, which no file of a model may be")]
pub struct FilePathError(String);

impl FilePath {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_gguf(&self) -> bool {
        self.0.to_ascii_lowercase().ends_with(".gguf")
    }
}

impl TryFrom<String> for FilePath {
    type Error = FilePathError;

    fn try_from(text: String) -> Result<Self, FilePathError> {
        if safe_path(&text) { Ok(Self(text)) } else { Err(FilePathError(text.chars().take(80).collect())) }
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> String {
        path.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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
    /// A name that is taken by another model.
    #[error("there is a model `{0}` already; remove it first with `hob models rm {0}`")]
    Taken(ModelName),
    /// What was to be named has been removed meanwhile.
    #[error("the files of model `{0}` were removed meanwhile, so it got no name; get them again")]
    Gone(ModelName),
    /// More is said about a model than is ever read.
    #[error(
        "what is said about model `{name}` has {bytes} bytes, more than {MAX_MANIFEST}; shorten its licence, system prompt or parameters"
    )]
    TooLong {
        /// The name.
        name: ModelName,
        /// How long it would be.
        bytes: usize,
    },
    /// Somebody is pulling.
    #[error("a pull is under way, and nobody knows which files it needs; try again when it has ended")]
    Pulling,
    /// The system refused.
    #[error("the model store cannot be read or written: {0}")]
    Disk(#[from] io::Error),
}

impl Manifest {
    /// A model that is one GGUF file.
    pub fn of_file(name: ModelName, digest: Digest, bytes: u64, source: impl Into<String>) -> Self {
        let pulled_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (keep, files, defaults) = (Keep::default(), Vec::new(), Defaults::default());
        Self { name, digest, bytes, source: source.into(), parent: None, pulled_at, keep, files, defaults }
    }

    /// A model that is several files.
    pub fn of_files(name: ModelName, files: Vec<ModelFile>, source: impl Into<String>) -> Self {
        let bytes = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        Self { files: files.clone(), ..Self::of_file(name, Self::digest_of(&files), bytes, source) }
    }

    /// The blobs that it needs.
    pub fn blobs(&self) -> Vec<(Digest, u64)> {
        match self.files.is_empty() {
            true => vec![(self.digest, self.bytes)],
            false => self.files.iter().map(|file| (file.digest, file.bytes)).collect(),
        }
    }

    /// The digest of a model in several files.
    pub fn digest_of(files: &[ModelFile]) -> Digest {
        let mut lines: Vec<_> = files.iter().map(|file| format!("{} {}\n", file.digest, file.path)).collect();
        lines.sort();
        Digest::of(lines.concat().as_bytes())
    }

    /// What is wrong with it, whoever wrote it.
    pub(super) fn check(&self, name: &ModelName) -> Result<(), String> {
        if self.name != *name {
            return Err(format!("its file says that it is `{}`", self.name));
        }
        if self.files.is_empty() {
            return Ok(());
        }
        let mut paths: Vec<_> = self.files.iter().map(|file| &file.path).collect();
        paths.sort();
        // `a` and `a/b`: one would have to be a file and a folder.
        let clash = paths.windows(2).any(|two| {
            two[1].as_str().strip_prefix(two[0].as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let bytes = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes));
        match () {
            () if self.files.len() > MOST_FILES => Err(format!("it has {} files", self.files.len())),
            () if clash => Err("two of its files have the same name".into()),
            () if bytes != Some(self.bytes) => Err("its files have another size than it says".into()),
            () if Self::digest_of(&self.files) != self.digest => Err("its list of files has another digest".into()),
            () => Ok(()),
        }
    }
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
        let manifest = self.named(name)?;
        for (digest, bytes) in manifest.blobs() {
            match fs::metadata(self.blob(&digest)) {
                Ok(blob) if blob.len() == bytes => {}
                Ok(blob) => return Err(damaged(format!("its file has {} bytes instead of {bytes}", blob.len()))),
                Err(error) => return Err(damaged(format!("its file cannot be read: {error}"))),
            }
        }
        Ok(manifest)
    }

    /// What `name` stands for, whether its weights are there or not.
    pub(super) fn named(&self, name: &ModelName) -> Result<Manifest, StoreError> {
        let damaged = |why: String| StoreError::Damaged { name: name.clone(), why };
        let text = self.text(name)?;
        if text.len() as u64 > MAX_MANIFEST {
            return Err(damaged(format!("its file is longer than {MAX_MANIFEST} bytes")));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        manifest.check(name).map_err(damaged)?;
        Ok(manifest)
    }

    /// What the file of a name says, as it stands there; a byte more than is read of one, if it is too long.
    pub(super) fn text(&self, name: &ModelName) -> Result<Vec<u8>, StoreError> {
        let mut text = Vec::new();
        match File::open(self.manifest(name)) {
            Ok(file) => file.take(MAX_MANIFEST + 1).read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::NotFound(name.clone())),
            Err(error) => return Err(error.into()),
        };
        Ok(text)
    }

    /// All models, by name; what is damaged is left out and logged.
    ///
    /// # Errors
    /// `Disk`.
    pub fn list(&self) -> Result<Vec<Manifest>, StoreError> {
        let mut models = Vec::new();
        for name in self.names()? {
            match self.get(&name) {
                Ok(manifest) => models.push(manifest),
                Err(error) => tracing::warn!(%error, "left out"),
            }
        }
        Ok(models)
    }

    /// All names, in order, whether what they stand for is whole or not.
    ///
    /// # Errors
    /// `Disk`.
    pub fn names(&self) -> Result<Vec<ModelName>, StoreError> {
        let mut names = Vec::new();
        for file in fs::read_dir(self.data.model_names())? {
            let file = file?;
            let name = file.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            match name.parse() {
                Ok(name) if file.file_type()?.is_file() => names.push(name),
                Ok(_) => tracing::warn!(name, "left out: it is no file"),
                Err(error) => tracing::warn!(%error, "left out"),
            }
        }
        names.sort();
        Ok(names)
    }

    /// Writes the file of a name. For those who hold the names, and know that the blobs are here.
    pub(super) fn write(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(manifest).expect("a manifest has only string keys");
        if text.len() as u64 > MAX_MANIFEST {
            return Err(StoreError::TooLong { name: manifest.name.clone(), bytes: text.len() });
        }
        Ok(self.data.write(&self.manifest(&manifest.name), &text)?)
    }

    /// Where a blob lies.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.data.model_blob(digest)
    }

    /// What is opened to read a model: its GGUF file, the first shard of one, or the folder of a checkpoint.
    ///
    /// # Errors
    /// What the system said: the folder of a model in several files is made when it is needed first.
    pub fn path(&self, model: &Manifest) -> io::Result<PathBuf> {
        if model.files.is_empty() {
            return Ok(self.blob(&model.digest));
        }
        let tree = self.data.model_tree(&model.digest);
        if !tree.is_dir() {
            self.plant(model, &tree)?;
        }
        let first = model.files.iter().map(|file| &file.path).filter(|path| path.is_gguf()).min();
        Ok(first.map_or(tree.clone(), |path| tree.join(path.as_str())))
    }

    /// Makes the folder of a model in several files: all of it, then visible.
    fn plant(&self, model: &Manifest, tree: &Path) -> io::Result<()> {
        let folder = tempfile::Builder::new().prefix("hob-").tempdir_in(self.data.tmp())?;
        for file in &model.files {
            let place = folder.path().join(file.path.as_str());
            let depth = file.path.as_str().matches('/').count();
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            // Relative, so that the data directory may move.
            let blob = Path::new(&"../".repeat(depth + 2)).join("blobs").join(file.digest.file_name());
            std::os::unix::fs::symlink(blob, place)?;
        }
        match fs::rename(folder.path(), tree) {
            Ok(()) => {
                let _ = folder.keep();
                Ok(())
            }
            // Another process was faster.
            Err(_) if tree.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn manifest(&self, name: &ModelName) -> PathBuf {
        self.data.model_names().join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, ModelStore) {
        let home = tempfile::tempdir().unwrap();
        let store = ModelStore::new(DataDir::open(Some(home.path())).unwrap());
        (home, store)
    }

    fn manifest(name: &str, bytes: &[u8]) -> Manifest {
        Manifest::of_file(name.parse().unwrap(), Digest::of(bytes), bytes.len() as u64, "test")
    }

    fn folder(name: &str, files: &[(&str, &[u8])]) -> Manifest {
        let file = |(path, bytes): &(&str, &[u8])| ModelFile {
            path: (*path).to_owned().try_into().unwrap(),
            digest: Digest::of(bytes),
            bytes: bytes.len() as u64,
        };
        Manifest::of_files(name.parse().unwrap(), files.iter().map(file).collect(), "test")
    }

    #[test]
    fn names_point_at_blobs() {
        let (_home, store) = store();
        let manifest = manifest("toy:1", b"weights");
        let (name, blob) = (manifest.name.clone(), store.blob(&manifest.digest));
        assert!(matches!(store.get(&name), Err(StoreError::NotFound(_))));
        store.write(&manifest).unwrap();
        assert!(matches!(store.get(&name), Err(StoreError::Damaged { .. })), "the blob is missing");
        fs::write(&blob, b"weights").unwrap();
        assert_eq!(store.list().unwrap(), [manifest]);
        fs::write(&blob, b"weigh").unwrap();
        let error = store.get(&name).unwrap_err().to_string();
        assert!(error.contains("5 bytes instead of 7") && error.contains("hob models pull toy:1"), "{error}");
    }

    #[test]
    fn a_model_in_several_files_is_a_folder_of_links() {
        let (home, store) = store();
        let files: &[(&str, &[u8])] =
            &[("config.json", b"{}"), ("1_Pooling/config.json", b"{1}"), ("w.safetensors", b"w")];
        let model = folder("many", files);
        for (_, bytes) in files {
            fs::write(store.blob(&Digest::of(bytes)), bytes).unwrap();
        }
        store.write(&model).unwrap();
        let model = store.get(&model.name).unwrap();
        let path = store.path(&model).unwrap();
        for (name, bytes) in files {
            assert_eq!(fs::read(path.join(name)).unwrap(), *bytes);
        }
        assert_eq!(store.path(&model).unwrap(), path, "made once");
        assert_eq!(fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
        let shards = folder("shards", &[("x-00002-of-00002.gguf", b"w"), ("x-00001-of-00002.gguf", b"{}")]);
        assert!(store.path(&shards).unwrap().ends_with("x-00001-of-00002.gguf"));
    }

    #[test]
    fn what_hostile_hands_write_is_refused() {
        let (_home, store) = store();
        let sound = serde_json::to_value(folder("m", &[("a", b"1"), ("b", b"2")])).unwrap();
        let refused = |change: &dyn Fn(&mut Value), said: &str| {
            let mut value = sound.clone();
            change(&mut value);
            fs::write(store.manifest(&"m".parse().unwrap()), value.to_string()).unwrap();
            let error = store.named(&"m".parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains(said), "{error}");
        };
        for path in ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a//b", "a\u{0}b", "a\\b", "."] {
            refused(&|value| value["files"][0]["path"] = path.into(), "no file of a model");
        }
        refused(&|value| value["files"][0]["path"] = "b".into(), "same name");
        refused(&|value| value["files"][0]["path"] = "b/c".into(), "same name");
        refused(&|value| value["files"][0]["bytes"] = u64::MAX.into(), "another size");
        refused(&|value| value["files"][0]["digest"] = Digest::of(b"x").to_string().into(), "another digest");
        refused(&|value| value["digest"] = "../../x".into(), "not a digest");
        refused(&|value| value["name"] = "other".into(), "says that it is `other`");
        refused(&|value| value["name"] = "../x".into(), "cannot name a model");
        let names = store.data().model_names();
        fs::write(names.join("..json"), "{}").unwrap();
        fs::write(names.join("A B.json"), "{}").unwrap();
        fs::create_dir(names.join("folder.json")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", names.join("zero.json")).unwrap();
        assert!(store.list().unwrap().is_empty());
        let long = File::create(names.join("long.json")).unwrap();
        long.set_len(MAX_MANIFEST * 4).unwrap();
        let error = store.get(&"long".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
        let mut wordy = manifest("wordy", b"w");
        wordy.defaults.license = Some("x".repeat(MAX_MANIFEST as usize));
        let error = store.write(&wordy).unwrap_err().to_string();
        assert!(error.contains("shorten its licence") && !names.join("wordy.json").exists(), "{error}");
    }
}
