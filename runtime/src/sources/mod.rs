//! Where a component comes from: a file, a URL with its digest, or an OCI registry.
//!
//! What is fetched is checked before anyone sees it: against the digest that a person wrote, or those that a registry's
//! manifest names. Nothing is kept of what is wrong.

pub(crate) mod auth;
mod reference;
pub mod registry;
pub(crate) mod web;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use url::Url;

use crate::api::MAX_COMPONENT_BYTES;
use crate::digest::Digest;
pub use reference::{Reference, ReferenceError, Version};
use web::Agents;
pub use web::AuthoritiesError;

/// A place that a component comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A file on the web; its digest says that it is the one that was meant.
    Url {
        /// Where.
        url: String,
        /// What it must be.
        sha256: Digest,
    },
    /// A registry.
    Oci(Reference),
}

/// Why a component cannot be had from where it is said to be, or be put there.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file.
    #[error("cannot read {path}: {why}", path = path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// The network.
    #[error("{url} does not answer: {why}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What went wrong.
        why: Box<ureq::Error>,
    },
    /// The server refused.
    #[error("{url} answers {status}{detail}")]
    Refused {
        /// What was asked.
        url: String,
        /// Its status.
        status: u16,
        /// What it said, after a colon.
        detail: String,
    },
    /// The server wants to know who asks.
    #[error("{registry} lets nobody {what} without a login{detail}; {way}")]
    Unauthorized {
        /// The registry.
        registry: String,
        /// `pull` or `push`.
        what: &'static str,
        /// What it said, after a colon.
        detail: String,
        /// The way out.
        way: String,
    },
    /// Whom to trust cannot be read.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// An address that is none.
    #[error("`{url}` is no URL: {why}")]
    NoUrl {
        /// As it was written.
        url: String,
        /// What is wrong with it.
        why: url::ParseError,
    },
    /// There is nothing of this name.
    #[error("{0} is not there; check its name and its tag")]
    NotThere(String),
    /// Other bytes than were meant.
    #[error("what {url} answers has the digest {got}, not {expected}; nothing was kept")]
    WrongDigest {
        /// What was asked.
        url: String,
        /// As it should be.
        expected: Digest,
        /// As it is.
        got: Digest,
    },
    /// Fewer bytes, or more, than were announced.
    #[error("{url} gives {got} bytes instead of {expected}; nothing was kept, try again")]
    WrongSize {
        /// What was asked.
        url: String,
        /// As announced.
        expected: u64,
        /// As received.
        got: u64,
    },
    /// More bytes than a component may have.
    #[error("{0} has more than the {MAX_COMPONENT_BYTES} bytes that a component may have")]
    TooLarge(String),
    /// Something else than a component lies there.
    #[error("{what} is no WebAssembly artifact: {why}")]
    NotAnArtifact {
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The registry does not speak the protocol.
    #[error("{url} does not answer as a registry does: {why}")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong.
        why: String,
    },
}

/// A component's bytes, and where exactly they came from.
#[derive(Debug)]
pub struct Fetched {
    /// The component.
    pub bytes: Vec<u8>,
    /// For people, as exact as it can be said.
    pub from: String,
}

impl Source {
    /// Gets the component.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn fetch(&self) -> Result<Fetched, SourceError> {
        match self {
            Self::File(path) => {
                let bytes = std::fs::read(path).map_err(|why| SourceError::File { path: path.clone(), why })?;
                Ok(Fetched { bytes, from: file_name(path) })
            }
            Self::Url { url, sha256 } => Ok(Fetched { bytes: fetch_url(url, *sha256)?, from: url.clone() }),
            Self::Oci(reference) => registry::pull(reference),
        }
    }

    /// What it is called, without folders, version and ending: what a function is called if nobody says.
    pub fn stem(&self) -> String {
        let name = match self {
            Self::File(path) => file_name(path),
            Self::Url { url, .. } => {
                let path = url.split(['?', '#']).next().unwrap_or_default();
                path.rsplit('/').next().unwrap_or_default().to_owned()
            }
            Self::Oci(reference) => return reference.repository.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        name.trim_end_matches(".wasm").to_owned()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url { url, .. } => url.fmt(f),
            Self::Oci(reference) => reference.fmt(f),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn fetch_url(url: &str, expected: Digest) -> Result<Vec<u8>, SourceError> {
    let place: Url = url.parse().map_err(|why| SourceError::NoUrl { url: url.to_owned(), why })?;
    let answer = Agents::new(|usual| usual)?.of(&place).get(url).call();
    let mut answer = answer.map_err(|why| SourceError::Unreachable { url: url.to_owned(), why: why.into() })?;
    if !answer.status().is_success() {
        return Err(refused(url, &mut answer));
    }
    let bytes = read(url, &mut answer)?;
    let got = Digest::of(&bytes);
    if got == expected { Ok(bytes) } else { Err(SourceError::WrongDigest { url: url.to_owned(), expected, got }) }
}

/// The whole body, of a bounded size.
fn read(url: &str, answer: &mut ureq::http::Response<ureq::Body>) -> Result<Vec<u8>, SourceError> {
    let announced = answer.body().content_length();
    let mut bytes = Vec::new();
    let most = MAX_COMPONENT_BYTES as u64;
    let result = answer.body_mut().as_reader().take(most + 1).read_to_end(&mut bytes);
    let got = bytes.len() as u64;
    if got > most {
        return Err(SourceError::TooLarge(url.to_owned()));
    }
    match (result, announced) {
        (_, Some(expected)) if got < expected => Err(SourceError::WrongSize { url: url.to_owned(), expected, got }),
        (Err(error), _) => Err(SourceError::Unreachable { url: url.to_owned(), why: Box::new(error.into()) }),
        (Ok(_), _) => Ok(bytes),
    }
}

/// What a server refused, with the beginning of what it said.
fn refused(url: &str, answer: &mut ureq::http::Response<ureq::Body>) -> SourceError {
    SourceError::Refused { url: url.to_owned(), status: answer.status().as_u16(), detail: detail(answer) }
}

/// `: what it said`, as registries say it or as it stands there; nothing if it said nothing.
pub(crate) fn detail(answer: &mut ureq::http::Response<ureq::Body>) -> String {
    let text = answer.body_mut().with_config().limit(1 << 16).read_to_string().unwrap_or_default();
    let told = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|body| {
        let error = &body["errors"][0];
        let message = error["message"].as_str().filter(|message| !message.is_empty()).or(error["code"].as_str());
        let message = message.or(body["error"].as_str());
        message.map(str::to_owned)
    });
    let plain = || text.lines().next().unwrap_or_default().trim().to_owned();
    let told: String = told.unwrap_or_else(plain).chars().filter(|c| !c.is_control()).take(200).collect();
    if told.is_empty() || told.starts_with('<') { String::new() } else { format!(": {told}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_places() {
        let digest = Digest::of(b"");
        let url = |url: &str| Source::Url { url: url.into(), sha256: digest }.stem();
        assert_eq!(url("https://x.org/a/chat.wasm?raw=1"), "chat");
        assert_eq!(Source::File("target/my_app.wasm".into()).stem(), "my_app");
        assert_eq!(Source::Oci("oci://ghcr.io/acme/chat:1.2".parse().unwrap()).stem(), "chat");
    }
}
