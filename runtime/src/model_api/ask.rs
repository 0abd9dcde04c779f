//! One call: its model joined, its sequences queued, and what it comes to on its tenant's account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hob_gpu::{Ask, Conversation, Form, Model, Prompt, Written};
use http::Response;
use serde_json::Value;

use super::refused::Refused;
use super::reply::Reply;
use super::{beside_store, body};
use crate::function_host::{Called, Host};
use crate::host::embed::{self, Embedded, Text};
use crate::host::infer::{self, Joined, beside};
use crate::models::Stay;
use crate::models::store::{Defaults, Manifest, StoreError};
use crate::names::ModelName;
use crate::request::Body;

/// One call of a model API; cheap to hold for as long as its answer goes on.
#[derive(Clone)]
pub(super) struct Call {
    host: Arc<Host>,
    pub called: Arc<Called>,
    /// Its caller may change which models there are, and which are in memory.
    manages: bool,
}

/// A model that a call may use.
pub(super) struct Found {
    pub model: Model,
    pub name: ModelName,
    /// What comes with it.
    pub defaults: Defaults,
}

impl Call {
    pub fn new(host: Arc<Host>, called: Called, manages: bool) -> Self {
        Self { host, called: Arc::new(called), manages }
    }

    /// Its number, for ids.
    pub fn id(&self) -> &str {
        &self.called.invocation.id
    }

    /// Joins the model that people call `name`; waits while it is loaded.
    pub(super) async fn join(&self, name: &str) -> Result<Found, Refused> {
        let started = Instant::now();
        let stored = self.find(name).await?;
        let model = self.host.library().join_stored(&stored).await?;
        self.called.invocation.mark(|marks| marks.join += started.elapsed());
        Ok(Found { model, name: stored.name, defaults: stored.defaults })
    }

    async fn find(&self, name: &str) -> Result<Manifest, Refused> {
        let (host, name) = (self.host.clone(), name.to_owned());
        beside_store(move || resolve(&host, &name)).await
    }

    /// Writes a conversation down as the model reads it.
    pub(super) async fn write(&self, found: &Found, conversation: Conversation) -> Result<Written, Refused> {
        let model = found.model.clone();
        let written = beside(conversation.bytes(), move || model.write(conversation)).await;
        Ok(written.map_err(unread)??)
    }

    /// Queues a sequence for each of `asks`, for each of `prompts`: all are held to `form`.
    pub(super) async fn start(
        &self,
        found: &Found,
        prompts: Vec<Prompt>,
        form: Option<Form>,
        asks: Vec<Ask>,
    ) -> Result<Reply, Refused> {
        let joined = Joined::new(found.model.clone(), found.name.clone());
        let Called { invocation, allowance, .. } = &*self.called;
        let mut all = Vec::with_capacity(prompts.len() * asks.len());
        for prompt in prompts {
            let started = infer::start_all(&joined, prompt, form.clone(), asks.clone(), invocation, allowance).await;
            all.extend(started.map_err(unread)??);
        }
        Ok(Reply::new(self.clone(), found.model.clone(), all))
    }

    /// Embeds `texts`; if `cut`, what a context has no room for is left away.
    pub(super) async fn embed(&self, found: &Found, texts: Vec<Text>, cut: bool) -> Result<Embedded, Refused> {
        let joined = Joined::new(found.model.clone(), found.name.clone());
        let embedded = embed::embed(&joined, texts, cut, &self.called.invocation, Some(&self.called.allowance)).await;
        Ok(embedded.map_err(|error| Refused::fault(format!("the texts could not be read: {error}")))??)
    }

    /// Notes how long its caller wishes the model to stay. Others may use it, too: only who manages models is heard.
    pub(super) async fn keep(&self, name: &ModelName, stay: Option<Stay>) {
        let Some(stay) = stay.filter(|_| self.manages) else { return };
        let (host, name) = (self.host.clone(), name.clone());
        let noted = beside_store(move || Ok(host.library().wish(&name, stay)?)).await;
        if let Err(refused) = noted {
            tracing::debug!(why = refused.message, "nobody can be kept");
        }
    }

    /// Loads a model, or lets go of it if it is to stay no longer; says which.
    pub(super) async fn keep_or_go(&self, name: &str, stay: Option<Stay>) -> Result<&'static str, Refused> {
        if stay == Some(Stay::Idle(Duration::ZERO)) {
            let stored = self.find(name).await?;
            if !self.manages {
                return Err(Refused::forbidden(
                    "others may use this model: letting go of it needs a key of scope admin",
                ));
            }
            self.keep(&stored.name, stay).await;
            // One that is in use goes when it is not.
            let _ = self.host.library().engines().evict(&stored.digest.to_string());
            return Ok("unload");
        }
        let found = self.join(name).await?;
        self.keep(&found.name, stay).await;
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

fn unread(error: impl std::fmt::Display) -> Refused {
    Refused::fault(format!("the prompt could not be read: {error}"))
}

/// The model that people call `name`: with its tag, or without if that is `latest`. Waits for the disk.
pub(super) fn resolve(host: &Host, name: &str) -> Result<Manifest, Refused> {
    if name.is_empty() {
        return Err(Refused::invalid("model", "`model` is missing; `hob models list` shows those that are here"));
    }
    let other = match name.strip_suffix(":latest") {
        Some(short) => Some(short.to_owned()),
        None => (!name.contains(':')).then(|| format!("{name}:latest")),
    };
    for name in [Some(name.to_owned()), other].into_iter().flatten() {
        let Ok(name) = name.parse::<ModelName>() else { continue };
        match host.library().store().get(&name) {
            Err(StoreError::NotFound(_)) => {}
            found => return Ok(found?),
        }
    }
    Err(Refused::no_model(name))
}
