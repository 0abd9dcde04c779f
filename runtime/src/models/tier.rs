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
    /// Where a file is, and how much of it is in the host's memory, in percent, if that can be known.
    pub fn of_file(path: &Path) -> (Self, Option<u8>) {
        let Some((cached, all)) = hob_gpu::format::mapped::cached_bytes(path) else { return (Self::Disk, None) };
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
