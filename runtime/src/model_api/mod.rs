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
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;

pub use self::access::KeyRule;
use self::access::{Caller, Origin};
use self::ask::Call;
use self::refused::{Dialect, Refused};
use crate::function_host::Host;
use crate::request::{Body, BoxError};

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
}

/// What is answered, by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Models,
    Model,
    Live,
    Ready,
    Messages,
    CountTokens,
    OllamaChat,
    Generate,
    Embed,
    OldEmbedding,
    Tags,
    Ps,
    Version,
    Running,
    Show,
    Pull,
    Copy,
    Create,
    Delete,
}

static READ: [Method; 2] = [Method::GET, Method::HEAD];
static POST: [Method; 1] = [Method::POST];
static DELETE: [Method; 1] = [Method::DELETE];

impl What {
    /// The methods that it takes.
    fn methods(self) -> &'static [Method] {
        use What::{Live, Model, Models, Ps, Ready, Running, Tags, Version};
        match self {
            Models | Model | Live | Ready | Tags | Ps | Version | Running => &READ,
            Self::Delete => &DELETE,
            _ => &POST,
        }
    }

    /// Whether it changes which models there are.
    fn manages(self) -> bool {
        matches!(self, Self::Pull | Self::Copy | Self::Create | Self::Delete)
    }

    /// Whether it uses models, and is metered.
    fn uses(self) -> bool {
        use What::{Chat, Completions, CountTokens, Generate, Messages, OllamaChat, Responses};
        matches!(self, Chat | Completions | Responses | Messages | CountTokens | OllamaChat | Generate)
            || matches!(self, Self::Embeddings | Self::Embed | Self::OldEmbedding)
    }
}

impl ModelApi {
    /// The APIs of `host`, for a listener on `address`.
    pub fn new(host: Arc<Host>, config: ModelApiConfig, address: IpAddr) -> Self {
        Self { host, config, local: address.is_loopback(), health: health::Health::default() }
    }

    /// Whether a request is for these APIs, and not for a function.
    pub fn takes(&self, parts: &Parts) -> bool {
        let Some((_, reserved)) = find(parts.uri.path()) else { return false };
        self.is_host(parts) && (reserved || !self.host.has_route(parts))
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
        let ((what, dialect), _) = match find(parts.uri.path()) {
            Some(found) => found,
            None => return Refused::not_found("there is no such path").response(Dialect::OpenAi),
        };
        let origin = Origin::of(&parts.headers, &self.config.origins);
        if let Origin::Refused(from) = &origin {
            let why = format!("pages of {from} may not call this; allow them with --model-origin");
            return Refused::forbidden(why).response(dialect);
        }
        let mut response = match parts.method {
            Method::OPTIONS => origin.preflight(&parts.headers),
            _ => match self.dispatch(what, &parts, body, started).await {
                Ok(response) => response,
                Err(refused) => refused.response(dialect),
            },
        };
        origin.mark(response.headers_mut());
        response
    }

