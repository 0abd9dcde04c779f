//! What can be seen of models, and what can be wished for them.

use super::Moves;
use crate::engine::EngineDevice;
use std::time::Duration;

/// How long a model stays, and whom it makes room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// It stays whether anybody uses it or not.
    pub pinned: bool,
    /// It goes when nobody has used it for so long; `None`: when another needs its room.
    pub idle: Option<Duration>,
    /// Models of a higher one do not go for it.
    pub priority: u8,
}

/// Where a model is in its life. One that is absent has no state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelState {
    /// It is being read.
    Loading {
        /// Bytes that are in memory.
        done: u64,
        /// Bytes of all its weights; 0 until its file was looked at.
        total: u64,
    },
    /// It is in memory.
    Resident,
    /// Its memory is being given back.
    Evicting,
    /// It could not be loaded.
    Failed {
        /// Why.
        reason: String,
        /// How often it was tried.
        attempts: u32,
        /// Who joins it before this has passed is told the reason; then it is tried again.
        retry_in: Duration,
    },
}

impl std::fmt::Display for ModelState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loading { .. } => "loading",
            Self::Resident => "resident",
            Self::Evicting => "evicting",
            Self::Failed { .. } => "failed",
        })
    }
}

/// A model that is not absent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelStatus {
    /// The name under which it was loaded.
    pub name: String,
    /// The digest of its bytes.
    pub digest: String,
    /// Where it is in its life.
    pub state: ModelState,
    /// The device that it is on.
    pub device: EngineDevice,
    /// Bytes that it takes there; 0 while it takes none or that is not known yet.
    pub bytes: u64,
    /// How many handles and running sequences hold it.
    pub leases: usize,
    /// For how long nobody has; zero while somebody does.
    pub unused: Duration,
    /// When it goes if nobody uses it until then.
    pub expires_in: Option<Duration>,
    /// What is wished for it.
    pub policy: Policy,
    /// How it came here, and how it was before.
    pub moves: Moves,
}
