//! Where models are: in a device's memory, in the system's page cache, on disk, or elsewhere.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::store::{Manifest, ModelStore};

/// The nearest place that a model can be had from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// In the memory of a device: its next token can be computed at once.
    Device,
    /// Its file is in the host's memory: it is loaded without reading a disk.
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

    /// Where a file is, and how much of it is in the host's memory, in percent, if that can be known.
    pub fn of_file(path: &Path) -> (Self, Option<u8>) {
        match hob_gpu::format::mapped::cached_bytes(path) {
            Some((cached, all)) => Self::of_bytes(cached, all),
            None => (Self::Disk, None),
        }
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
