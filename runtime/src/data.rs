//! The data directory: where everything that outlives a process is kept, and how it is written.
//!
//! ```text
//! hob.redb                          records of deployed functions
//! components/sha256-<hex>.wasm      components, as uploaded
//! compiled/<engine>/sha256-<hex>.cwasm   what they compiled to, for one build of the engine
//! models/blobs/sha256-<hex>         weights
//! models/names/<name>.json          which blob a model name means, or which several
//! models/trees/sha256-<hex>/        the files of a model that has several: links to blobs, under their names
//! models/partial/                   files that are on their way, and how far they are
//! control.json                      where the running server listens for commands, and its key
//! audit.jsonl, audit.<n>.jsonl      who changed what over the control API, and before
//! usage/                            what each invocation used, see [`crate::usage`]
//! secrets/<function>/<revision>.json     what only the guest may read
//! tmp/                              what is being written; emptied at start
//! ```
//!
//! A file appears under its final name only when it is whole and on disk, so a process that dies at any
//! moment leaves a directory that starts.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::names::{FunctionName, RevisionId};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be created or written.
    #[error("data directory {path} is not writable ({source}); choose another with --data or HOB_DATA", path = path.display())]
    NotWritable {
        /// The directory, or the part of it, that refused.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No home directory, and none was named.
    #[error("no data directory: HOME is not set; name one with --data or HOB_DATA")]
    Unnamed,
}

