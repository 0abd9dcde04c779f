//! Tenants: what they may use, and use.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};

use super::access::{Caller, Note};
use super::functions::{blocking, invalid};
use super::{ApiError, App};
use crate::config::Budget;
use crate::function_host::TenantStatus;
use crate::keys::Scope;
use crate::names::Tenant;

/// An administrator sees all of them, others their own.
pub(super) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<TenantStatus>>, ApiError> {
    let mut tenants = blocking(move || app.host.tenants()).await?;
    tenants.retain(|tenant| caller.scope >= Scope::Admin || tenant.name == caller.tenant);
    Ok(Json(tenants))
}

pub(super) async fn set_quota(
    State(app): State<App>,
    Path(name): Path<String>,
    quota: Result<Json<Budget>, JsonRejection>,
) -> Result<(Extension<Note>, StatusCode), ApiError> {
    let (name, Json(quota)) = (name.parse::<Tenant>().map_err(invalid)?, quota?);
    let note = Note(serde_json::to_string(&quota).expect("a budget is numbers"));
    blocking(move || app.host.set_quota(&name, quota)).await?;
    Ok((Extension(note), StatusCode::NO_CONTENT))
}
