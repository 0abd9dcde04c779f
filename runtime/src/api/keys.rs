//! Keys: make, list, revoke.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::access::Note;
use super::{ApiError, App};
use crate::keys::{KeyRecord, KeysError, Scope};
use crate::names::Tenant;

/// What `POST /v1/keys` takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What a person calls it.
    pub name: String,
    /// Whose functions it reaches.
    #[serde(default)]
    pub tenant: Tenant,
    /// What it allows.
    pub scope: Scope,
}

/// A key, as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyStatus {
    /// What it is called in the audit log.
    pub id: String,
    /// What a person calls it.
    pub name: String,
    /// Whose functions it reaches.
    pub tenant: Tenant,
    /// What it allows.
    pub scope: Scope,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
    /// The key itself; only when it was just made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl KeyStatus {
    fn new(record: KeyRecord, key: Option<String>) -> Self {
        let KeyRecord { id, name, tenant, scope, created_at, hash: _ } = record;
        Self { id, name, tenant, scope, created_at, key }
    }
}

pub(super) async fn create(
    State(app): State<App>,
    request: Result<Json<NewKey>, JsonRejection>,
) -> Result<(StatusCode, Extension<Note>, Json<KeyStatus>), ApiError> {
    let Json(NewKey { name, tenant, scope }) = request?;
    let (record, key) = app.host.keys().create(&name, tenant, scope)?;
    let note = Note(format!("key {}: {} of {}", record.id, scope.as_str(), record.tenant));
    Ok((StatusCode::CREATED, Extension(note), Json(KeyStatus::new(record, Some(key)))))
}

pub(super) async fn list(State(app): State<App>) -> Json<Vec<KeyStatus>> {
    Json(app.host.keys().list().into_iter().map(|record| KeyStatus::new(record, None)).collect())
}

pub(super) async fn revoke(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.host.keys().revoke(&id)?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<KeysError> for ApiError {
    fn from(error: KeysError) -> Self {
        let (status, code) = match &error {
            KeysError::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            KeysError::Name(_) => (StatusCode::BAD_REQUEST, "invalid"),
            KeysError::Random(_) | KeysError::Records(_) => (StatusCode::INTERNAL_SERVER_ERROR, "fault"),
        };
        if status.is_server_error() {
            tracing::error!(%error, "keys cannot be changed");
        }
        Self::new(status, code, error.to_string())
    }
}
