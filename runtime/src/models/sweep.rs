//! What happens to models that are here: other names for them, removing, looking whether they are whole.
//!
//! A blob goes when no name needs it any more. Names change their meaning one at a time (`names.lock`), and whoever names a
//! model looks, while nobody else does, whether its blobs are there: one that has just gone is got again. `gc` removes what
//! no name needs and what is left of pulls, and that only while nobody pulls (`pulls.lock`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::keep::Keep;
use super::store::{Manifest, ModelStore, StoreError};
use crate::digest::Digest;
use crate::names::ModelName;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Freed {
    /// So many files.
    pub files: u64,
    /// Bytes that they had on disk.
    pub bytes: u64,
}

/// A lock between processes, let go of when dropped.
pub(super) struct Held {
    _file: File,
}

impl ModelStore {
    /// Gives another name to a model.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`; `Taken` if the name means another model.
    pub fn copy(&self, from: &ModelName, to: &ModelName) -> Result<(), StoreError> {
        let _held = self.hold_names()?;
        let manifest = self.get(from)?;
        match self.named(to) {
            Ok(known) if known.digest != manifest.digest => return Err(StoreError::Taken(to.clone())),
            Ok(_) if from == to => return Ok(()),
            _ => {}
        }
        self.name(&Manifest { name: to.clone(), keep: Keep::default(), ..manifest })
    }

    /// Notes how long a model is to stay in memory.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Disk`.
    pub fn keep(&self, name: &ModelName, keep: Keep) -> Result<(), StoreError> {
        let _held = self.hold_names()?;
        self.name(&Manifest { keep, ..self.get(name)? })
    }

    /// Removes a name, and what no other name needs.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, name: &ModelName) -> Result<Freed, StoreError> {
        let _held = self.hold_names()?;
        let known = self.named(name);
        if let Err(error @ (StoreError::NotFound(_) | StoreError::Disk(_))) = known {
            return Err(error);
        }
        fs::remove_file(self.manifest(name))?;
        // Of a damaged name nobody knows what it needed; `gc` finds out.
        Ok(known.map_or(Freed::default(), |manifest| self.prune(&[manifest])))
    }

    /// Names a model whose blobs are here. `false` if one of them has gone meanwhile.
    ///
    /// # Errors
    /// `Disk`.
    pub(crate) fn settle(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        let _held = self.hold_names()?;
        let here =
            |(digest, bytes): (Digest, u64)| fs::metadata(self.blob(&digest)).is_ok_and(|blob| blob.len() == bytes);
        if !manifest.blobs().into_iter().all(here) {
            return Ok(false);
        }
        let before = self.named(&manifest.name).ok();
        self.path(manifest)?;
        self.name(manifest)?;
        // What the name meant before goes, if nothing else means it.
        if let Some(before) = before {
            self.prune(&[before]);
        }
        Ok(true)
    }

    /// Removes what was fetched for a model that gets no name, as far as nothing else needs it.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn drop_unnamed(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let _held = self.hold_names()?;
        self.prune(std::slice::from_ref(manifest));
        Ok(())
    }

    /// Removes all that no name needs, and what is left of pulls.
    ///
    /// # Errors
    /// `Pulling`, `Disk`.
    pub fn collect(&self) -> Result<Freed, StoreError> {
        let pulls = open(&self.data().model_pulls_lock())?;
        match pulls.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Pulling),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let _held = self.hold_names()?;
        let (blobs, trees) = self.needed()?;
        let mut freed = Freed::default();
        for (path, digest) in self.data().kept_model_blobs() {
            if !blobs.contains(&digest) {
                freed.file(&path);
            }
        }
        for entry in fs::read_dir(self.data().model_partials())?.flatten() {
            freed.file(&entry.path());
        }
        for entry in fs::read_dir(self.data().model_trees())?.flatten() {
            if !trees.iter().any(|digest| entry.file_name().to_str() == Some(&digest.file_name())) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        self.data().sweep();
        Ok(freed)
    }

    /// Reads all of a model's files. What is wrong with them, one sentence for each; `seen` is told how many bytes were
    /// read of how many.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`.
    pub fn verify(&self, name: &ModelName, mut seen: impl FnMut(u64, u64)) -> Result<Vec<String>, StoreError> {
        let manifest = self.named(name)?;
        let (mut wrong, mut before) = (Vec::new(), 0);
        for (digest, bytes) in manifest.blobs() {
            let path = self.blob(&digest);
            let read = File::open(&path).and_then(|file| Digest::of_reader(file, |n| seen(before + n, manifest.bytes)));
            match read {
                Ok(got) if got == digest => {}
                Ok(got) => wrong.push(format!("{} has the digest {got}", path.display())),
                Err(error) => wrong.push(format!("{} cannot be read: {error}", path.display())),
            }
            before += bytes;
        }
        Ok(wrong)
    }

    /// Makes it known that files are on their way, until it is dropped.
    pub(super) fn hold_pulls(&self) -> io::Result<Held> {
        let file = open(&self.data().model_pulls_lock())?;
        file.lock_shared()?;
        Ok(Held { _file: file })
    }

    fn hold_names(&self) -> io::Result<Held> {
        let file = open(&self.data().model_names_lock())?;
        file.lock()?;
        Ok(Held { _file: file })
    }

    /// The blobs and folders that names need. A damaged name needs what it says, as far as that reads.
    fn needed(&self) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>), StoreError> {
        let (mut blobs, mut trees) = (BTreeSet::new(), BTreeSet::new());
        for name in self.names()? {
            match self.named(&name) {
                Ok(manifest) => {
                    blobs.extend(manifest.blobs().into_iter().map(|(digest, _)| digest));
                    trees.extend((!manifest.files.is_empty()).then_some(manifest.digest));
                }
                Err(error) => tracing::warn!(%error, "what it needs is not known"),
            }
        }
        Ok((blobs, trees))
    }

    /// Removes what only `gone` needed.
    fn prune(&self, gone: &[Manifest]) -> Freed {
        let mut freed = Freed::default();
        let Ok((blobs, trees)) = self.needed() else { return freed };
        for manifest in gone {
            for (digest, _) in manifest.blobs() {
                if !blobs.contains(&digest) && self.blob(&digest).exists() {
                    freed.file(&self.blob(&digest));
                }
            }
            if !manifest.files.is_empty() && !trees.contains(&manifest.digest) {
                let _ = fs::remove_dir_all(self.data().model_tree(&manifest.digest));
            }
        }
        freed
    }
}