    async fn dispatch<B>(
        self: &Arc<Self>,
        what: What,
        parts: &Parts,
        body: B,
        started: Instant,
    ) -> Result<Response<Body>, Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if !what.methods().contains(&parts.method) {
            return Err(Refused::method(what.methods()));
        }
        match what {
            What::Live => return Ok(body::text(StatusCode::OK, "ok")),
            What::Ready => return Ok(self.health.answer(&self.host)),
            What::Running => return Ok(body::text(StatusCode::OK, "Ollama is running")),
            What::Version => return Ok(body::json(StatusCode::OK, &json!({ "version": ollama::VERSION }))),
            _ => {}
        }
        let caller = Caller::of(&parts.headers, &self.host, self.keys_needed(), self.local)?;
        if what.manages() && !caller.manages {
            return Err(Refused::forbidden("changing which models there are needs a key of scope admin"));
        }
        if !what.uses() {
            return self.about_models(what, parts, body).await;
        }
        let Some(called) = self.host.call(&caller.tenant, parts, started) else {
            return Err(Refused::stopping());
        };
        let call = Call::new(self.host.clone(), called);
        let answer = async {
            let body = body::read(body, self.config.body_bytes).await?;
            call.called.invocation.received(body.len());
            match what {
                What::Completions => openai::completions::answer(&call, &body).await,
                What::Embeddings => openai::embeddings::answer(&call, &body).await,
                What::Responses => openai::responses::answer(&call, &body).await,
                What::Messages => anthropic::answer(&call, &body).await,
                What::CountTokens => anthropic::count(&call, &body).await,
                What::OllamaChat => ollama::chat::answer(&call, &body).await,
                What::Generate => ollama::generate::answer(&call, &body).await,
                What::Embed => ollama::embed::answer(&call, &body).await,
                What::OldEmbedding => ollama::embed::answer_one(&call, &body).await,
                _ => openai::chat::answer(&call, &body).await,
            }
        };
        let mut answered = match answer.await {
            Ok(response) => response,
            Err(refused) => {
                call.called.invocation.mark(|marks| marks.outcome = refused.outcome());
                let dialect = find(parts.uri.path()).map_or(Dialect::OpenAi, |((_, dialect), _)| dialect);
                refused.response(dialect)
            }
        };
        call.called.watched.metrics.answered(answered.status());
        let id = HeaderValue::from_str(&call.called.invocation.id).expect("an id is hexadecimal digits and a dash");
        answered.headers_mut().insert("x-hob-invocation", id.clone());
        answered.headers_mut().insert("x-request-id", id);
        Ok(answered)
    }

    /// Answers what is about models, and uses none.
    async fn about_models<B>(&self, what: What, parts: &Parts, body: B) -> Result<Response<Body>, Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let host = &self.host;
        match what {
            What::Models => return openai::models::list(host),
            What::Model => return openai::models::one(host, parts.uri.path()),
            What::Tags => return ollama::models::tags(host),
            What::Ps => return ollama::models::ps(host),
            _ => {}
        }
        let body = body::read(body, self.config.body_bytes).await?;
        match what {
            What::Show => ollama::models::show(host, &body),
            What::Copy => ollama::models::copy(host, &body),
            What::Create => ollama::models::create(host, &body),
            What::Delete => ollama::models::delete(host, &body),
            _ => ollama::models::pull(host, &body).await,
        }
    }

    fn keys_needed(&self) -> bool {
        match self.config.keys {
            KeyRule::Auto => !self.local,
            KeyRule::Required => true,
            KeyRule::Optional => false,
        }
    }
}

/// What a path is, and whether no function can have it.
fn find(path: &str) -> Option<((What, Dialect), bool)> {
    use Dialect::{Anthropic, Ollama, OpenAi};
    let found = match path {
        "/v1/chat/completions" => (What::Chat, OpenAi),
        "/v1/completions" => (What::Completions, OpenAi),
        "/v1/embeddings" => (What::Embeddings, OpenAi),
        "/v1/responses" => (What::Responses, OpenAi),
        "/v1/models" => (What::Models, OpenAi),
        "/v1/messages" => (What::Messages, Anthropic),
        "/v1/messages/count_tokens" => (What::CountTokens, Anthropic),
        "/v1/health/live" => (What::Live, OpenAi),
        "/v1/health/ready" => (What::Ready, OpenAi),
        "/api/chat" => (What::OllamaChat, Ollama),
        "/api/generate" => (What::Generate, Ollama),
        "/api/embed" => (What::Embed, Ollama),
        "/api/embeddings" => (What::OldEmbedding, Ollama),
        "/api/tags" => (What::Tags, Ollama),
        "/api/ps" => (What::Ps, Ollama),
        "/api/version" => (What::Version, Ollama),
        "/api/show" => (What::Show, Ollama),
        "/api/pull" => (What::Pull, Ollama),
        "/api/copy" => (What::Copy, Ollama),
        "/api/create" => (What::Create, Ollama),
        "/api/delete" => (What::Delete, Ollama),
        "/health" => return Some(((What::Ready, OpenAi), false)),
        "/" => return Some(((What::Running, Ollama), false)),
        _ if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) => (What::Model, OpenAi),
        _ => return None,
    };
    Some((found, true))
}
