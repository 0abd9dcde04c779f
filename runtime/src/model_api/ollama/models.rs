//! Which models there are, and changing that: `/api/tags`, `ps`, `show`, `pull`, `copy`, `delete`, `create`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hob_gpu::EngineDevice;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::at;
use crate::digest::Digest;
use crate::function_host::Host;
use crate::model_api::ask::resolve;
use crate::model_api::body::{self, Given};
use crate::model_api::refused::Refused;
use crate::models::pull::{self, PullLine, PullRequest};
use crate::models::store::{Defaults, FilePath, FilePathError, Manifest, StoreError};
use crate::models::view::StoredModel;
use crate::models::wanted::Wanted;
use crate::names::ModelName;
use crate::request::Body;

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(name) => Self::no_model(name.as_str()),
            StoreError::Taken(_) | StoreError::Pulling | StoreError::Gone(_) | StoreError::TooLong { .. } => {
                Self::invalid("model", error.to_string())
            }
            error => Self::fault(error.to_string()),
        }
    }
}

/// A name, in whichever field.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    model: String,
    name: String,
    stream: Option<bool>,
    source: String,
    destination: String,
    from: String,
    system: Option<String>,
    template: Option<String>,
    license: Option<Value>,
    parameters: Option<Map<String, Value>>,
    files: Option<Map<String, Value>>,
    quantize: Option<String>,
    adapters: Option<Value>,
}

impl Named {
    fn model(&self) -> &str {
        if self.model.is_empty() { &self.name } else { &self.model }
    }

