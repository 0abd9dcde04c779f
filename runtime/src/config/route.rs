//! Where a function's requests come in: host, path prefix, methods.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::Route;

/// Requests that a function takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The host they are for; any, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPattern>,
    /// What their path begins with.
    pub path: Route,
    /// Their methods, in capitals; any, if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}

impl RouteConfig {
    /// The route of any host and method.
    pub fn path(path: Route) -> Self {
        Self { host: None, path, methods: Vec::new() }
    }

    /// Its path, as it stands in a URL.
    pub fn url_part(&self) -> String {
        self.path.to_string()
    }

    /// Whether some request belongs to both equally, so that two functions cannot have both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let methods = |one: &Self| one.methods.is_empty() || one.methods.iter().any(|m| other.methods.contains(m));
        self.host == other.host && self.path == other.path && (other.methods.is_empty() || methods(self))
    }

    /// What is wrong with it.
    pub fn mistake(&self) -> Option<String> {
        let bad = |method: &&String| {
            method.parse::<http::Method>().is_err() || method.bytes().any(|byte| byte.is_ascii_lowercase())
        };
        let method = self.methods.iter().find(bad)?;
        Some(format!("route `{}`: `{method}` is not a method; write them as GET, POST", self.path))
    }
}

impl fmt::Display for RouteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.methods.is_empty() {
            write!(f, "{} ", self.methods.join(","))?;
        }
        if let Some(host) = &self.host {
            write!(f, "{host}")?;
        }
        write!(f, "{}", self.path)
    }
}

/// A host name, or `*.` and what host names must end with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

/// A text is no host pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host; write a name such as chat.example.com, or *.example.com for all names below one")]
pub struct HostPatternError(String);

impl HostPattern {
    /// The text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What comes after `*.`; `None` for a plain name.
    pub fn wildcard(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }

    /// Whether `host`, a name in lower case without its port, is meant.
    pub fn matches(&self, host: &str) -> bool {
        match self.wildcard() {
            None => self.0 == host,
            Some(parent) => host
                .strip_suffix(parent)
                .and_then(|label| label.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty()),
        }
    }
}

impl std::str::FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        if is_host_name(name) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(HostPatternError(text.chars().take(260).collect()))
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostPatternError;

    fn try_from(text: String) -> Result<Self, HostPatternError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.0
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` can be a host's name or its IPv4 address.
pub(super) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_hosts() {
        let exact: HostPattern = "Chat.Example.com".parse().unwrap();
        assert!(exact.matches("chat.example.com") && !exact.matches("x.chat.example.com"));
        let below: HostPattern = "*.example.com".parse().unwrap();
        assert!(below.matches("a.example.com") && below.matches("a.b.example.com"));
        assert!(!below.matches("example.com") && !below.matches("xexample.com") && !below.matches(".example.com"));
        for bad in ["", "*", "a..b", "-a.b", "a b", "*.*.b", "a/b", "a:80"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn routes_overlap_where_a_request_fits_both() {
        let route = |host: &str, path: &str, methods: &[&str]| RouteConfig {
            host: (!host.is_empty()).then(|| host.parse().unwrap()),
            path: path.parse().unwrap(),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        };
        let get = route("", "/a", &["GET"]);
        assert!(get.overlaps(&route("", "/a", &[])) && route("", "/a", &[]).overlaps(&get));
        assert!(get.overlaps(&route("", "/a", &["POST", "GET"])) && !get.overlaps(&route("", "/a", &["POST"])));
        assert!(!get.overlaps(&route("", "/b", &[])) && !get.overlaps(&route("h", "/a", &[])));
        assert_eq!(route("h", "/a", &["GET", "PUT"]).to_string(), "GET,PUT h/a");
        assert!(route("", "/", &["get"]).mistake().unwrap().contains("`get`"));
    }
}
