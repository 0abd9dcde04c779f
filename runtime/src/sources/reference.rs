//! What is called what in a registry: `oci://ghcr.io/acme/chat:1.2`, `oci://localhost:5000/chat@sha256:...`.

use std::fmt;

use crate::digest::Digest;

/// The place of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The registry's host, with its port if one was named.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// Which one of it.
    pub version: Version,
}

/// One of the artifacts of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// What a tag means today.
    Tag(String),
    /// Exactly this manifest.
    Digest(Digest),
}

/// A text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no place in a registry: {why}; write oci://HOST/REPOSITORY:TAG, as in oci://ghcr.io/acme/chat:1.2"
)]
pub struct ReferenceError {
    /// As it was written.
    text: String,
    /// What is wrong with it.
    why: &'static str,
}

impl std::str::FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError { text: text.chars().take(300).collect(), why })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let rest = text.strip_prefix("oci://").ok_or("it does not begin with oci://")?;
    let (registry, rest) = rest.split_once('/').ok_or("it names no repository")?;
    if registry.is_empty() || !registry.bytes().all(|c| c.is_ascii_alphanumeric() || b".-:[]".contains(&c)) {
        return Err("that is no host");
    }
    // With both, the digest says what is meant.
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| "that is no sha256 digest")?)),
        None => (rest, None),
    };
    let (repository, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
    let part = |part: &str| {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.bytes().next().is_some_and(plain) && part.bytes().all(|c| plain(c) || b"._-".contains(&c))
    };
    if repository.len() > 255 || !repository.split('/').all(part) {
        return Err("a repository is made of a-z, 0-9, `.`, `_`, `-` and `/`");
    }
    let first = tag.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_');
    if !first || tag.len() > 128 || !tag.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c)) {
        return Err("a tag is made of letters, digits, `.`, `_` and `-`");
    }
    let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
    Ok(Reference { registry: registry.to_owned(), repository: repository.to_owned(), version })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = Digest::of(b"");
        for (text, shown) in [
            ("oci://ghcr.io/acme/chat:1.2", "oci://ghcr.io/acme/chat:1.2".to_owned()),
            ("oci://localhost:5000/chat", "oci://localhost:5000/chat:latest".to_owned()),
            (&format!("oci://h/a/b/c:t@{digest}"), format!("oci://h/a/b/c@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), shown);
        }
        for bad in [
            "ghcr.io/acme/chat",
            "oci://",
            "oci://h",
            "oci:///x",
            "oci://h/",
            "oci://h/A",
            "oci://h/a//b",
            "oci://h/../b",
            "oci://h/a:",
            "oci://h/a:b:c",
            "oci://h/a@sha256:12",
            "oci://u:p@h/a",
            "oci://h/a:?x",
        ] {
            let error = bad.parse::<Reference>().expect_err(bad).to_string();
            assert!(error.contains(bad) && error.contains("oci://HOST/REPOSITORY:TAG"), "{error}");
        }
    }
}