impl Freed {
    fn file(&mut self, path: &Path) {
        use std::os::unix::fs::MetadataExt as _;
        let bytes = fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
        match fs::remove_file(path) {
            Ok(()) => (self.files, self.bytes) = (self.files + 1, self.bytes + bytes),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a file that nothing needs could not be removed")
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataDir;
    use crate::models::store::ModelFile;

    fn store() -> (tempfile::TempDir, ModelStore) {
        let home = tempfile::tempdir().unwrap();
        let store = ModelStore::new(DataDir::open(Some(home.path())).unwrap());
        (home, store)
    }

    fn put(store: &ModelStore, name: &str, files: &[(&str, &str)]) -> Manifest {
        let files: Vec<_> = files
            .iter()
            .map(|(path, bytes)| {
                fs::write(store.blob(&Digest::of(bytes.as_bytes())), bytes).unwrap();
                ModelFile {
                    path: (*path).to_owned().try_into().unwrap(),
                    digest: Digest::of(bytes.as_bytes()),
                    bytes: bytes.len() as u64,
                }
            })
            .collect();
        let name = name.parse().unwrap();
        let manifest = match &files[..] {
            [one] => Manifest::of_file(name, one.digest, one.bytes, "test"),
            _ => Manifest::of_files(name, files, "test"),
        };
        let manifest = Manifest { keep: Keep { pinned: true, ..Keep::default() }, ..manifest };
        assert!(store.settle(&manifest).unwrap());
        manifest
    }

    fn blobs(store: &ModelStore) -> usize {
        store.data().kept_model_blobs().len()
    }

    #[test]
    fn a_blob_goes_with_the_last_name_that_needs_it() {
        let (_home, store) = store();
        let (a, b, c) = ("a".parse().unwrap(), "b".parse().unwrap(), "c".parse().unwrap());
        put(&store, "a", &[("x", "one")]);
        let many = put(&store, "many", &[("x", "one"), ("y", "two")]);
        store.copy(&a, &b).unwrap();
        assert!(!store.get(&b).unwrap().keep.pinned, "what was wished for one name is not for the other");
        store.copy(&b, &b).unwrap();
        assert!(matches!(store.copy(&a, &many.name), Err(StoreError::Taken(_))));
        assert!(matches!(store.copy(&c, &a), Err(StoreError::NotFound(_))));
        assert_eq!(store.remove(&a).unwrap().files, 0);
        assert_eq!(store.remove(&b).unwrap().files, 0, "`many` needs it still");
        assert!(store.path(&many).unwrap().is_dir());
        assert_eq!(store.remove(&many.name).unwrap().files, 2);
        assert_eq!((blobs(&store), store.names().unwrap().len()), (0, 0));
        assert!(!store.data().model_tree(&many.digest).exists());
        assert!(matches!(store.remove(&a), Err(StoreError::NotFound(_))));
    }

    #[test]
    fn a_name_that_means_another_model_lets_the_old_one_go() {
        let (_home, store) = store();
        put(&store, "a", &[("x", "one")]);
        put(&store, "a", &[("x", "two")]);
        assert_eq!(blobs(&store), 1);
        let gone = put(&store, "b", &[("x", "three")]);
        fs::remove_file(store.blob(&gone.digest)).unwrap();
        assert!(!store.settle(&gone).unwrap(), "its blob has gone");
    }

    #[test]
    fn gc_removes_what_no_name_needs_while_nobody_pulls() {
        let (_home, store) = store();
        put(&store, "a", &[("x", "one"), ("y", "two")]);
        fs::write(store.blob(&Digest::of(b"left")), b"left").unwrap();
        fs::write(store.data().model_partials().join("half"), b"half").unwrap();
        fs::create_dir(store.data().model_tree(&Digest::of(b"tree"))).unwrap();
        let pull = store.hold_pulls().unwrap();
        assert!(matches!(store.collect(), Err(StoreError::Pulling)));
        drop(pull);
        assert_eq!(store.collect().unwrap().files, 2);
        assert!(store.get(&"a".parse().unwrap()).is_ok());
        assert_eq!(store.collect().unwrap(), Freed::default());
        assert_eq!(fs::read_dir(store.data().model_trees()).unwrap().count(), 1);
    }

    #[test]
    fn verify_reads_every_byte() {
        let (_home, store) = store();
        let model = put(&store, "a", &[("x", "one"), ("y", "two")]);
        let mut last = (0, 0);
        assert!(store.verify(&model.name, |done, total| last = (done, total)).unwrap().is_empty());
        assert_eq!(last, (6, 6));
        fs::write(store.blob(&Digest::of(b"two")), b"two!").unwrap();
        fs::remove_file(store.blob(&Digest::of(b"one"))).unwrap();
        let wrong = store.verify(&model.name, |_, _| ()).unwrap();
        assert!(
            wrong.len() == 2 && wrong[0].contains("cannot be read") && wrong[1].contains("has the digest"),
            "{wrong:?}"
        );
    }
}
