//! Models that are in memory or on their way there, and giving memory back.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hob_gpu::{Engine, ModelState, ModelStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::observe::Pieces;
use super::{ApiError, App};
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
    /// `loading`, `resident`, `evicting` or `failed`.
    pub state: String,
    /// The device that it is on.
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
    /// Why it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it will be tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_s: Option<u64>,
}

impl From<ModelStatus> for ModelView {
    fn from(model: ModelStatus) -> Self {
        let (mut progress, mut reason, mut retry_in_s) = (None, None, None);
        let state = model.state.to_string();
        match model.state {
            ModelState::Loading { done, total } => progress = Some([done, total]),
            ModelState::Failed { reason: why, retry_in, .. } => {
                (reason, retry_in_s) = (Some(why), Some(retry_in.as_secs()));
            }
            _ => {}
        }
        Self {
            name: model.name,
            digest: model.digest,
            state,
            device: model.device.into(),
            bytes: model.bytes,
            leases: model.leases,
            unused_s: model.unused.as_secs(),
            expires_in_s: model.expires_in.map(|left| left.as_secs()),
            pinned: model.policy.pinned,
            priority: model.policy.priority,
            progress,
            reason,
            retry_in_s,
        }
    }
}

fn views(engine: &Engine) -> Vec<ModelView> {
    engine.models().into_iter().map(ModelView::from).collect()
}

pub async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let engine = app.host.library().engine();
    match query.as_deref() {
        None | Some("" | "follow=false") => Ok(Json(views(engine)).into_response()),
        Some("follow=true") => {
            let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
            Ok((kind, follow(engine.clone())).into_response())
        }
        Some(_) => Err(refuse(StatusCode::BAD_REQUEST, &"there is follow=true")),
    }
}

/// A line with all models now, and again whenever one changes.
fn follow(engine: Engine) -> Body {
    let (lines, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut changes = engine.watch_models();
        loop {
            changes.borrow_and_update();
            let mut line = serde_json::to_vec(&views(&engine)).expect("views have only string keys");
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

pub async fn evict(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let name: ModelName = name.parse().map_err(|error| refuse(StatusCode::BAD_REQUEST, &error))?;
    match app.host.library().evict(&name) {
        Ok(evicted) => Ok(Json(json!({ "evicted": evicted }))),
        Err(error) => Err(refuse(StatusCode::CONFLICT, &error)),
    }
}

fn refuse(status: StatusCode, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(status, "model", error.to_string())
}
