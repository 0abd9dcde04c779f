//! What joining and evicting models can be told.

use crate::format::FormatError;
use crate::ops::cuda::CudaError;
use std::time::Duration;

/// Why a model cannot be joined.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The file is no model we can run.
    #[error("model {name}: {source}")]
    Format {
        /// The model.
        name: String,
        /// What is wrong with its file.
        source: FormatError,
    },
    /// It cannot be brought to the card.
    #[error("model {name}: {source}")]
    Card {
        /// The model.
        name: String,
        /// Why not.
        source: CudaError,
    },
    /// One token's keys and values are larger than a KV page.
    #[error("model {name} needs {needed} bytes of KV for a token and a page has {page}; raise the page size")]
    KvPage {
        /// The model.
        name: String,
        /// Bytes for one token.
        needed: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// There is no memory for what a step computes.
    #[error(
        "model {name} needs {needed} bytes for its largest step and {available} are available; \
         lower the prompt tokens or the sequences of a step"
    )]
    Activations {
        /// The model.
        name: String,
        /// Bytes of activations.
        needed: u64,
        /// Bytes that the system has.
        available: u64,
    },
    /// It does not fit beside the models that are in use or pinned.
    #[error(
        "model {name} needs {needed} bytes and {available} of the {budget} for models can be made free now; {}",
        if retry_after.is_some() { "try again when others are less in use" } else { "raise the budget or unpin others" }
    )]
    NoRoom {
        /// The model.
        name: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free, or held by models that may go now.
        available: u64,
        /// Bytes for all models.
        budget: u64,
        /// When to try again, if that can help.
        retry_after: Option<Duration>,
    },
    /// It could not be loaded a moment ago, and is not tried again yet.
    #[error("{reason}; tried {attempts} times, and again in {} s at the earliest", retry_after.as_secs().max(1))]
    Failed {
        /// Why not, with the model's name.
        reason: String,
        /// How often it was tried.
        attempts: u32,
        /// When it will be tried again.
        retry_after: Duration,
    },
    /// Somebody stopped the load.
    #[error("model {name} was on its way to memory when its load was stopped; ask for it again if it is wanted still")]
    Stopped {
        /// The model.
        name: String,
    },
    /// Our fault; the text is for the operator.
    #[error("loading model {name} failed: {reason}; retry, and report it if it happens again")]
    Fault {
        /// The model.
        name: String,
        /// What happened.
        reason: String,
    },
}

/// Why a model stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvictError {
    /// Somebody uses it.
    #[error("the model has {leases} leases; stop what uses it first")]
    InUse {
        /// How many handles and running sequences hold it.
        leases: usize,
    },
}
