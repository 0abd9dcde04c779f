//! One call: its model joined, its sequences queued, and what it comes to on its tenant's account.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hob_gpu::{Ask, Model};
use http::Response;
use serde_json::Value;

use super::body;
use super::refused::Refused;
use super::reply::Reply;
use crate::function_host::{Called, Host};
use crate::host::infer::{self, Joined};
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
        self.called.invocation.mark(|marks| marks.join += started.elapsed());
        Ok(Found { model, name })
    }

    /// Queues a sequence for each of `asks`.
    pub async fn start(&self, found: &Found, asks: Vec<Ask>) -> Result<Reply, Refused> {
        let joined = Joined::new(found.model.clone(), found.name.clone());
        let mut all = Vec::with_capacity(asks.len());
        for ask in asks {
            let started = infer::start(&joined, ask, &self.called.invocation, Some(&self.called.allowance)).await;
            let tokens = started.map_err(|error| Refused::fault(format!("the prompt could not be read: {error}")))??;
            all.push(tokens);
        }
        Ok(Reply::new(self.clone(), found.model.clone(), all))
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
