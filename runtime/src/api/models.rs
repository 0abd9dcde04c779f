//! Resident models: which are in memory, and giving memory back.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{ApiError, App};
use crate::names::ModelName;

pub async fn resident(State(app): State<App>) -> Json<Value> {
    let models = app.host.library().engine().resident();
    let models: Vec<_> = models
        .iter()
        .map(
            |model| json!({ "name": model.name, "digest": model.digest, "bytes": model.bytes, "leases": model.leases }),
        )
        .collect();
    Json(models.into())
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
