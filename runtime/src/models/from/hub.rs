//! The Hugging Face hub: the list of a repository's files says of each what it must be.
//!
//! Large files have their SHA-256 in the list, small ones the name that git has for them. The revision is the commit that
//! the list is of: files that change meanwhile are not mixed.

use std::collections::HashMap;

use serde::Deserialize;
use url::Url;

use super::Finder;
use super::checkpoint::{self, Choice};
use crate::digest::Digest;
use crate::models::error::PullError;
use crate::models::fetch::access::Access;
use crate::models::fetch::http::{Call, WebError, shown};
use crate::models::fetch::{Expect, Remote};
use crate::models::plan::{Content, Gate, MOST_FILES, Plan, Planned};
use crate::models::store::{Defaults, FilePath};
use crate::models::wanted::HubRef;

/// Repositories of ten thousand files have lists of some megabytes.
const MAX_LIST: u64 = 64 << 20;

#[derive(Deserialize)]
struct Repository {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(rename = "cardData", default)]
    card: Option<Card>,
}

#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    license: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: Option<u64>,
}

impl Finder<'_> {
    /// The files of a model of the hub.
    pub(super) fn hub(&self, hub: &HubRef) -> Result<Plan, PullError> {
        let access = Access::token(&self.settings.hub, self.settings.hub_token.as_ref());
        let revision = hub.revision.as_deref().unwrap_or("main");
        // The slashes of a revision are no part of the path.
        let mut list = self.address(["api", "models"], hub, ["revision", revision]);
        list.set_query(Some("blobs=true"));
        let call = Call { accept: Some("application/json"), ..Call::new(&list, &access) };
        let (text, _) = self.web.read(&call, MAX_LIST).map_err(|error| self.refusal(hub, error))?;
        let wrong = |why: String| PullError::Protocol { url: shown(&list), why };
        let repository: Repository = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("does not answer as the hub does ({error}); is HF_ENDPOINT right?")))?;
        if !(repository.sha.len() == 40 && repository.sha.bytes().all(|c| c.is_ascii_hexdigit())) {
            return Err(wrong("names no commit".into()));
        }
        let names: Vec<_> = repository.siblings.iter().map(|file| file.rfilename.clone()).collect();
        let what = || format!("hf:{}", hub.repository);
        // It names files as the hub does, and a terminal would do as it is told.
        let plain = |why: String| why.chars().filter(|c| !c.is_control()).collect();
        let choose = |why| PullError::Choice { what: what(), why: plain(why) };
        let files = match checkpoint::choose(&names, hub.which.as_deref()).map_err(choose)? {
            Choice::Gguf(shards) => shards,
            Choice::Checkpoint(files) => files,
            Choice::Indexed(mut files) => {
                let url = self.file_url(hub, &repository.sha, checkpoint::INDEX);
                let (index, _) =
                    self.web.read(&Call::new(&url, &access), MAX_LIST).map_err(|error| self.refusal(hub, error))?;
                let named = checkpoint::indexed(&index, &names);
                files.extend(named.map_err(|why| PullError::Protocol { url: shown(&url), why })?);
                files
            }
        };
        if files.len() > MOST_FILES {
            return Err(choose(format!("has {} files, more than {MOST_FILES}, for one model", files.len())));
        }
        let gguf = files[0].to_ascii_lowercase().ends_with(".gguf");
        let mut planned = Vec::new();
        let siblings: HashMap<_, _> = repository.siblings.iter().map(|file| (&file.rfilename, file)).collect();
        for name in &files {
            let sibling = siblings.get(name).copied();
            let sibling = sibling.ok_or_else(|| wrong(format!("has no {name}")))?;
            let file = |name: &str| FilePath::try_from(name.to_owned());
            let mut path = file(name).map_err(|error| wrong(format!("has a file that {error}")))?;
            // Shards lie side by side here, whichever folder they have there.
            if let (true, Some(Ok(base))) = (gguf, name.rsplit('/').next().map(file)) {
                path = base;
            }
            let url = self.file_url(hub, &repository.sha, name);
            let remote = remote(sibling, url, access.clone()).map_err(wrong)?;
            planned.push(Planned { path, content: Content::Remote(remote) });
        }
        let license = repository.card.and_then(|card| card.license.as_str().map(str::to_owned));
        let first = if gguf { format!(":{}", files[0]) } else { String::new() };
        Ok(Plan {
            files: planned,
            source: format!("hf:{}@{}{first}", hub.repository, repository.sha),
            exact: true,
            // The list is open to everybody, also where the files are not.
            gate: Some(Gate { server: shown(&self.settings.hub), way: self.way_in(hub) }),
            defaults: Defaults { license, ..Defaults::default() },
        })
    }

    fn file_url(&self, hub: &HubRef, commit: &str, file: &str) -> Url {
        self.address([], hub, ["resolve", commit].into_iter().chain(file.split('/')))
    }

    /// Where a person sees a repository.
    fn page(&self, hub: &HubRef) -> String {
        shown(&self.address([], hub, []))
    }

    /// What is said of a repository, below the hub's address, whose path may be longer than `/`.
    fn address<'a>(
        &self,
        before: impl IntoIterator<Item = &'a str>,
        hub: &HubRef,
        after: impl IntoIterator<Item = &'a str>,
    ) -> Url {
        let mut url = self.settings.hub.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(before).extend(hub.repository.split('/')).extend(after);
        }
        url
    }

    /// What to do about a refusal.
    fn way_in(&self, hub: &HubRef) -> String {
        let page = self.page(hub);
        match self.settings.hub_token {
            Some(_) => format!("accept its terms at {page} with the account of the token, or use another HF_TOKEN"),
            None => format!(
                "check its name; if {page} is there, accept its terms and give a token in HF_TOKEN, or with `hf auth login`"
            ),
        }
    }

    /// What a refusal of the hub means: it says 401 also for what is not there.
    fn refusal(&self, hub: &HubRef, error: WebError) -> PullError {
        let what = format!("hf:{}", hub.repository);
        match error {
            WebError::Refused { status: 401 | 403, detail, .. } => {
                PullError::Gated { what, detail, way: self.way_in(hub) }
            }
            WebError::Refused { status: 404, .. } => {
                PullError::NotThere { what, way: format!("check its name, and its revision, at {}", self.page(hub)) }
            }
            error => error.into(),
        }
    }
}

fn remote(file: &Sibling, url: Url, access: Access) -> Result<Remote, String> {
    let name = file.rfilename.clone();
    let (expect, bytes) = match (&file.lfs, &file.blob_id) {
        (Some(lfs), _) => {
            let digest: Digest = lfs.sha256.parse().map_err(|_| format!("has no digest of {name}"))?;
            (Expect::Sha256(digest), lfs.size.or(file.size))
        }
        (None, Some(id)) if id.len() == 40 && id.bytes().all(|c| c.is_ascii_hexdigit()) => {
            (Expect::Git(id.to_ascii_lowercase()), file.size)
        }
        _ => (Expect::Anything, file.size),
    };
    Ok(Remote { url, access, name, bytes, expect })
}