/// An opened data directory.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Opens `path`, or the user's default (`$XDG_DATA_HOME/hob`, else `~/.local/share/hob`), and creates what lacks.
    ///
    /// # Errors
    /// When there is no such place, or it cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Self, DataError> {
        let root = match path {
            Some(path) => path.to_owned(),
            None => default_root().ok_or(DataError::Unnamed)?,
        };
        let dir = Self { root };
        let models = [dir.model_blobs(), dir.model_names(), dir.model_trees(), dir.model_partials()];
        for folder in [dir.root.clone(), dir.tmp(), dir.components()].into_iter().chain(models) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .and_then(|()| probe(&folder))
                .map_err(|source| DataError::NotWritable { path: folder, source })?;
        }
        Ok(dir)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database of records.
    pub fn records(&self) -> PathBuf {
        self.root.join("hob.redb")
    }

    /// Where the running server says how to reach it.
    pub fn control(&self) -> PathBuf {
        self.root.join("control.json")
    }

    /// Who changed what.
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit.jsonl")
    }

    /// What each invocation used.
    pub fn usage(&self) -> PathBuf {
        self.root.join("usage")
    }

    /// A component as uploaded.
    pub fn component(&self, digest: &Digest) -> PathBuf {
        self.components().join(format!("{}.wasm", digest.file_name()))
    }

    /// What a component compiled to, for the engine whose compatibility hash is `engine`.
    pub fn compiled(&self, engine: &str, digest: &Digest) -> PathBuf {
        self.root.join("compiled").join(engine).join(format!("{}.cwasm", digest.file_name()))
    }

    /// The values of a revision's secrets.
    pub fn secrets(&self, function: &FunctionName, revision: RevisionId) -> PathBuf {
        self.secrets_root().join(function.as_str()).join(format!("{revision}.json"))
    }

    /// All components that are kept.
    pub fn kept_components(&self) -> Vec<(PathBuf, Digest)> {
        named_by_digest(&self.components())
    }

    /// All that components compiled to for the engine whose compatibility hash is `engine`.
    pub fn kept_compiled(&self, engine: &str) -> Vec<(PathBuf, Digest)> {
        named_by_digest(&self.root.join("compiled").join(engine))
    }

    /// Removes what was compiled for other engines than `engine`.
    pub fn remove_compiled_but_for(&self, engine: &str) {
        for folder in entries(&self.root.join("compiled")).filter(|folder| !folder.ends_with(engine)) {
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(path = %folder.display(), %error, "left-over folder could not be removed");
            }
        }
    }

    /// Removes the secrets of revisions that are not `kept`.
    pub fn remove_secrets_but_for(&self, kept: impl Fn(&FunctionName, RevisionId) -> bool) {
        for folder in entries(&self.secrets_root()) {
            let function = folder.file_name().and_then(|name| name.to_str()?.parse::<FunctionName>().ok());
            for file in entries(&folder) {
                let revision = file.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                if let (Some(function), Some(revision)) = (&function, revision)
                    && kept(function, revision)
                {
                    continue;
                }
                if let Err(error) = fs::remove_file(&file) {
                    tracing::warn!(path = %file.display(), %error, "left-over secrets could not be removed");
                }
            }
            // Only when it is empty.
            let _ = fs::remove_dir(&folder);
        }
    }

    /// A model's weights.
    pub fn model_blob(&self, digest: &Digest) -> PathBuf {
        self.model_blobs().join(digest.file_name())
    }

    /// All weights that are kept.
    pub fn kept_model_blobs(&self) -> Vec<(PathBuf, Digest)> {
        named_by_digest(&self.model_blobs())
    }

    /// The files of a model that has several.
    pub fn model_tree(&self, digest: &Digest) -> PathBuf {
        self.model_trees().join(digest.file_name())
    }

    /// The folder of models that have several files.
    pub fn model_trees(&self) -> PathBuf {
        self.root.join("models/trees")
    }

    /// The folder of files that are on their way.
    pub fn model_partials(&self) -> PathBuf {
        self.root.join("models/partial")
    }

    /// Held while a name gets another meaning, or blobs that nothing means go.
    pub fn model_names_lock(&self) -> PathBuf {
        self.root.join("models/names.lock")
    }

    /// Held by each pull, so that nothing of it goes.
    pub fn model_pulls_lock(&self) -> PathBuf {
        self.root.join("models/pulls.lock")
    }

    /// The folder of model names.
    pub fn model_names(&self) -> PathBuf {
        self.root.join("models/names")
    }

    /// Where files are written before they get their names.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Removes what an interrupted process left half-written. Only the serving process may call this: it owns the directory.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.tmp()) else { return };
        for entry in entries.flatten() {
            // A download that another `hob` is making right now is younger than this.
            let old = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 3600));
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let remove = || if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            if old && let Err(error) = remove() {
                tracing::warn!(path = %entry.path().display(), %error, "left-over file could not be removed");
            }
        }
    }

    /// Writes `bytes` to `path`, whole or not at all, and durably.
    ///
    /// # Errors
    /// What the system said; then `path` is as it was.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.temporary()?;
        file.write_all(bytes)?;
        self.keep(file, path)
    }

    /// A new file in `tmp`, readable by its owner only, gone when dropped.
    ///
    /// # Errors
    /// What the system said.
    pub fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("hob-").tempfile_in(self.tmp())
    }

    /// Gives a finished temporary file its final name: on disk first, then visible, then the name itself on disk.
    ///
    /// # Errors
    /// What the system said; then `path` is as it was.
    pub fn keep(&self, file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }

    fn components(&self) -> PathBuf {
        self.root.join("components")
    }

    fn secrets_root(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// The folder of weights.
    pub fn model_blobs(&self) -> PathBuf {
        self.root.join("models/blobs")
    }
}

/// Writes a file that only its owner may read, at once and without a temporary: for what is worthless after a crash.
///
/// # Errors
/// What the system said.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(path);
    File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

/// The paths in a folder; none if it is not there.
fn named_by_digest(folder: &Path) -> Vec<(PathBuf, Digest)> {
    let digest = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("sha256-")?.parse().ok();
    entries(folder).filter_map(|path| digest(&path).map(|digest| (path, digest))).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn probe(folder: &Path) -> io::Result<()> {
    tempfile::tempfile_in(folder).map(drop)
}

fn default_root() -> Option<PathBuf> {
    if let Some(xdg) = std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(xdg).join("hob"));
    }
    let home = std::env::var_os("HOME").filter(|path| !path.is_empty())?;
    Some(PathBuf::from(home).join(".local/share/hob"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_absent() {
        let home = tempfile::tempdir().unwrap();
        let dir = DataDir::open(Some(home.path())).unwrap();
        let path = dir.root().join("deep/er/file");
        dir.write(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        drop(dir.temporary().unwrap());
        assert_eq!(fs::read_dir(dir.tmp()).unwrap().count(), 0, "nothing is left in tmp");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = DataDir::open(Some(&file)).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()) && error.contains("--data"), "{error}");
    }
}
