//! Names that people give: of functions, of models, of routes. Checked once, where they come in.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A name or a route that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a function name.
    #[error("`{0}` cannot name a function; use 1 to 63 of a-z, 0-9 and -, starting with a letter")]
    Function(String),
    /// Not a model name.
    #[error(
        "`{0}` cannot name a model; use 1 to 128 of a-z, 0-9, `.`, `_`, `-` and one `:` before the tag, as in smollm2:135m"
    )]
    Model(String),
    /// Not a revision.
    #[error("`{0}` is not a revision; write r and its number, as in r7")]
    Revision(String),
    /// Not a tenant name.
    #[error("`{0}` cannot name a tenant; use 1 to 63 of a-z, 0-9 and -, starting with a letter")]
    Tenant(String),
    /// Not a route.
    #[error("`{0}` is not a route; write a path prefix such as / or /chat, without `?`, `#`, empty parts or `..`")]
    Route(String),
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:path, $error:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                if $check(&text) { Ok(Self(text.into())) } else { Err($error(text.chars().take(140).collect())) }
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a function: a DNS label, so that it can become part of a host name.
    FunctionName, function_name, NameError::Function
);
name!(
    /// The name of a model, `family` or `family:tag`.
    ModelName, model_name, NameError::Model
);
name!(
    /// A path prefix that leads to a function: `/chat` takes `/chat` and `/chat/...`, not `/chatter`.
    Route, route, NameError::Route
);

name!(
    /// The owner of functions.
    Tenant, function_name, NameError::Tenant
);

impl Default for Tenant {
    /// Who owns what nobody else does.
    fn default() -> Self {
        Self("default".into())
    }
}

/// One deployment of a function, `r1` the first; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RevisionId(u32);

impl RevisionId {
    /// The first one of a function.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl std::str::FromStr for RevisionId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.strip_prefix('r').filter(|digits| digits.starts_with(|c: char| matches!(c, '1'..='9')));
        let number = digits.and_then(|digits| digits.parse().ok());
        number.map(Self).ok_or_else(|| NameError::Revision(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for RevisionId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<RevisionId> for String {
    fn from(revision: RevisionId) -> String {
        revision.to_string()
    }
}

/// A model as people name it on a command line: one of the store, or files anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A name in the store.
    Stored(ModelName),
    /// A GGUF file, any shard of one, or a folder with a checkpoint.
    Files(PathBuf),
}

impl std::str::FromStr for ModelRef {
    type Err = NameError;

    /// What has a `/` or ends with `.gguf` is a path, anything else a name.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains('/') || text.ends_with(".gguf") || [".", ".."].contains(&text) {
            return Ok(Self::Files(text.into()));
        }
        text.parse().map(Self::Stored)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(name) => name.fmt(f),
            Self::Files(path) => path.display().fmt(f),
        }
    }
}

impl FunctionName {
    /// Where its requests come in when nobody says: `/` and the name.
    pub fn default_route(&self) -> Route {
        Route(format!("/{}", self.0).into())
    }
}

impl Route {
    /// Whether `path` lies under this route.
    pub fn takes(&self, path: &str) -> bool {
        self.as_str() == "/"
            || path.strip_prefix(self.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn function_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

fn model_name(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-'))
    };
    let (family, tag) = text.split_once(':').unwrap_or((text, "latest"));
    text.len() <= 128 && part(family) && part(tag)
}

fn route(text: &str) -> bool {
    let part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'?' | b'#' | b'%'))
    };
    text == "/" || (text.len() <= 1024 && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["chat", "a", "a-1"] {
            assert!(good.parse::<FunctionName>().is_ok(), "{good}");
        }
        for bad in ["", "Chat", "1a", "a-", "a_b", "../x", &"a".repeat(64)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
        }
        for good in ["smollm2:135m", "llama3.1:8b", "x"] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        for bad in ["", "a:b:c", "a/b", "..", "a:", ":b", "A"] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn revisions() {
        assert_eq!("r7".parse::<RevisionId>().unwrap().to_string(), "r7");
        assert_eq!(RevisionId::FIRST.next().to_string(), "r2");
        for bad in ["", "r", "7", "r0", "r07", "r+7", "r7 ", "R7", "r99999999999"] {
            assert!(bad.parse::<RevisionId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn routes_take_whole_parts() {
        let chat: Route = "/chat".parse().unwrap();
        assert!(chat.takes("/chat") && chat.takes("/chat/x") && !chat.takes("/chatter") && !chat.takes("/"));
        assert!("/".parse::<Route>().unwrap().takes("/anything"));
        for bad in ["", "chat", "/a//b", "/a/", "/../b", "/a?b", "/a b"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }
}
