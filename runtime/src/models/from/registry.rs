//! Models in registries: Ollama's own, and any that keeps models as OCI artifacts.
//!
//! The manifest's digest is checked where the registry names it, each layer by its own. Which layers are a model's is told
//! by their types, or by the file names that are written beside them.

use serde::Deserialize;
use url::Url;

use super::Finder;
use crate::digest::Digest;
use crate::models::error::PullError;
use crate::models::fetch::access::Access;
use crate::models::fetch::http::{Call, WebError, shown};
use crate::models::fetch::{Expect, Remote};
use crate::models::plan::{Content, MOST_FILES, Plan, Planned};
use crate::models::store::{Defaults, FilePath};
use crate::models::wanted::OllamaRef;
use crate::sources::{Reference, Version, auth};

const MANIFESTS: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
const MAX_MANIFEST: u64 = 4 << 20;
/// Templates, parameters and licences are texts; all of them together have no more bytes.
const MAX_TEXTS: u64 = 4 << 20;
/// Layers that are GGUF files.
const GGUF: &[&str] = &[
    "application/vnd.ollama.image.model",
    "application/vnd.docker.ai.gguf.v3",
    "application/vnd.docker.ai.gguf",
    "application/vnd.cncf.model.weight.v1.gguf",
];
/// What names a layer's file.
const TITLES: &[&str] = &["org.opencontainers.image.title", "org.cncf.model.filepath"];

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

/// A repository of a registry.
struct Place {
    /// `https://HOST/v2/REPOSITORY`
    base: Url,
    access: Access,
    /// What logins to it are kept under.
    login: String,
    /// For people.
    what: String,
}

impl Finder<'_> {
    /// A model as Ollama has it.
    pub(super) fn ollama(&self, model: &OllamaRef) -> Result<Plan, PullError> {
        let what = crate::models::wanted::Wanted::Ollama(model.clone()).to_string();
        let mut base = match &model.host {
            None => self.settings.ollama.clone(),
            Some(host) => registry(host, &what)?,
        };
        let user = model.user.as_deref().unwrap_or("library");
        let mut access = Access::from_url(&mut base);
        let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
        let login = format!("{}{port}", base.host_str().unwrap_or_default());
        if !access.is_somebody() {
            access = Access::registry(&base, &login);
        }
        below(&mut base, &["v2", user, &model.name]);
        let place = Place { base, access, login, what };
        self.artifact(&place, model.tag.as_deref().unwrap_or("latest"), None)
    }

    /// A model that is an artifact of an OCI registry.
    pub(super) fn oci(&self, reference: &Reference) -> Result<Plan, PullError> {
        // Where docker's own registry answers.
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let mut base = registry(host, &reference.to_string())?;
        let access = Access::registry(&base, host);
        below(&mut base, &["v2", &reference.repository]);
        let digest = match reference.version {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => None,
        };
        let place = Place { base, access, login: host.to_owned(), what: reference.to_string() };
        self.artifact(&place, &reference.version.to_string(), digest)
    }

    fn artifact(&self, place: &Place, version: &str, digest: Option<Digest>) -> Result<Plan, PullError> {
        let mut url = place.base.clone();
        below(&mut url, &["manifests", version]);
        let call = Call { accept: Some(MANIFESTS), ..Call::new(&url, &place.access) };
        let (text, headers) = self.web.read(&call, MAX_MANIFEST).map_err(|error| refusal(place, error))?;
        let told = headers.get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        let got = Digest::of(&text);
        if let Some(expected) = digest.or(told).filter(|expected| *expected != got) {
            let (expected, got) = (expected.to_string(), got.to_string());
            return Err(PullError::Wrong { what: format!("the manifest of {}", place.what), expected, got });
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| PullError::Protocol {
            url: shown(&url),
            why: format!("has no manifest that reads: {error}"),
        })?;
        let choice = |why: String| PullError::Choice { what: place.what.clone(), why };
        let files = files(&manifest).map_err(choice)?;
        let mut planned = Vec::new();
        for (path, layer) in files {
            let name = format!("{} {}", place.what, path.as_str());
            let remote = Remote {
                url: blob(place, layer),
                access: place.access.clone(),
                name,
                bytes: Some(layer.size),
                expect: Expect::Sha256(layer.digest),
            };
            planned.push(Planned { path, content: Content::Remote(remote) });
        }
        let source = format!("{} {got}", place.what);
        Ok(Plan { files: planned, source, exact: true, gate: None, defaults: self.defaults(place, &manifest)? })
    }

    /// What comes with a model: its system prompt, parameters, template and licences.
    fn defaults(&self, place: &Place, manifest: &Manifest) -> Result<Defaults, PullError> {
        let (mut defaults, mut room) = (Defaults::default(), MAX_TEXTS);
        for layer in &manifest.layers {
            let kind = layer.media_type.strip_prefix("application/vnd.ollama.image.").unwrap_or_default();
            let kind = if layer.media_type == "application/vnd.docker.ai.license" { "license" } else { kind };
            if !["system", "params", "template", "license"].contains(&kind) {
                continue;
            }
            room = room.checked_sub(layer.size).ok_or_else(|| PullError::Choice {
                what: place.what.clone(),
                why: format!("has texts of more than {MAX_TEXTS} bytes: licences, a template, a system prompt"),
            })?;
            let Some(text) = self.text(place, layer)? else { continue };
            match kind {
                "system" => defaults.system = Some(text),
                "template" => defaults.template = Some(text),
                "params" => defaults.parameters = serde_json::from_str(&text).unwrap_or_default(),
                _ => {
                    let license = defaults.license.take().map_or(text.clone(), |before| format!("{before}\n\n{text}"));
                    defaults.license = Some(license);
                }
            }
        }
        Ok(defaults)
    }

    /// A layer that is a text, checked; `None` if it is none.
    fn text(&self, place: &Place, layer: &Layer) -> Result<Option<String>, PullError> {
        let url = blob(place, layer);
        let (text, _) =
            self.web.read(&Call::new(&url, &place.access), layer.size).map_err(|error| refusal(place, error))?;
        let got = Digest::of(&text);
        if got != layer.digest {
            let (expected, got) = (layer.digest.to_string(), got.to_string());
            return Err(PullError::Wrong { what: shown(&url), expected, got });
        }
        Ok(String::from_utf8(text).ok())
    }
}

