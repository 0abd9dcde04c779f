//! Functions: upload, deploy, list, share out, roll back, remove.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::access::{Caller, Note};
use super::{ApiError, App};
use crate::config::{Budget, Priority};
use crate::function_host::{DeployError, DeployRequest, Deployed, FunctionStatus, RevisionStatus};
use crate::keys::Scope;
use crate::names::FunctionName;
use crate::request::Summary;
use crate::traffic::Traffic;

/// What `PUT /v1/functions/{name}/traffic` takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficRequest {
    /// The shares of requests, in percent, by revision.
    pub to: Traffic,
}

pub(super) async fn upload(
    State(app): State<App>,
    Path(digest): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let digest = digest.parse().map_err(invalid)?;
    let bytes = bytes.map_err(|error| ApiError::new(error.status(), "body", error.body_text()))?;
    blocking(move || app.host.upload(digest, &bytes)).await?;
    Ok(StatusCode::CREATED)
}

pub(super) async fn list(State(app): State<App>, caller: Caller) -> Json<Vec<FunctionStatus>> {
    Json(match caller.scope {
        Scope::Admin => app.host.functions(),
        Scope::Read | Scope::Deploy => app.host.functions_of(&caller.tenant),
    })
}

pub(super) async fn deploy(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    request: Result<Json<DeployRequest>, JsonRejection>,
) -> Result<(Extension<Note>, Json<Deployed>), ApiError> {
    let (name, Json(request)) = (function(&name)?, request?);
    check_grants(&caller, &request)?;
    let tenant = caller.tenant_of(&app, &name);
    let component = request.component;
    let deployed = blocking(move || app.host.deploy(&tenant, name, request)).await?;
    let note = format!("{} of {component}", deployed.revision);
    Ok((Extension(Note(note)), Json(deployed)))
}

pub(super) async fn check(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    request: Result<Json<DeployRequest>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let (name, Json(request)) = (function(&name)?, request?);
    check_grants(&caller, &request)?;
    let tenant = caller.tenant_of(&app, &name);
    blocking(move || app.host.check(&tenant, &name, &request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = function(&name)?;
    let tenant = caller.tenant_of(&app, &name);
    blocking(move || app.host.remove(&tenant, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn revisions(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Vec<RevisionStatus>>, ApiError> {
    let name = function(&name)?;
    Ok(Json(app.host.revisions(&caller.tenant_of(&app, &name), &name)?))
}

pub(super) async fn traffic(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    request: Result<Json<TrafficRequest>, JsonRejection>,
) -> Result<(Extension<Note>, Json<FunctionStatus>), ApiError> {
    let (name, Json(request)) = (function(&name)?, request?);
    let tenant = caller.tenant_of(&app, &name);
    let status = blocking(move || app.host.set_traffic(&tenant, &name, request.to)).await?;
    Ok((shares(&status), Json(status)))
}

pub(super) async fn rollback(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<(Extension<Note>, Json<FunctionStatus>), ApiError> {
    let name = function(&name)?;
    let tenant = caller.tenant_of(&app, &name);
    let status = blocking(move || app.host.rollback(&tenant, &name)).await?;
    Ok((shares(&status), Json(status)))
}

pub(super) async fn invocations(State(app): State<App>, caller: Caller) -> Json<Vec<Summary>> {
    let mut recent = app.host.recent();
    if caller.scope < Scope::Admin {
        recent.retain(|summary| app.host.owner(&summary.function).as_ref() == Some(&caller.tenant));
    }
    Json(recent)
}

/// What reaches into the host itself, or takes from others, is an administrator's to grant: a tenant must not give itself the
/// host's files, what listens beside it, or more of the engine than others have.
fn check_grants(caller: &Caller, request: &DeployRequest) -> Result<(), ApiError> {
    if caller.scope >= Scope::Admin {
        return Ok(());
    }
    let config = &request.config;
    let directory = config.directories.first().map(|directory| format!("the directory {}", directory.host.display()));
    let egress = config.egress.iter().find(|rule| rule.may_lead_inside()).map(|rule| format!("egress to {rule}"));
    let priority = (config.priority == Priority::High).then(|| "the priority `high`".to_owned());
    let weight = config.budget.weight;
    let weight = (weight > Budget::default().weight).then(|| format!("the weight {weight}"));
    match directory.or(egress).or(priority).or(weight) {
        Some(grant) => {
            let why = format!("{grant} is an administrator's to grant; deploy it with a key of scope admin");
            Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", why))
        }
        None => Ok(()),
    }
}

/// For the audit log: how requests are shared out now.
fn shares(status: &FunctionStatus) -> Extension<Note> {
    let note = match &status.pending {
        Some(pending) => format!("{}, then {pending}", status.traffic),
        None => status.traffic.to_string(),
    };
    Extension(Note(note))
}

/// Runs what compiles or writes off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
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

fn function(name: &str) -> Result<FunctionName, ApiError> {
    name.parse().map_err(invalid)
}

pub(super) fn invalid(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid", error.to_string())
}

impl From<JsonRejection> for ApiError {
    fn from(error: JsonRejection) -> Self {
        Self::new(error.status(), "body", error.body_text())
    }
}

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> Self {
        let (status, code) = match &error {
            DeployError::Component { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "component"),
            DeployError::Middleware(_) => (StatusCode::UNPROCESSABLE_ENTITY, "middleware"),
            DeployError::NotUploaded(_) => (StatusCode::CONFLICT, "not-uploaded"),
            DeployError::WrongDigest { .. } => (StatusCode::BAD_REQUEST, "wrong-digest"),
            DeployError::Model(_) => (StatusCode::UNPROCESSABLE_ENTITY, "model"),
            DeployError::Config(_) => (StatusCode::UNPROCESSABLE_ENTITY, "config"),
            DeployError::RouteTaken { .. } | DeployError::RouteTakenElsewhere(_) => {
                (StatusCode::CONFLICT, "route-taken")
            }
            DeployError::NotYours(_) => (StatusCode::CONFLICT, "name-taken"),
            DeployError::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            DeployError::NoRevision { .. } => (StatusCode::NOT_FOUND, "no-revision"),
            DeployError::NoPrevious(_) => (StatusCode::CONFLICT, "no-previous"),
            DeployError::FirstWithoutTraffic(_) => (StatusCode::CONFLICT, "first-revision"),
            DeployError::Records(_) | DeployError::Disk(_) => (StatusCode::INTERNAL_SERVER_ERROR, "fault"),
        };
        if status.is_server_error() {
            tracing::error!(%error, "deployment failed");
        }
        Self::new(status, code, error.to_string())
    }
}