    /// What the model is to say of itself, where nothing is said here as `before`.
    fn defaults(self, before: Defaults) -> Defaults {
        let license = match self.license {
            Some(Value::String(license)) => Some(license),
            Some(Value::Array(several)) => {
                Some(several.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n\n"))
            }
            _ => None,
        };
        let mut parameters = before.parameters;
        parameters.extend(self.parameters.unwrap_or_default());
        let (system, license) = (self.system.or(before.system), license.or(before.license));
        Defaults { system, license, parameters, template: before.template }
    }
}

/// A name that is to be given, without the tag that goes without saying.
fn new_name(text: &str) -> Result<ModelName, Refused> {
    let short = text.strip_suffix(":latest").unwrap_or(text);
    short.parse().map_err(|error| Refused::invalid("model", format!("invalid model name: {error}")))
}

/// `/api/tags`
pub(in crate::model_api) fn tags(host: &Arc<Host>) -> Result<Response<Body>, Refused> {
    let store = host.library().store();
    let models: Vec<Value> = store.list()?.into_iter().map(|model| tag(&StoredModel::of(store, model))).collect();
    Ok(body::json(StatusCode::OK, &json!({ "models": models })))
}

fn tag(model: &StoredModel) -> Value {
    json!({
        "name": model.name, "model": model.name, "modified_at": at(Duration::from_secs(model.pulled_at)),
        "size": model.bytes, "digest": hex(&model.digest.to_string()), "details": details(model),
    })
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn details(model: &StoredModel) -> Value {
    let family = model.architecture.clone().unwrap_or_default();
    let size = model.parameters.map(|count| match count {
        0..1_000_000_000 => format!("{:.2}M", count as f64 / 1e6),
        _ => format!("{:.1}B", count as f64 / 1e9),
    });
    json!({
        "parent_model": model.parent.as_ref().map_or("", |parent| parent.as_str()), "format": if model.files.is_empty() { "gguf" } else { "safetensors" }, "family": family,
        "families": [family], "parameter_size": size.unwrap_or_default(),
        "quantization_level": model.quantization.clone().unwrap_or_default(),
    })
}

/// `/api/ps`
pub(in crate::model_api) fn ps(host: &Arc<Host>) -> Result<Response<Body>, Refused> {
    let library = host.library();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (known, mut models) = (library.store().list()?, Vec::new());
    for resident in library.engines().resident() {
        // The name it was loaded under may have gone; another may stand for the same.
        let same: Vec<_> = known.iter().filter(|model| model.digest.to_string() == resident.digest).collect();
        let named = same.iter().find(|model| model.name.as_str() == resident.name).or(same.first());
        let Some(stored) = named else { continue };
        let stored = StoredModel::of(library.store(), (*stored).clone());
        // One that stays until another needs its room has no hour; clients want a date.
        let left = resident.expires_in.unwrap_or(Duration::from_secs(100 * 365 * 86_400));
        let mut line = tag(&stored);
        line["size"] = resident.bytes.into();
        line["size_vram"] = if resident.device == EngineDevice::Cpu { 0 } else { resident.bytes }.into();
        line["expires_at"] = at(now + left).into();
        line["context_length"] = stored.context_tokens.unwrap_or(0).into();
        models.push(line);
    }
    Ok(body::json(StatusCode::OK, &json!({ "models": models })))
}

/// `/api/show`
pub(in crate::model_api) fn show(host: &Arc<Host>, asked: Given) -> Result<Response<Body>, Refused> {
    let named: Named = asked.read()?;
    let store = host.library().store();
    let manifest = resolve(host, named.model())?;
    let path = store.path(&manifest).map_err(StoreError::Disk)?;
    let model = StoredModel::of(store, manifest);
    let template = hob_gpu::chat_template(&path).unwrap_or_default();
    let marks = hob_gpu::model::template::Marks::of(template.as_deref());
    let embeds = hob_gpu::inspect(&path).is_ok_and(|info| !info.generates);
    let mut capabilities = vec![if embeds { "embedding" } else { "completion" }];
    capabilities.extend(template.is_some().then_some("tools"));
    capabilities.extend(marks.thinks.then_some("thinking"));
    let architecture = model.architecture.clone().unwrap_or_default();
    let mut info = Map::new();
    info.insert("general.architecture".into(), architecture.as_str().into());
    info.insert("general.parameter_count".into(), model.parameters.unwrap_or(0).into());
    info.insert(format!("{architecture}.context_length"), model.context_tokens.unwrap_or(0).into());
    let parameters = parameters(&model.defaults.parameters);
    let system = model.defaults.system.clone().unwrap_or_default();
    let mut shown = json!({
        "modelfile": format!("FROM {}\nSYSTEM {}\n", model.name, Value::from(system.as_str())), "parameters": parameters,
        "template": template.unwrap_or_default(), "system": system, "details": details(&model), "model_info": info,
        "capabilities": capabilities, "modified_at": at(Duration::from_secs(model.pulled_at)),
    });
    if let Some(license) = &model.defaults.license {
        shown["license"] = license.as_str().into();
    }
    Ok(body::json(StatusCode::OK, &shown))
}

/// As lines of a model file.
fn parameters(all: &Map<String, Value>) -> String {
    let lines = all.iter().flat_map(|(key, value)| match value {
        Value::Array(list) => list.iter().map(|value| format!("{key:30} {value}\n")).collect(),
        value => vec![format!("{key:30} {value}\n")],
    });
    lines.collect()
}

/// `/api/copy`
pub(in crate::model_api) fn copy(host: &Arc<Host>, asked: Given) -> Result<Response<Body>, Refused> {
    let named: Named = asked.read()?;
    let from = resolve(host, &named.source)?;
    host.library().store().copy(&from.name, &new_name(&named.destination)?)?;
    Ok(body::text(StatusCode::OK, ""))
}

/// `/api/delete`
pub(in crate::model_api) fn delete(host: &Arc<Host>, asked: Given) -> Result<Response<Body>, Refused> {
    let named: Named = asked.read()?;
    host.library().remove(&resolve(host, named.model())?.name)?;
    Ok(body::text(StatusCode::OK, ""))
}

/// `/api/create`: from a model that is here, another name for the same weights with words and parameters of its own; or from
/// files that were sent to `/api/blobs`.
pub(in crate::model_api) fn create(host: &Arc<Host>, asked: Given) -> Result<Response<Body>, Refused> {
    let named: Named = asked.read()?;
    if named.adapters.is_some() || named.quantize.is_some() {
        let why = "adapters and quantize are not supported; send weights that are merged, and of the type that they shall have";
        return Err(Refused::invalid("quantize", why));
    }
    if named.template.as_ref().is_some_and(|template| !template.is_empty()) {
        return Err(Refused::invalid("template", "the template of the weights is used; leave template out"));
    }
    let store = host.library().store();
    let (name, stream) = (new_name(named.model())?, named.stream);
    match (named.from.is_empty(), &named.files) {
        (true, None) => return Err(Refused::invalid("from", "neither 'from' or 'files' was specified")),
        (false, Some(_)) => return Err(Refused::invalid("files", "give either 'from' or 'files'")),
        (true, Some(files)) => {
            let files = files.iter().map(file).collect::<Result<_, _>>()?;
            store.create(&name, files, named.defaults(Defaults::default()))?;
        }
        (false, None) => {
            let parent = resolve(host, &named.from)?;
            let (from, defaults) = (Some(parent.name.clone()), named.defaults(parent.defaults.clone()));
            let keep = store.get(&name).map(|known| known.keep).unwrap_or_default();
            store.put(&Manifest { name, parent: from, keep, defaults, ..parent })?;
        }
    }
    let lines = ["using existing layer", "writing manifest", "success"].map(PullLine::status);
    match stream {
        Some(false) => Ok(body::json(StatusCode::OK, &json!({ "status": "success" }))),
        _ => Ok(lines_of(Lines::Known(lines.into_iter().collect()))),
    }
}

/// A file of a model, by its name there, and its digest.
fn file((path, digest): (&String, &Value)) -> Result<(FilePath, Digest), Refused> {
    let place = path.clone().try_into();
    let place = place.map_err(|error: FilePathError| Refused::invalid("files", format!("a file {error}")))?;
    Ok((place, super::blobs::digest(digest.as_str().unwrap_or_default())?))
}

/// `/api/pull`
pub(in crate::model_api) async fn pull(host: &Arc<Host>, asked: Given) -> Result<Response<Body>, Refused> {
    let named: Named = asked.json().await?;
    let wanted = Wanted::from_ollama(named.model());
    let wanted = wanted.map_err(|error| Refused::invalid("model", format!("invalid model name: {error}")))?;
    let mut lines = pull::follow(host.library().store().clone(), PullRequest::new(wanted));
    if named.stream != Some(false) {
        return Ok(lines_of(Lines::ToCome(lines)));
    }
    let mut last = PullLine::success();
    while let Some(line) = lines.recv().await {
        last = line;
    }
    match last.error {
        Some(why) => Err(Refused::fault(why)),
        None => Ok(body::json(StatusCode::OK, &json!({ "status": "success" }))),
    }
}

/// Lines of JSON that tell how far something is.
enum Lines {
    Known(std::collections::VecDeque<PullLine>),
    ToCome(mpsc::Receiver<PullLine>),
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = match &mut *self {
            Self::Known(lines) => Poll::Ready(lines.pop_front()),
            Self::ToCome(lines) => lines.poll_recv(cx),
        };
        next.map(|line| {
            let mut text = serde_json::to_vec(&line?).expect("a line has only string keys");
            text.push(b'\n');
            Some(Ok(Frame::data(text.into())))
        })
    }
}

fn lines_of(lines: Lines) -> Response<Body> {
    let mut response = Response::new(lines.map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}