/// A registry's address.
fn registry(host: &str, what: &str) -> Result<Url, PullError> {
    let wrong = |error| PullError::Choice { what: what.to_owned(), why: format!("names no host: {error}") };
    crate::sources::web::registry(host).map_err(wrong)
}

fn below(url: &mut Url, parts: &[&str]) {
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty();
        parts.iter().flat_map(|part| part.split('/')).for_each(|part| {
            path.push(part);
        });
    }
}

fn blob(place: &Place, layer: &Layer) -> Url {
    let mut url = place.base.clone();
    below(&mut url, &["blobs", &layer.digest.to_string()]);
    url
}

/// The layers that are a model's files, and what they are called.
fn files(manifest: &Manifest) -> Result<Vec<(FilePath, &Layer)>, String> {
    let title = |layer: &Layer| TITLES.iter().find_map(|title| layer.annotations.get(*title).cloned());
    let is_gguf = |layer: &Layer| {
        let named = title(layer).is_some_and(|title| title.to_ascii_lowercase().ends_with(".gguf"));
        GGUF.contains(&layer.media_type.as_str()) || named
    };
    if let Some(layer) = manifest.layers.iter().find(|layer| layer.media_type == "application/vnd.ollama.image.adapter")
    {
        return Err(format!(
            "has an adapter, {}, which is not supported: pull a model that it is merged into",
            layer.digest
        ));
    }
    let ggufs: Vec<_> = manifest.layers.iter().filter(|layer| is_gguf(layer)).collect();
    let chosen: Vec<_> = if ggufs.is_empty() { manifest.layers.iter().collect() } else { ggufs };
    let mut files = Vec::new();
    for layer in &chosen {
        let name = match title(layer) {
            Some(title) => title.rsplit('/').next().unwrap_or_default().to_owned(),
            None if chosen.len() == 1 && is_gguf(layer) => "model.gguf".into(),
            // Licences and the like, beside files that have names.
            None => continue,
        };
        let weights = [".gguf", ".safetensors", ".json", ".jinja"].iter().any(|end| name.ends_with(end));
        // The type says what the bytes are: an archive with a plain name is one still.
        if !weights || layer.media_type.contains("tar") {
            continue;
        }
        let path: FilePath = name.try_into().map_err(|error| format!("has a layer that {error}"))?;
        files.push((path, *layer));
    }
    if files.len() > MOST_FILES {
        return Err(format!("has {} files", files.len()));
    }
    if !files.iter().any(|(path, _)| [".gguf", ".safetensors"].iter().any(|end| path.as_str().ends_with(end))) {
        let mut kinds: Vec<_> = manifest.layers.iter().map(|layer| layer.media_type.as_str()).take(6).collect();
        kinds.dedup();
        let kinds: String = kinds.join(", ").chars().filter(|c| !c.is_control()).take(300).collect();
        return Err(match kinds.is_empty() {
            true => "has no layers: a list of images names several; name one by its digest".into(),
            false => format!("has no model: its layers are {kinds}"),
        });
    }
    Ok(files)
}

