//! What was used: sums, and single records. A tenant's key sees its own.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::access::Caller;
use super::{ApiError, App};
use crate::function_host::Host;
use crate::keys::Scope;
use crate::telemetry::unescaped;
use crate::usage::{MAX_RECORDS, Query, Report, UsageError, when};

pub(super) async fn sums(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Report>, ApiError> {
    let asked = Asked::parse(&query.unwrap_or_default(), &caller, false)?;
    let report = blocking(&app, move |host| host.usage().report(&asked.query)).await?;
    Ok(Json(report))
}

pub(super) async fn records(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let Asked { query, after, limit } = Asked::parse(&query.unwrap_or_default(), &caller, true)?;
    let records = blocking(&app, move |host| host.usage().records(&query, after, limit)).await?;
    let mut text = Vec::new();
    for record in &records {
        serde_json::to_writer(&mut text, record).expect("a record has only string keys");
        text.push(b'\n');
    }
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Bytes::from(text)).into_response())
}

async fn blocking<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Host) -> Result<T, UsageError> + Send + 'static,
) -> Result<T, ApiError> {
    let host: Arc<Host> = app.host.clone();
    let done = tokio::task::spawn_blocking(move || work(&host)).await;
    let why = match done {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    tracing::error!(why, "usage cannot be read");
    Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "fault", "the host failed; its log has the cause"))
}

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    query: Query,
    after: u64,
    limit: usize,
}

impl Asked {
    /// What `text` asks for; of single records if `single`.
    fn parse(text: &str, caller: &Caller, single: bool) -> Result<Self, ApiError> {
        let now = super::audit::now_ms() / 1000;
        let mut asked = Self { limit: MAX_RECORDS, ..Self::default() };
        let query = &mut asked.query;
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |why: String| invalid(format!("{key}: {why}"));
            let value = unescaped(value).ok_or_else(|| bad("it is not UTF-8, escaped with %".into()))?;
            let value = value.as_str();
            let number = || value.parse::<u64>().map_err(|_| bad("write a number".into()));
            match key {
                "tenant" => query.tenant = Some(value.parse().map_err(|error| bad(format!("{error}")))?),
                "function" => query.function = Some(value.parse().map_err(|error| bad(format!("{error}")))?),
                "model" => query.model = Some(value.parse().map_err(|error| bad(format!("{error}")))?),
                "since" => query.since = Some(when::parse(value, now).map_err(bad)?),
                "until" => query.until = Some(when::parse(value, now).map_err(bad)?),
                "by" if !single => query.by = value.parse().map_err(bad)?,
                "after" if single => asked.after = number()?,
                "limit" if single => asked.limit = usize::try_from(number()?).unwrap_or(usize::MAX),
                _ => {
                    let more = if single { "after and limit" } else { "by" };
                    return Err(invalid(format!("`{key}`: there are tenant, function, model, since, until, {more}")));
                }
            }
        }
        if caller.scope < Scope::Admin {
            if query.tenant.as_ref().is_some_and(|tenant| *tenant != caller.tenant) {
                let why = "the usage of other tenants is an administrator's to see; leave `tenant` out";
                return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", why));
            }
            query.tenant = Some(caller.tenant.clone());
        }
        Ok(asked)
    }
}

fn invalid(why: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::By;

    fn parse(text: &str, scope: Scope, single: bool) -> Result<Asked, StatusCode> {
        let caller = Caller { id: "x".into(), tenant: "acme".parse().unwrap(), scope };
        Asked::parse(text, &caller, single).map_err(|error| error.status)
    }

    #[test]
    fn a_tenant_asks_for_its_own_only() {
        let all = parse("", Scope::Admin, false).unwrap();
        assert_eq!(all.query, Query::default());
        for text in ["", "tenant=acme"] {
            assert_eq!(parse(text, Scope::Read, true).unwrap().query.tenant, Some("acme".parse().unwrap()));
        }
        assert_eq!(parse("tenant=globex", Scope::Deploy, false), Err(StatusCode::FORBIDDEN));
        let asked = parse("tenant=globex&model=smollm2%3A135m&since=2026-11-25&by=hour", Scope::Admin, false).unwrap();
        assert_eq!((asked.query.by, asked.query.since), (By::Hour, Some(1_795_564_800)));
        assert_eq!(asked.query.model, Some("smollm2:135m".parse().unwrap()));
        for (text, single) in
            [("by=week", false), ("by=hour", true), ("after=1", false), ("since=x", true), ("x=1", true)]
        {
            assert_eq!(parse(text, Scope::Admin, single), Err(StatusCode::BAD_REQUEST), "{text}");
        }
    }
}
