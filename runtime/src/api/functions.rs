//! Functions: upload, deploy, list, remove.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::{ApiError, App};
use crate::function_host::{DeployError, DeployRequest, FunctionStatus};
use crate::names::FunctionName;
use crate::records::{FunctionRecord, RecordsError};

pub async fn upload(
    State(app): State<App>,
    Path(digest): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let digest = digest.parse().map_err(invalid)?;
    let bytes = bytes.map_err(|error| ApiError::new(error.status(), "body", error.body_text()))?;
    blocking(move || app.host.upload(digest, &bytes)).await?;
    Ok(StatusCode::CREATED)
}

pub async fn list(State(app): State<App>) -> Json<Vec<FunctionStatus>> {
    Json(app.host.functions())
}

pub async fn deploy(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Result<Json<DeployRequest>, JsonRejection>,
) -> Result<Json<FunctionRecord>, ApiError> {
    let name: FunctionName = name.parse().map_err(invalid)?;
    let Json(request) = request.map_err(|error| ApiError::new(error.status(), "body", error.body_text()))?;
    Ok(Json(blocking(move || app.host.deploy(name, request)).await?))
}

pub async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let name: FunctionName = name.parse().map_err(invalid)?;
    blocking(move || app.host.remove(&name).map_err(DeployError::from)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Runs what compiles or writes off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeployError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(ApiError::from),
        Err(panic) => {
            tracing::error!(%panic, "a deployment panicked");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "fault", "the host failed; its log has the cause"))
        }
    }
}

fn invalid(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid", error.to_string())
}

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> Self {
        let (status, code) = match &error {
            DeployError::Component { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "component"),
            DeployError::NotUploaded(_) => (StatusCode::CONFLICT, "not-uploaded"),
            DeployError::WrongDigest { .. } => (StatusCode::BAD_REQUEST, "wrong-digest"),
            DeployError::Model(_) => (StatusCode::UNPROCESSABLE_ENTITY, "model"),
            DeployError::Limit { .. } => (StatusCode::BAD_REQUEST, "limit"),
            DeployError::Records(RecordsError::RouteTaken { .. }) => (StatusCode::CONFLICT, "route-taken"),
            DeployError::Records(RecordsError::NotFound(_)) => (StatusCode::NOT_FOUND, "not-found"),
            DeployError::Records(_) | DeployError::Disk(_) => (StatusCode::INTERNAL_SERVER_ERROR, "fault"),
        };
        if status.is_server_error() {
            tracing::error!(%error, "deployment failed");
        }
        Self::new(status, code, error.to_string())
    }
}
