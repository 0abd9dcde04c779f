//! `/v1/models`: what is in the store.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::function_host::Host;
use crate::model_api::ask::resolve;
use crate::model_api::body;
use crate::model_api::refused::Refused;
use crate::models::store::Manifest;
use crate::request::Body;

/// All models.
pub(in crate::model_api) fn list(host: &Arc<Host>) -> Result<Response<Body>, Refused> {
    let models = host.library().store().list().map_err(|error| Refused::fault(error.to_string()))?;
    let data: Vec<Value> = models.iter().map(view).collect();
    Ok(body::json(StatusCode::OK, &json!({ "object": "list", "data": data })))
}

/// The model that `path` ends with.
pub(in crate::model_api) fn one(host: &Arc<Host>, path: &str) -> Result<Response<Body>, Refused> {
    let name = path.strip_prefix("/v1/models/").unwrap_or_default().replace("%3A", ":").replace("%3a", ":");
    Ok(body::json(StatusCode::OK, &view(&resolve(host, &name)?)))
}

fn view(model: &Manifest) -> Value {
    json!({ "id": model.name, "object": "model", "created": model.pulled_at, "owned_by": "hob" })
}
