//! The HTTP APIs that people's clients speak already, on the models that functions use: OpenAI's, Ollama's, Anthropic's.
//!
//! Their paths are reserved on the listener where functions are called, on every host unless one is named: a tenant's function
//! cannot take them, and with them other people's prompts and keys. `/` and `/health` are theirs only where no function has
//! them. A call is metered as function `model-api` of its key's tenant, and held to that tenant's budgets.
//!
//! ```text
//! bytes ─▶ access (who asks) ─▶ openai/ollama/anthropic (what is asked) ─▶ ask (joined, queued) ─▶ reply ─▶ stream, or whole
//! ```

mod access;
mod anthropic;
mod ask;
mod body;
mod health;
mod ollama;
mod openai;
mod openapi;
mod paths;
mod reader;
mod refused;
mod reply;
mod stream;
mod tools;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;

pub use self::access::KeyRule;
use self::access::{Caller, Origin};
use self::ask::Call;
use self::body::Bodies;
use self::paths::{Found, What};
use self::refused::{Dialect, Refused};
use crate::function_host::Host;
use crate::request::{Body, BoxError, INVOCATION};

/// How the model APIs are reached.
#[derive(Clone, Debug)]
pub struct ModelApiConfig {
    /// Only requests to this host are theirs; all, unless said.
    pub host: Option<String>,
    /// Who needs a key.
    pub keys: KeyRule,
    /// Pages from there may call, beside those of this machine; `*` is all.
    pub origins: Vec<String>,
    /// Most bytes of a request's body.
    pub body_bytes: usize,
}

impl Default for ModelApiConfig {
    fn default() -> Self {
        Self { host: None, keys: KeyRule::Auto, origins: Vec::new(), body_bytes: 32 << 20 }
    }
}

/// The model APIs of a host.
pub struct ModelApi {
    host: Arc<Host>,
    config: ModelApiConfig,
    /// Nobody but this machine's programs can reach them.
    local: bool,
    health: health::Health,
    bodies: Bodies,
}

impl ModelApi {
    /// The APIs of `host`, for a listener on `address`.
    pub fn new(host: Arc<Host>, config: ModelApiConfig, address: IpAddr) -> Self {
        let bodies = Bodies::new(config.body_bytes);
        Self { host, config, local: address.is_loopback(), health: health::Health::default(), bodies }
    }

    /// Whether a request is for these APIs, and not for a function.
    pub fn takes(&self, parts: &Parts) -> bool {
        let Some(found) = paths::find(parts.uri.path()) else { return false };
        self.is_host(parts) && (found.reserved || !self.host.has_route(parts))
    }

    fn is_host(&self, parts: &Parts) -> bool {
        let Some(wanted) = &self.config.host else { return true };
        let header = || parts.headers.get(header::HOST)?.to_str().ok();
        let host = parts.uri.authority().map(|authority| authority.as_str()).or_else(header).unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        name.eq_ignore_ascii_case(wanted)
    }

    /// Answers a request that these APIs take.
    pub async fn answer<B>(self: &Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let Some(found) = paths::find(parts.uri.path()) else {
            return Refused::no_such_call(parts.uri.path()).response(Dialect::OpenAi);
        };
        let dialect = found.dialect;
        let origin = Origin::of(&parts.headers, &self.config.origins);
        if let Origin::Refused(from) = &origin {
            let why = format!("pages of {from} may not call this; allow them with --model-origin");
            return Refused::forbidden(why).response(dialect);
        }
        let mut response = match parts.method {
            Method::OPTIONS => origin.preflight(&parts.headers),
            _ => {
                let trusted = origin.is_trusted(&parts.headers);
                let answered = self.dispatch(found, &parts, body, (started, trusted)).await;
                answered.unwrap_or_else(|refused| refused.response(dialect))
            }
        };
        origin.mark(response.headers_mut());
        response
    }

