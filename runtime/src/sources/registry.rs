//! Components in OCI registries, in the layout that WebAssembly tools share: an image manifest whose one layer is the
//! component.
//!
//! Registries on this machine are spoken to in the clear, all others over TLS.

use serde::{Deserialize, Serialize};
use ureq::http::{Response, header};
use ureq::{Agent, Body};
use url::Url;

use super::auth::{self, Challenge};
use super::web::{self, Agents};
use super::{Fetched, Reference, SourceError, Version, detail, read, refused};
use crate::api::MAX_COMPONENT_BYTES;
use crate::digest::Digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
/// What earlier tools called the layer.
const OLD_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

/// What the layout wants to be known without reading the component.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// Always the same: what is pushed twice has the same digest twice.
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    layer_digests: [Digest; 1],
}

/// Gets the component that `reference` names.
///
/// # Errors
/// See [`SourceError`].
pub fn pull(reference: &Reference) -> Result<Fetched, SourceError> {
    let mut session = Session::new(reference, "pull")?;
    let (manifest, digest) = session.manifest()?;
    let layer = session.layer(&manifest)?;
    let bytes = session.blob(&layer)?;
    let exact = Reference { version: Version::Digest(digest), ..reference.clone() };
    Ok(Fetched { bytes, from: exact.to_string() })
}

/// Puts a component where `reference` says; the reference that will always lead to it.
///
/// # Errors
/// See [`SourceError`]. The tag is set last: it means what it meant, or all of the new artifact.
pub fn push(reference: &Reference, component: &[u8]) -> Result<Reference, SourceError> {
    let mut session = Session::new(reference, "push")?;
    let layer = Descriptor::of(LAYER, component);
    let config =
        Config { created: "1970-01-01T00:00:00Z", architecture: "wasm", os: "wasip2", layer_digests: [layer.digest] };
    let config = serde_json::to_vec(&config).expect("it has only string keys");
    session.upload(&layer, component)?;
    session.upload(&Descriptor::of(CONFIG, &config), &config)?;
    let config = Some(Descriptor::of(CONFIG, &config));
    let manifest = Manifest { schema_version: 2, media_type: MANIFEST.into(), config, layers: vec![layer] };
    let manifest = serde_json::to_vec(&manifest).expect("it has only string keys");
    session.put_manifest(&manifest)?;
    Ok(Reference { version: Version::Digest(Digest::of(&manifest)), ..reference.clone() })
}

impl Descriptor {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self { media_type: media_type.into(), digest: Digest::of(bytes), size: bytes.len() as u64 }
    }
}

type Answer = Response<Body>;

/// Calls about one reference; the first challenge is answered for all that follow.
struct Session<'a> {
    reference: &'a Reference,
    /// `pull` or `push`, for people.
    what: &'static str,
    agents: Agents,
    /// The registry.
    place: Url,
    base: String,
    authorization: Option<String>,
}

impl<'a> Session<'a> {
    fn new(reference: &'a Reference, what: &'static str) -> Result<Self, SourceError> {
        // Where docker's own registry answers.
        let host = if reference.registry == "docker.io" { "registry-1.docker.io" } else { &reference.registry };
        let place = web::registry(host).map_err(|why| SourceError::NoUrl { url: host.to_owned(), why })?;
        let base = format!("{place}v2/{}", reference.repository);
        let agents = Agents::new(|usual| usual)?;
        Ok(Self { reference, what, agents, place, base, authorization: None })
    }

