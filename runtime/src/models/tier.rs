//! Where models are: in a device's memory, in the system's page cache, on disk, or elsewhere.

use serde::{Deserialize, Serialize};

use super::store::{Manifest, ModelStore};

/// The nearest place that a model can be had from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// In the memory of a device: its next token can be computed at once.
    Device,
    /// Its file, or a copy made for cards, is in the host's memory: it is loaded without reading a disk.
    HostMemory,
    /// On disk, at least in part.
    Disk,
    /// Not here; `hob models pull` gets it.
    Pullable,
}

impl Tier {
    /// Where the files of a model of the store are, all of them together.
    pub fn of_model(store: &ModelStore, model: &Manifest) -> (Self, Option<u8>) {
        let files = model.blobs().into_iter().map(|(digest, _)| store.blob(&digest));
        let counts: Option<Vec<_>> = files.map(|path| hob_gpu::format::mapped::cached_bytes(&path)).collect();
        let Some(counts) = counts else { return (Self::Disk, None) };
        Self::of_bytes(counts.iter().map(|count| count.0).sum(), counts.iter().map(|count| count.1).sum())
    }

    /// Where the files of what is called so are, if it is still what has this digest.
    pub fn of_name(store: &ModelStore, name: &str, digest: &str) -> Self {
        let stored = name.parse().ok().and_then(|name| store.get(&name).ok());
        let stored = stored.filter(|model| model.digest.to_string() == digest);
        stored.map_or(Self::Disk, |model| Self::of_model(store, &model).0)
    }

    fn of_bytes(cached: u64, all: u64) -> (Self, Option<u8>) {
        let percent = (cached * 100).checked_div(all).unwrap_or(0) as u8;
        (if all > 0 && cached >= all { Self::HostMemory } else { Self::Disk }, Some(percent))
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Device => "device memory",
            Self::HostMemory => "host memory",
            Self::Disk => "disk",
            Self::Pullable => "to be pulled",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataDir;
    use crate::digest::Digest;
    use crate::models::store::ModelFile;

    #[test]
    fn a_model_of_several_files_is_where_all_of_them_are() {
        let home = tempfile::tempdir().unwrap();
        let store = ModelStore::new(DataDir::open(Some(home.path())).unwrap());
        let file = |path: &str| {
            let (digest, bytes) = (Digest::of(path.as_bytes()), path.len() as u64);
            std::fs::write(store.blob(&digest), path).unwrap();
            ModelFile { path: path.to_owned().try_into().unwrap(), digest, bytes }
        };
        let model = Manifest::of_files("m".parse().unwrap(), vec![file("a"), file("b")], "test");
        store.put(&model).unwrap();
        let digest = model.digest.to_string();
        // What was just written is in the page cache.
        assert_eq!(Tier::of_model(&store, &model), (Tier::HostMemory, Some(100)));
        assert_eq!(Tier::of_name(&store, "m", &digest), Tier::HostMemory);
        for (name, digest) in [("m", "sha256:0"), ("other", &digest), ("path/of it", &digest)] {
            assert_eq!(Tier::of_name(&store, name, digest), Tier::Disk, "{name} {digest}");
        }
    }
}
