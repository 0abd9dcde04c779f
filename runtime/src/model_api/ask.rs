//! One call: its model joined, its sequences queued, and what it comes to on its tenant's account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hob_gpu::{Ask, Model};
use http::Response;
use serde_json::Value;

use super::body;
use super::refused::Refused;
use super::reply::Reply;
use crate::function_host::{Called, Host};
use crate::host::embed::{self, Embedded, Text};
use crate::host::infer::{self, Joined};
use crate::models::Stay;
use crate::models::store::Defaults;
use crate::names::ModelName;
use crate::request::Body;

/// One call of a model API; cheap to hold for as long as its answer goes on.
#[derive(Clone)]
pub(super) struct Call {
    host: Arc<Host>,
    pub called: Arc<Called>,
}

/// A model that a call may use.
pub(super) struct Found {
    pub model: Model,
    pub name: ModelName,
    /// What comes with it.
    pub defaults: Defaults,
}

impl Call {
    pub fn new(host: Arc<Host>, called: Called) -> Self {
        Self { host, called: Arc::new(called) }
    }

    /// Its number, for ids.
    pub fn id(&self) -> &str {
        &self.called.invocation.id
    }

    /// Joins the model that people call `name`; waits while it is loaded.
    pub async fn join(&self, name: &str) -> Result<Found, Refused> {
        let name = resolve(&self.host, name)?;
        let started = Instant::now();
        let model = self.host.library().join(&name).await?;
        let defaults = self.host.library().store().get(&name).map(|stored| stored.defaults).unwrap_or_default();
        self.called.invocation.mark(|marks| marks.join += started.elapsed());
        Ok(Found { model, name, defaults })
    }

    /// Queues a sequence for each of `asks`.
    pub async fn start(&self, found: &Found, asks: Vec<Ask>) -> Result<Reply, Refused> {
        let joined = Joined::new(found.model.clone(), found.name.clone());
        let mut all = Vec::with_capacity(asks.len());
        for ask in asks {
            let started = infer::start(&joined, ask, &self.called.invocation, Some(&self.called.allowance)).await;
            let tokens =
                started.map_err(|error| Refused::fault(format!("the prompt could not be read: {error}")))??;
            all.push(tokens);
        }
        Ok(Reply::new(self.clone(), found.model.clone(), all))
    }

    /// Embeds `texts`; if `cut`, what a context has no room for is left away.
    pub async fn embed(&self, found: &Found, texts: Vec<Text>, cut: bool) -> Result<Embedded, Refused> {
        let joined = Joined::new(found.model.clone(), found.name.clone());
        let embedded = embed::embed(&joined, texts, cut, &self.called.invocation, Some(&self.called.allowance)).await;
        Ok(embedded.map_err(|error| Refused::fault(format!("the texts could not be read: {error}")))??)
    }

    /// Notes how long its caller wishes the model to stay.
    pub fn keep(&self, name: &ModelName, stay: Option<Stay>) {
        if let Some(stay) = stay
            && let Err(error) = self.host.library().wish(name, stay)
        {
            tracing::debug!(model = %name, %error, "nobody can be kept");
        }
    }

    /// Loads a model, or lets go of it if it is to stay no longer; says which.
    pub async fn keep_or_go(&self, name: &str, stay: Option<Stay>) -> Result<&'static str, Refused> {
        if stay == Some(Stay::Idle(Duration::ZERO)) {
            let name = resolve(&self.host, name)?;
            self.keep(&name, stay);
            // One that is in use goes when it is not.
            let _ = self.host.library().evict(&name);
            return Ok("unload");
        }
        let found = self.join(name).await?;
        self.keep(&found.name, stay);
        Ok("load")
    }

    /// Notes that it went well.
    pub fn done(&self) {
        self.called.invocation.mark(|marks| marks.outcome = "ok");
    }

    /// The answer as a whole.
    pub fn whole(&self, value: &Value) -> Response<Body> {
        let text = Bytes::from(value.to_string());
        self.called.invocation.sent(text.len());
        self.done();
        body::json(http::StatusCode::OK, value)
    }
}

/// The model that people call `name`: with its tag, or without if that is `latest`.
pub(super) fn resolve(host: &Host, name: &str) -> Result<ModelName, Refused> {
    let has = |name: &str| name.parse::<ModelName>().ok().filter(|name| host.library().has(name));
    let found = match name.strip_suffix(":latest") {
        Some(short) => has(name).or_else(|| has(short)),
        None if name.contains(':') => has(name),
        None => has(name).or_else(|| has(&format!("{name}:latest"))),
    };
    if name.is_empty() {
        return Err(Refused::invalid("model", "`model` is missing; `hob models list` shows those that are here"));
    }
    found.ok_or_else(|| Refused::no_model(name))
}
