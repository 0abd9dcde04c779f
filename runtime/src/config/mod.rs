//! What a function is given and held to: the resolved form, part of each revision's record.
//!
//! What a person writes is [`manifest`]'s; here everything has a value, and a name for its default. A configuration
//! that came from elsewhere (a record, the control API) is checked again by [`FunctionConfig::mistakes`].

pub mod document;
mod egress;
mod limits;
pub mod manifest;
mod route;
mod secrets;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use egress::{EgressRule, EgressRuleError, EgressScheme};
pub use limits::{Budget, Concurrency, Limits, Reuse, Setting};
pub use route::{HostPattern, HostPatternError, RouteConfig};
pub use secrets::Secrets;

use crate::names::ModelName;

/// All that a function is configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FunctionConfig {
    /// Where its requests come in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteConfig>,
    /// The request header whose value decides, of several revisions in service, which answers: the same value, the
    /// same revision, while their shares stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// Whether its answers say in a `Server-Timing` header where their time went; as the host does, unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_timing: Option<bool>,
    /// Variables of the environment that the guest sees.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// What `wasi:config` answers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Names of secrets, which `wasi:config` answers too. Their values are kept apart ([`Secrets`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The models it may use; the first is also its `default`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelName>,
    /// Where it may send requests. Nowhere, unless said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// Directories of the host that it may open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<Directory>,
    /// What one invocation may use.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// How many requests run and wait at once.
    #[serde(skip_serializing_if = "is_default")]
    pub concurrency: Concurrency,
    /// Whether an instance answers more than one request.
    #[serde(skip_serializing_if = "is_default")]
    pub reuse: Reuse,
    /// What its generations may use together.
    #[serde(skip_serializing_if = "is_default")]
    pub budget: Budget,
    /// The class of its generations.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: Priority,
}

/// Classes of generations. A higher class comes first wherever the engine is short, and takes it from lower ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Work that nobody waits for.
    Low,
    /// What is usual.
    #[default]
    Normal,
    /// Somebody waits for each token. Only an administrator may give it.
    High,
}

impl std::str::FromStr for Priority {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "low" => Ok(Self::Low),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => Err("`priority` is `low`, `normal` or `high`"),
        }
    }
}

/// A directory of the host, as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Where it is on the host; absolute.
    pub host: PathBuf,
    /// What the guest calls it.
    pub guest: String,
    /// Whether the guest may change what is in it.
    #[serde(default)]
    pub writable: bool,
}

/// What a component can be linked with depends on this alone, so that functions which are alike in it share one
/// linked component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Grants {
    /// It has a model.
    pub models: bool,
    /// It may send requests somewhere.
    pub egress: bool,
}

impl FunctionConfig {
    /// What it grants.
    pub fn grants(&self) -> Grants {
        Grants { models: !self.models.is_empty(), egress: !self.egress.is_empty() }
    }

    /// Everything that is wrong with it, each in a sentence; empty when it can be used.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for setting in self.settings() {
            mistakes.extend(setting.mistake());
        }
        let names = self.environment.keys().map(|name| ("environment", name));
        let names = names.chain(self.config.keys().map(|name| ("config", name)));
        for (table, name) in names.chain(self.secrets.iter().map(|name| ("secrets", name))) {
            if name.is_empty() || name.len() > 256 || name.contains(['=', '\0']) {
                mistakes.push(format!("`{name}` cannot be a name in `{table}`; use 1 to 256 bytes without `=`"));
            }
        }
        for name in self.secrets.iter().filter(|name| self.config.contains_key(*name)) {
            mistakes.push(format!("`{name}` is in `config` and in `secrets`; give it once"));
        }
        for directory in &self.directories {
            if !directory.host.is_absolute() {
                mistakes.push(format!("directory `{}` of the host is not absolute", directory.host.display()));
            }
            if directory.guest.is_empty() {
                mistakes.push(format!("directory `{}` needs a name for the guest", directory.host.display()));
            }
        }
        if let Some(header) = &self.sticky
            && header.parse::<http::HeaderName>().is_err()
        {
            mistakes.push(format!("`sticky` is `{header}`, which cannot be a header's name"));
        }
        for (n, route) in self.routes.iter().enumerate() {
            mistakes.extend(route.mistake());
            if self.routes[..n].iter().any(|other| other.overlaps(route)) {
                mistakes.push(format!("route `{route}` is there twice"));
            }
        }
        mistakes
    }

    /// Every number in it, with its bounds.
    pub fn settings(&self) -> Vec<Setting> {
        [self.limits.settings(), self.concurrency.settings(), self.reuse.settings(), self.budget.settings()].concat()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_whole_and_small() {
        let config = FunctionConfig::default();
        assert_eq!(config.mistakes(), [""; 0]);
        assert_eq!(serde_json::to_string(&config).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<FunctionConfig>("{}").unwrap(), config);
        assert!(
            serde_json::from_str::<FunctionConfig>(r#"{"limits":{"wall":1}}"#).is_err(),
            "unknown keys are refused"
        );
    }

    #[test]
    fn all_mistakes_are_told() {
        let config = FunctionConfig {
            limits: Limits { wall_ms: 0, memory_mib: 1 << 20, ..Limits::default() },
            environment: [("A=B".into(), String::new())].into(),
            config: [("key".into(), String::new())].into(),
            secrets: vec!["key".into()],
            directories: vec![Directory { host: "relative".into(), guest: String::new(), writable: false }],
            sticky: Some("no header".into()),
            ..FunctionConfig::default()
        };
        let mistakes = config.mistakes();
        assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
        assert!(mistakes[0].contains("limits.wall_ms") && mistakes[0].contains("1 to"), "{mistakes:#?}");
    }
}
