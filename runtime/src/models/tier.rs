//! Where models are: in a device's memory, in the system's page cache, on disk, or elsewhere.

use std::path::Path;

use serde::{Deserialize, Serialize};

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
    /// Where files are, and how much of them is in the host's memory, in percent, if that can be known.
    pub fn of_files(paths: &[impl AsRef<Path>]) -> (Self, Option<u8>) {
        let each = paths.iter().map(|path| hob_gpu::format::mapped::cached_bytes(path.as_ref()));
        let sum = each.reduce(|a, b| a.zip(b).map(|((cached, all), (more, of))| (cached + more, all + of)));
        let Some((cached, all)) = sum.flatten() else { return (Self::Disk, None) };
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
