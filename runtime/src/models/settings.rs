//! Where models are got from, and how: from the environment, by the names that each hub's own tools read.
//!
//! | variable | what it says |
//! |---|---|
//! | `HF_ENDPOINT`, `HF_TOKEN` or the token's file (`HF_TOKEN_PATH`, `HF_HOME`) | the Hugging Face hub, and who asks there |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | keep the token to oneself |
//! | `HOB_OLLAMA_REGISTRY` | where `ollama:` models are |
//! | `HOB_PYPI_INDEX`, else `PIP_INDEX_URL` | the package index, with its login if it wants one |
//! | `HOB_PULL_CONNECTIONS` | connections at once for a file |
//! | `HOB_PULL_PATIENCE` | seconds without a byte after which a pull gives up |
//! | `HOB_MODELS_LIMIT` | most that models may take on disk, as in `200GB` |
//!
//! Proxies (`HTTPS_PROXY`, `NO_PROXY`...) and certificate authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`, else
//! `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`) are read where calls are made.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

const HUB: &str = "https://huggingface.co";
const OLLAMA: &str = "https://registry.ollama.ai";
/// The index used when none is configured.
pub const DEFAULT_INDEX: &str = "https://pypi.org/simple";
/// More connections than these are taken for an attack by some servers.
const MOST_CONNECTIONS: usize = 64;

/// A text that nobody gets to see: logins and tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`; `None` if it could not stand in a header.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic() || c == b' ');
        plain.then(|| Self(text.to_owned()))
    }

    /// What it is, for the header that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where models are got from, and how.
#[derive(Clone, Debug)]
pub struct PullSettings {
    /// The Hugging Face hub.
    pub hub: Url,
    /// Who asks there.
    pub hub_token: Option<Secret>,
    /// The registry of `ollama:` models.
    pub ollama: Url,
    /// The package index, a simple API; it may carry a login.
    pub index: Url,
    /// Connections at once for a file.
    pub connections: usize,
    /// How long no byte may come before a pull gives up.
    pub patience: Duration,
    /// Most bytes that models may take on disk.
    pub limit: Option<u64>,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be used: {why}")]
pub struct SettingError {
    /// The variable or option.
    pub name: &'static str,
    /// What is wrong with it; never its value, which may hold a login.
    pub why: String,
}

impl PullSettings {
    /// What the environment says; the rest as usual.
    ///
    /// # Errors
    /// When a variable has a value that means nothing.
    pub fn from_environment() -> Result<Self, SettingError> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        let place = |name: &'static str, usual: &str| match variable(name) {
            Some(text) => address(name, &text),
            None => Ok(usual.parse().expect("the usual address is one")),
        };
        let index = match variable("HOB_PYPI_INDEX") {
            Some(text) => address("HOB_PYPI_INDEX", &text)?,
            None => place("PIP_INDEX_URL", DEFAULT_INDEX)?,
        };
        let number = |name: &'static str, usual: u64, most: u64| match variable(name) {
            None => Ok(usual),
            Some(text) => match text.trim().parse() {
                Ok(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(SettingError { name, why: format!("it is no number from 1 to {most}") }),
            },
        };
        Ok(Self {
            hub: place("HF_ENDPOINT", HUB)?,
            hub_token: token(variable),
            ollama: place("HOB_OLLAMA_REGISTRY", OLLAMA)?,
            index,
            connections: number("HOB_PULL_CONNECTIONS", 8, MOST_CONNECTIONS as u64)? as usize,
            patience: Duration::from_secs(number("HOB_PULL_PATIENCE", 60, 86_400)?),
            limit: variable("HOB_MODELS_LIMIT").map(|text| bytes("HOB_MODELS_LIMIT", &text)).transpose()?,
        })
    }
}