    /// The manifest, and its digest.
    fn manifest(&mut self) -> Result<(Manifest, Digest), SourceError> {
        let url = format!("{}/manifests/{}", self.base, self.reference.version);
        let accept = format!("{MANIFEST}, {INDEX}");
        let mut answer = self
            .call(&url, |agent, authorization| with(agent.get(&url).header("accept", &accept), authorization).call())?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Err(SourceError::NotThere(self.reference.to_string())),
            _ => return Err(refused(&url, &mut answer)),
        }
        let told = answer.headers().get("docker-content-digest");
        let told: Option<Digest> = told.and_then(|value| value.to_str().ok()?.parse().ok());
        let text = read(&url, &mut answer)?;
        let got = Digest::of(&text);
        let expected = match (&self.reference.version, &told) {
            (Version::Digest(digest), _) | (Version::Tag(_), Some(digest)) => *digest,
            (Version::Tag(_), None) => got,
        };
        if got != expected {
            return Err(SourceError::WrongDigest { url, expected, got });
        }
        let manifest = serde_json::from_slice(&text)
            .map_err(|error| self.not_an_artifact(format!("its manifest does not read: {error}")))?;
        Ok((manifest, got))
    }

    /// The one layer that is a component.
    fn layer(&self, manifest: &Manifest) -> Result<Descriptor, SourceError> {
        if manifest.layers.is_empty() {
            let index = manifest.media_type == INDEX || manifest.config.is_none();
            let why = if index { "it is a list of images; name one of them by its digest" } else { "it has no layer" };
            return Err(self.not_an_artifact(why.into()));
        }
        let wasm = |layer: &&Descriptor| [LAYER, OLD_LAYER].contains(&layer.media_type.as_str());
        let mut layers = manifest.layers.iter().filter(wasm);
        match (layers.next(), layers.next()) {
            (Some(layer), None) if layer.size <= MAX_COMPONENT_BYTES as u64 => Ok(layer.clone()),
            (Some(_), None) => Err(SourceError::TooLarge(self.reference.to_string())),
            (Some(_), Some(_)) => Err(self.not_an_artifact("it has several layers of WebAssembly".into())),
            (None, _) => {
                let kinds: Vec<_> = manifest.layers.iter().take(3).map(|layer| layer.media_type.as_str()).collect();
                Err(self.not_an_artifact(format!("its layers are {}", kinds.join(", "))))
            }
        }
    }

    fn blob(&mut self, blob: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let mut answer = self.call(&url, |agent, authorization| with(agent.get(&url), authorization).call())?;
        if answer.status() != 200 {
            return Err(refused(&url, &mut answer));
        }
        let bytes = read(&url, &mut answer)?;
        let (expected, got) = (blob.size, bytes.len() as u64);
        if got != expected {
            return Err(SourceError::WrongSize { url, expected, got });
        }
        let (expected, got) = (blob.digest, Digest::of(&bytes));
        if got != expected { Err(SourceError::WrongDigest { url, expected, got }) } else { Ok(bytes) }
    }

    /// Puts a blob there, unless it is.
    fn upload(&mut self, blob: &Descriptor, bytes: &[u8]) -> Result<(), SourceError> {
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let answer = self.call(&url, |agent, authorization| with(agent.head(&url), authorization).call())?;
        if answer.status() == 200 {
            return Ok(());
        }
        let url = format!("{}/blobs/uploads/", self.base);
        let mut answer = self.call(&url, |agent, authorization| with(agent.post(&url), authorization).send_empty())?;
        if answer.status() != 202 {
            return Err(refused(&url, &mut answer));
        }
        let place = answer.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        let place = place.ok_or_else(|| SourceError::Protocol { url, why: "it has no place for the upload".into() })?;
        let url = self.upload_url(place, &blob.digest);
        let mut answer = self.call(&url, |agent, authorization| {
            with(agent.put(&url).header("content-type", "application/octet-stream"), authorization).send(bytes)
        })?;
        if answer.status() == 201 { Ok(()) } else { Err(refused(&url, &mut answer)) }
    }

    fn put_manifest(&mut self, manifest: &[u8]) -> Result<(), SourceError> {
        let url = format!("{}/manifests/{}", self.base, self.reference.version);
        let mut answer = self.call(&url, |agent, authorization| {
            with(agent.put(&url).header("content-type", MANIFEST), authorization).send(manifest)
        })?;
        if answer.status() == 201 { Ok(()) } else { Err(refused(&url, &mut answer)) }
    }

    /// Where an upload ends; registries name the place with or without their own address.
    fn upload_url(&self, place: &str, digest: &Digest) -> String {
        let place = match place.starts_with('/') {
            true => {
                format!("{}{place}", self.origin())
            }
            false => place.to_owned(),
        };
        let join = if place.contains('?') { '&' } else { '?' };
        format!("{place}{join}digest={digest}")
    }

    /// The registry's own address.
    fn origin(&self) -> &str {
        self.place.as_str().trim_end_matches('/')
    }

    /// Makes a call; when the registry wants to know who asks, tells it and calls again.
    fn call(
        &mut self,
        url: &str,
        call: impl Fn(&Agent, Option<&str>) -> Result<Answer, ureq::Error>,
    ) -> Result<Answer, SourceError> {
        let unreachable = |why: ureq::Error| SourceError::Unreachable { url: url.to_owned(), why: why.into() };
        // Uploads may go elsewhere, where our authorization is nobody's business.
        let ours = url.starts_with(self.origin()) && url[self.origin().len()..].starts_with('/');
        // Where an upload goes may be a proxy's business, or this machine's.
        let agent = url.parse().map_or_else(|_| self.agents.of(&self.place), |url| self.agents.of(&url)).clone();
        let mut answer = call(&agent, self.authorization.as_deref().filter(|_| ours)).map_err(unreachable)?;
        if answer.status() == 401 && ours {
            self.authorization = Some(self.authorize(url, &answer)?);
            answer = call(&agent, self.authorization.as_deref()).map_err(unreachable)?;
        }
        if [401, 403].contains(&answer.status().as_u16()) {
            return Err(self.unauthorized(detail(&mut answer)));
        }
        Ok(answer)
    }

    fn authorize(&self, url: &str, answer: &Answer) -> Result<String, SourceError> {
        let asked = answer.headers().get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
        let challenge = asked.and_then(Challenge::parse);
        let protocol = |why: String| SourceError::Protocol { url: url.to_owned(), why };
        let challenge = challenge.ok_or_else(|| protocol("it wants a login, in no way that is known here".into()))?;
        let login = auth::login(&self.reference.registry);
        let answer = auth::answer(&self.agents, &self.place, &challenge, login.as_deref());
        let authorization = answer.map_err(protocol)?;
        authorization.ok_or_else(|| self.unauthorized(String::new()))
    }

    fn unauthorized(&self, detail: String) -> SourceError {
        let registry = self.reference.registry.clone();
        SourceError::Unauthorized { way: auth::way_in(&registry), registry, what: self.what, detail }
    }

    fn not_an_artifact(&self, why: String) -> SourceError {
        SourceError::NotAnArtifact { what: self.reference.to_string(), why }
    }
}

fn with<B>(call: ureq::RequestBuilder<B>, authorization: Option<&str>) -> ureq::RequestBuilder<B> {
    match authorization {
        Some(authorization) => call.header("authorization", authorization),
        None => call,
    }
}