fn refusal(place: &Place, error: WebError) -> PullError {
    let what = place.what.clone();
    match error {
        WebError::Refused { status: 401 | 403, detail, .. } => PullError::Gated {
            what,
            detail,
            way: format!("check its name; if it is there, {}", auth::way_in(&place.login)),
        },
        WebError::Refused { status: 404, .. } => PullError::NotThere { what, way: "check its name and its tag".into() },
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(kind: &str, title: &str) -> serde_json::Value {
        let annotations =
            if title.is_empty() { serde_json::json!({}) } else { serde_json::json!({ TITLES[0]: title }) };
        serde_json::json!({ "mediaType": kind, "digest": Digest::of(title.as_bytes()), "size": 7, "annotations": annotations })
    }

    fn chosen(layers: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let layers: Vec<_> = layers.iter().map(|(kind, title)| layer(kind, title)).collect();
        let manifest: Manifest = serde_json::from_value(serde_json::json!({ "layers": layers })).unwrap();
        files(&manifest).map(|files| files.into_iter().map(|(path, _)| path.as_str().to_owned()).collect())
    }

    #[test]
    fn layers_are_known_by_type_or_name() {
        let ollama = [
            ("application/vnd.ollama.image.model", ""),
            ("application/vnd.ollama.image.template", ""),
            ("application/vnd.ollama.image.license", ""),
        ];
        assert_eq!(chosen(&ollama).unwrap(), ["model.gguf"]);
        let named = [("x/y", "a.gguf"), ("x/y", "README.md")];
        assert_eq!(chosen(&named).unwrap(), ["a.gguf"]);
        let shards = [("x/y", "a-00001-of-00002.gguf"), ("x/y", "d/a-00002-of-00002.gguf")];
        assert_eq!(chosen(&shards).unwrap(), ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]);
        let checkpoint = [("x/y", "config.json"), ("x/y", "model.safetensors")];
        assert_eq!(chosen(&checkpoint).unwrap(), ["config.json", "model.safetensors"]);
        assert!(chosen(&[("application/wasm", "")]).unwrap_err().contains("its layers are application/wasm"));
        assert!(chosen(&[]).unwrap_err().contains("no layers"));
        assert!(chosen(&[("application/vnd.cncf.model.weight.v1.tar", "a.gguf")]).is_err(), "an archive is no file");
        let adapter = [("application/vnd.ollama.image.model", ""), ("application/vnd.ollama.image.adapter", "")];
        assert!(chosen(&adapter).unwrap_err().contains("adapter"));
        assert!(chosen(&[("x/y", "../..gguf")]).is_ok_and(|files| files == ["..gguf"]), "folders are left out");
        assert!(chosen(&[("x/y", "a\u{0}.gguf")]).is_err());
    }
}
