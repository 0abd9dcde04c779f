//! Models that are in memory or on their way there, and giving memory back.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hob_gpu::{ModelState, ModelStatus, Moves};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::observe::Pieces;
use super::{ApiError, App};
use crate::models::tier::Tier;
use crate::models::{Library, catalog};
use crate::names::ModelName;

/// Between two lines of changes there is at least this.
const PACE: Duration = Duration::from_millis(100);

/// A model that is not absent, as the API tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelView {
    /// The name under which it was loaded.
    pub name: String,
    /// The digest of its bytes.
    pub digest: String,
    /// `loading`, `resident`, `evicting` or `failed`; `absent`, if those were asked for too.
    pub state: String,
    /// The nearest place that it can be had from.
    pub tier: Tier,
    /// How much of its file is in the host's memory; where those that are absent were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_percent: Option<u8>,
    /// The device that it is on, or was.
    pub device: String,
    /// Bytes that it takes there.
    pub bytes: u64,
    /// How many guests, handles and generations hold it.
    pub leases: usize,
    /// For how long nobody has.
    pub unused_s: u64,
    /// When it goes if nobody uses it until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
    /// Whether it stays in any case.
    pub pinned: bool,
    /// Models of a higher priority do not go for it.
    pub priority: u8,
    /// While it loads: bytes in memory, and all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<[u64; 2]>,
    /// How often it was brought into memory since the server started.
    #[serde(default)]
    pub loads: u64,
    /// How long that took the last time, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_load_us: Option<u64>,
    /// How often its memory was given back.
    #[serde(default)]
    pub evictions: u64,
    /// How long that took the last time, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_eviction_us: Option<u64>,
    /// Why it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it will be tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_s: Option<u64>,
}

impl ModelView {
    /// A model that the engine knows.
    fn known(library: &Library, model: ModelStatus) -> Self {
        let tier = match model.state {
            ModelState::Resident => Tier::Device,
            _ => Tier::of_name(library.store(), &model.name, &model.digest),
        };
        let mut view = Self::absent(model.name, model.digest, tier, model.moves);
        view.state = model.state.to_string();
        match model.state {
            ModelState::Loading { done, total } => view.progress = Some([done, total]),
            ModelState::Failed { reason, retry_in, .. } => {
                (view.reason, view.retry_in_s) = (Some(reason), Some(retry_in.as_secs()));
            }
            _ => {}
        }
        Self {
            device: model.device.to_string(),
            bytes: model.bytes,
            leases: model.leases,
            unused_s: model.unused.as_secs(),
            expires_in_s: model.expires_in.map(|left| left.as_secs()),
            pinned: model.policy.pinned,
            priority: model.policy.priority,
            ..view
        }
    }

    /// One that it does not.
    fn absent(name: String, digest: String, tier: Tier, moves: Moves) -> Self {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            name,
            digest,
            state: "absent".into(),
            tier,
            cached_percent: None,
            device: String::new(),
            bytes: 0,
            leases: 0,
            unused_s: 0,
            expires_in_s: None,
            pinned: false,
            priority: 0,
            progress: None,
            loads: moves.loads,
            last_load_us: moves.last_load.map(us),
            evictions: moves.evictions,
            last_eviction_us: moves.last_eviction.map(us),
            reason: None,
            retry_in_s: None,
        }
    }
}

fn views(library: &Library) -> Vec<ModelView> {
    library.engines().models().into_iter().map(|model| ModelView::known(library, model)).collect()
}

/// The same, and those that are on disk or can be pulled. Blocks: the system is asked what it has of their files.
fn all(library: &Library) -> Vec<ModelView> {
    let mut views = views(library);
    for stored in library.store().list().unwrap_or_default() {
        let digest = stored.digest.to_string();
        let (tier, cached_percent) = Tier::of_model(library.store(), &stored);
        match views.iter_mut().find(|view| view.digest == digest && view.name == stored.name.as_str()) {
            Some(view) => view.cached_percent = cached_percent,
            None => {
                let moves = library.engines().moves(&digest);
                let tier = if library.engines().has_copy(&digest) { Tier::HostMemory } else { tier };
                // Another name of what is in memory is there, too.
                let tier = views.iter().find(|view| view.digest == digest).map_or(tier, |view| view.tier);
                let view = ModelView::absent(stored.name.to_string(), digest, tier, moves);
                views.push(ModelView { cached_percent, ..view });
            }
        }
    }
    for entry in catalog::ENTRIES {
        if !views.iter().any(|view| view.name == entry.name) {
            let digest = entry.digest().map_or(String::new(), |digest| digest.to_string());
            views.push(ModelView::absent(entry.name.into(), digest, Tier::Pullable, Moves::default()));
        }
    }
    views
}

pub(super) async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let library = app.host.library().clone();
    match query.as_deref() {
        None | Some("" | "follow=false" | "all=false") => Ok(Json(views(&library)).into_response()),
        Some("all=true") => {
            let all = tokio::task::spawn_blocking(move || all(&library)).await;
            let all = all.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, &error))?;
            Ok(Json(all).into_response())
        }
        Some("follow=true") => {
            let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
            Ok((kind, follow(library)).into_response())
        }
        Some(_) => Err(refuse(StatusCode::BAD_REQUEST, &"there are follow=true and all=true")),
    }
}

/// A line with all models now, and again whenever one changes.
fn follow(library: Arc<Library>) -> Body {
    let (lines, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut changes = library.engines().watch_models();
        loop {
            changes.borrow_and_update();
            let mut line = serde_json::to_vec(&views(&library)).expect("views have only string keys");
            line.push(b'\n');
            if lines.send(Bytes::from(line)).await.is_err() {
                return;
            }
            tokio::time::sleep(PACE).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = lines.closed() => return,
            }
        }
    });
    Body::new(Pieces(receiver))
}

pub(super) async fn evict(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let name: ModelName = name.parse().map_err(|error| refuse(StatusCode::BAD_REQUEST, &error))?;
    match app.host.library().evict(&name) {
        Ok(evicted) => Ok(Json(json!({ "evicted": evicted }))),
        Err(error) => Err(refuse(StatusCode::CONFLICT, &error)),
    }
}

fn refuse(status: StatusCode, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(status, "model", error.to_string())
}
