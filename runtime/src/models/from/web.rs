//! A file on the web. What is in a repository of the hub is asked of the hub, which knows its digest.

use url::Url;

use super::Finder;
use crate::digest::Digest;
use crate::models::error::PullError;
use crate::models::fetch::access::Access;
use crate::models::fetch::http::{is_local, shown};
use crate::models::fetch::{Expect, Remote};
use crate::models::plan::{Content, Plan, Planned};
use crate::models::shards;
use crate::models::store::{Defaults, FilePath};
use crate::models::wanted::HubRef;

impl Finder<'_> {
    /// A file, or all shards of one.
    pub(super) fn web(&self, url: &Url, sha256: Option<Digest>) -> Result<Plan, PullError> {
        if let (None, Some(hub)) = (sha256, self.of_the_hub(url)) {
            return self.hub(&hub);
        }
        let refuse = |why: &str| Err(PullError::Choice { what: shown(url), why: why.into() });
        if url.scheme() == "http" && sha256.is_none() && !is_local(url) {
            return refuse("is not https: anybody on the way could answer; say what it must be with #sha256=DIGEST");
        }
        let mut url = url.clone();
        let access = Access::from_url(&mut url);
        let file = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
        let names = match (shards::of(&file), sha256) {
            (Some(shard), None) if shard.ending.eq_ignore_ascii_case(".gguf") => shard.all(),
            (Some(_), Some(_)) => return refuse("is one file of several: one digest cannot say what all of them are"),
            _ => vec![file],
        };
        let mut files = Vec::new();
        for name in names {
            let mut url = url.clone();
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop().push(&name);
            }
            let path: FilePath = match name.clone().try_into() {
                Ok(path) => path,
                Err(_) if sha256.is_some() => "model.gguf".to_owned().try_into().expect("it is a name"),
                Err(_) => return refuse("does not end in the name of a file"),
            };
            let expect = sha256.map_or(Expect::Anything, Expect::Sha256);
            let remote = Remote { url, access: access.clone(), name, bytes: None, expect };
            files.push(Planned { path, content: Content::Remote(remote) });
        }
        Ok(Plan { files, source: shown(&url), exact: sha256.is_some(), gate: None, defaults: Defaults::default() })
    }

    /// `https://huggingface.co/ORG/REPO`, `.../blob/REVISION/FILE` or `.../resolve/REVISION/FILE`, as they are copied from a
    /// browser.
    fn of_the_hub(&self, url: &Url) -> Option<HubRef> {
        if url.origin() != self.settings.hub.origin() {
            return None;
        }
        let base = self.settings.hub.path().trim_end_matches('/');
        let path = url.path().strip_prefix(base)?.trim_matches('/');
        let parts: Vec<_> = path.split('/').collect();
        let text = match parts[..] {
            [org, repository] if !repository.ends_with(".gguf") => format!("hf:{org}/{repository}"),
            [org, repository, "blob" | "resolve", revision, ..] if parts.len() > 4 => {
                format!("hf:{org}/{repository}@{revision}:{}", parts[4..].join("/"))
            }
            [org, repository, "tree", revision] => format!("hf:{org}/{repository}@{revision}"),
            _ => return None,
        };
        match text.parse().ok()? {
            crate::models::wanted::Wanted::Hub(hub) => Some(hub),
            _ => None,
        }
    }
}