    async fn dispatch<B>(
        self: &Arc<Self>,
        found: Found,
        parts: &Parts,
        body: B,
        (started, trusted): (Instant, bool),
    ) -> Result<Response<Body>, Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let what = found.what;
        if what == What::Missing {
            return Err(Refused::no_such_call(parts.uri.path()));
        }
        if !what.methods().contains(&parts.method) {
            return Err(Refused::method(what.methods()));
        }
        match what {
            What::Live => return Ok(body::text(StatusCode::OK, "ok")),
            What::Description => return Ok(body::written(openapi::DOCUMENT)),
            What::Ready => return Ok(self.health.answer(&self.host)),
            What::Running => return Ok(body::text(StatusCode::OK, "Ollama is running")),
            What::Version => return Ok(body::json(StatusCode::OK, &json!({ "version": ollama::VERSION }))),
            _ => {}
        }
        let caller = self.caller(&parts.headers, trusted)?;
        if what.manages() && !caller.manages {
            let why = "changing which models there are needs a key of scope admin; pages that may do without are named \
                       with --model-origin";
            return Err(Refused::forbidden(why));
        }
        if !what.uses() {
            return self.about_models(what, parts, body).await;
        }
        let Some(called) = self.host.call(&caller.tenant, parts, started) else {
            return Err(Refused::stopping());
        };
        let call = Call::new(self.host.clone(), called, caller.manages);
        let mut answered = self.use_models(what, &call, body).await.unwrap_or_else(|refused| {
            call.called.invocation.mark(|marks| marks.outcome = refused.outcome());
            refused.response(found.dialect)
        });
        call.called.watched.metrics.answered(answered.status());
        let id = HeaderValue::from_str(&call.called.invocation.id).expect("an id is hexadecimal digits and a dash");
        answered.headers_mut().insert(INVOCATION, id.clone());
        answered.headers_mut().insert("x-request-id", id);
        Ok(answered)
    }

    fn caller(&self, headers: &HeaderMap, trusted: bool) -> Result<Caller, Refused> {
        let needed = match self.config.keys {
            KeyRule::Auto => !self.local,
            KeyRule::Required => true,
            KeyRule::Optional => false,
        };
        Caller::of(headers, &self.host, needed, self.local && trusted)
    }

    /// Answers what has models make tokens, or count them.
    async fn use_models<B>(&self, what: What, call: &Call, body: B) -> Result<Response<Body>, Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let body = self.bodies.read(body).await?;
        call.called.invocation.received(body.len());
        match what {
            What::Completions => openai::completions::answer(call, body).await,
            What::Embeddings => openai::embeddings::answer(call, body).await,
            What::Responses => openai::responses::answer(call, body).await,
            What::Messages => anthropic::answer(call, body).await,
            What::CountTokens => anthropic::count(call, body).await,
            What::OllamaChat => ollama::chat::answer(call, body).await,
            What::Generate => ollama::generate::answer(call, body).await,
            What::Embed => ollama::embed::answer(call, body).await,
            What::OldEmbedding => ollama::embed::answer_one(call, body).await,
            _ => openai::chat::answer(call, body).await,
        }
    }

    /// Answers what is about models, and uses none: all that looks into the store, on a thread that may wait for the disk.
    async fn about_models<B>(&self, what: What, parts: &Parts, body: B) -> Result<Response<Body>, Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let host = self.host.clone();
        let path = parts.uri.path().to_owned();
        match what {
            What::Models => return beside_store(move || openai::models::list(&host)).await,
            What::Model => return beside_store(move || openai::models::one(&host, &path)).await,
            What::Tags => return beside_store(move || ollama::models::tags(&host)).await,
            What::Ps => return beside_store(move || ollama::models::ps(&host)).await,
            What::Blob => {
                let digest = path.trim_start_matches(paths::BLOBS).to_owned();
                return match parts.method {
                    Method::POST => ollama::blobs::take(&host, &digest, &parts.headers, body).await,
                    _ => beside_store(move || ollama::blobs::here(&host, &digest)).await,
                };
            }
            _ => {}
        }
        let body = self.bodies.read(body).await?;
        match what {
            What::Show => beside_store(move || ollama::models::show(&host, body)).await,
            What::Copy => beside_store(move || ollama::models::copy(&host, body)).await,
            What::Create => beside_store(move || ollama::models::create(&host, body)).await,
            What::Delete => beside_store(move || ollama::models::delete(&host, body)).await,
            _ => ollama::models::pull(&host, body).await,
        }
    }
}

/// Does what waits for the disk, where it holds up nobody.
async fn beside_store<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refused::fault(format!("the models could not be looked at: {error}")))?
}