/// The token for the hub: said outright, or in the file that the hub's own tools keep it in.
fn token(variable: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
    let said = |name: &str| variable(name).is_some_and(|value| !["0", "false", "no", "off"].contains(&value.trim()));
    if let Some(token) = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
        return Secret::new(&token);
    }
    if said("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let home = || {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(Path::new(&variable("HOME")?).join(".cache")))?;
        Some(cache.join("huggingface"))
    };
    let file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        let folder = variable("HF_HOME").map(PathBuf::from).or_else(home)?;
        Some(folder.join("token"))
    })?;
    Secret::new(&std::fs::read_to_string(file).ok()?)
}

/// The address of a server, as one says it.
///
/// # Errors
/// When it is none, or of another kind than HTTP.
pub fn address(name: &'static str, text: &str) -> Result<Url, SettingError> {
    let wrong = |why: &str| SettingError { name, why: why.into() };
    let url: Url = text.trim().parse().map_err(|_| wrong("it is no URL; write one as in https://mirror.example"))?;
    match (url.scheme(), url.host_str()) {
        ("https" | "http", Some(_)) => Ok(url),
        _ => Err(wrong("its URL is not one of https:// or http://")),
    }
}

/// `200GB`, `1.5TB`, `512MiB`, or a plain number of bytes.
///
/// # Errors
/// When it is none of these.
pub fn bytes(name: &'static str, text: &str) -> Result<u64, SettingError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: Option<f64> = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1.0),
        "kb" | "k" => Some(1e3),
        "mb" | "m" => Some(1e6),
        "gb" | "g" => Some(1e9),
        "tb" | "t" => Some(1e12),
        "kib" => Some(1024.0),
        "mib" => Some(1_048_576.0),
        "gib" => Some(1_073_741_824.0),
        "tib" => Some(1_099_511_627_776.0),
        _ => None,
    };
    match (number.parse::<f64>(), scale) {
        (Ok(number), Some(scale)) if number.is_finite() => Ok((number * scale) as u64),
        _ => Err(SettingError { name, why: "it is no size; write one as in 200GB".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<PullSettings, SettingError> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        PullSettings::read(&move |name| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn the_environment_says_where_and_how() {
        let usual = read(&[]).unwrap();
        assert_eq!(usual.hub.as_str(), "https://huggingface.co/");
        assert_eq!((usual.connections, usual.limit, usual.hub_token), (8, None, None));
        let said = read(&[
            ("HF_ENDPOINT", "http://hub.example:8080/mirror"),
            ("HF_TOKEN", " hf_x\n"),
            ("PIP_INDEX_URL", "https://u:p@index.example/simple"),
            ("HOB_MODELS_LIMIT", "1.5 GB"),
            ("HOB_PULL_CONNECTIONS", "3"),
        ])
        .unwrap();
        assert_eq!(said.hub.as_str(), "http://hub.example:8080/mirror");
        assert_eq!(said.hub_token.as_ref().map(Secret::reveal), Some("hf_x"));
        assert_eq!(said.index.username(), "u");
        assert_eq!((said.connections, said.limit), (3, Some(1_500_000_000)));
        assert!(!format!("{said:?}").contains("hf_x"), "a token is never printed");
        for (name, value) in [("HF_ENDPOINT", "ftp://x"), ("HOB_PULL_CONNECTIONS", "0"), ("HOB_MODELS_LIMIT", "lots")] {
            assert_eq!(read(&[(name, value)]).unwrap_err().name, name);
        }
    }

    #[test]
    fn the_token_is_where_the_hubs_own_tools_have_it() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cache/huggingface");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("token"), "hf_file\n").unwrap();
        let root = home.path().to_str().unwrap();
        let token = |pairs: &[(&str, &str)]| read(pairs).unwrap().hub_token.map(|token| token.reveal().to_owned());
        assert_eq!(token(&[("HOME", root)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", folder.to_str().unwrap())]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HOME", root), ("HF_TOKEN", "hf_said")]).as_deref(), Some("hf_said"));
        assert_eq!(token(&[("HOME", root), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_TOKEN", "two\nlines")]), None, "what no header can carry is no token");
    }
}
