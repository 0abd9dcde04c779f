//! Models on disk: getting them, names for them, and removing them.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hob_gpu::ModelState;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::observe::Pieces;
use super::{ApiError, App};
use crate::models::Freed;
use crate::models::pull::{PullRequest, follow};
use crate::models::store::{ModelStore, StoreError};
use crate::models::view::StoredModel;
use crate::models::wanted::Wanted;
use crate::names::ModelName;

/// What `POST /v1/models/pull` takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullCall {
    /// A short name, or where a model lies, as `hob models pull` takes it.
    pub source: String,
    /// What to call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ModelName>,
    /// Read what is here already, and get what is damaged.
    #[serde(default)]
    pub check: bool,
}

/// What `POST /v1/models/stored/{name}/copy` takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyCall {
    /// The other name.
    pub to: ModelName,
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Vec<StoredModel>>, ApiError> {
    let read = |store: &ModelStore| Ok(store.list()?.into_iter().map(|model| StoredModel::of(store, model)).collect());
    let mut models: Vec<StoredModel> = on_disk(&app, read).await?;
    place(&app, &mut models);
    Ok(Json(models))
}

pub(super) async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Json<StoredModel>, ApiError> {
    let name = parse(&name)?;
    let mut model = on_disk(&app, move |store| Ok(StoredModel::of(store, store.get(&name)?))).await?;
    place(&app, std::slice::from_mut(&mut model));
    Ok(Json(model))
}

/// Says of those that are in a device's memory that they are.
fn place(app: &App, models: &mut [StoredModel]) {
    let known = app.host.library().engines().models();
    for status in known.iter().filter(|status| matches!(status.state, ModelState::Resident)) {
        models.iter_mut().for_each(|model| model.is_on(&status.digest, &status.device.to_string()));
    }
}

pub(super) async fn copy(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(call): Json<CopyCall>,
) -> Result<StatusCode, ApiError> {
    let name = parse(&name)?;
    on_disk(&app, move |store| store.copy(&name, &call.to).map(|()| StatusCode::NO_CONTENT)).await
}

/// What nobody can ask for any more gives its memory back, too, as soon as nobody uses it.
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Freed>, ApiError> {
    let name = parse(&name)?;
    let library = app.host.library().clone();
    on_disk(&app, move |_| library.remove(&name).map(Json)).await
}

pub(super) async fn collect(State(app): State<App>) -> Result<Json<Freed>, ApiError> {
    on_disk(&app, |store| store.collect().map(Json)).await
}

pub(super) async fn pull(State(app): State<App>, Json(call): Json<PullCall>) -> Result<Response, ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::new(StatusCode::BAD_REQUEST, "model", error.to_string());
    let wanted: Wanted = call.source.parse().map_err(|error| bad(&error))?;
    if let Wanted::Disk(_) = wanted {
        return Err(bad(&"file: is a file of the machine that hob runs on; pull it there, with `hob models pull`"));
    }
    let request = PullRequest { wanted, name: call.name, check: call.check };
    let mut progress = follow(app.host.library().store().clone(), request);
    let (send, lines) = mpsc::channel(4);
    tokio::spawn(async move {
        // When the client leaves, sending fails, and with the receiver the pull goes.
        while let Some(line) = progress.recv().await {
            let mut text = serde_json::to_vec(&line).expect("a line is strings and numbers");
            text.push(b'\n');
            if send.send(Bytes::from(text)).await.is_err() {
                return;
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Pieces(lines))).into_response())
}

/// Does something that waits for the disk, where nobody else has to.
async fn on_disk<T: Send + 'static>(
    app: &App,
    does: impl FnOnce(&ModelStore) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = app.host.library().store().clone();
    let done = tokio::task::spawn_blocking(move || does(&store)).await;
    let done = done.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "fault", error.to_string()))?;
    done.map_err(|error| {
        let status = match error {
            StoreError::NotFound(_) => StatusCode::NOT_FOUND,
            StoreError::Taken(_) | StoreError::Pulling | StoreError::Damaged { .. } | StoreError::Gone(_) => {
                StatusCode::CONFLICT
            }
            StoreError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            StoreError::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, "model", error.to_string())
    })
}

fn parse(name: &str) -> Result<ModelName, ApiError> {
    name.parse()
        .map_err(|error: crate::names::NameError| ApiError::new(StatusCode::BAD_REQUEST, "model", error.to_string()))
}
