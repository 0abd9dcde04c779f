//! Who calls: the key is looked up, what it allows compared with what the call needs, and changes are noted.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::audit::{Entry, now_ms};
use super::{ApiError, App};
use crate::keys::Scope;
use crate::names::{FunctionName, Tenant};

/// The holder of a key.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key's id, or `local`.
    pub id: String,
    /// Whose functions it reaches.
    pub tenant: Tenant,
    /// What it may do.
    pub scope: Scope,
}

/// What a call came to, for the audit log.
#[derive(Clone, Debug)]
pub struct Note(pub String);

impl Caller {
    /// Whom a call about `function` is made for: an administrator reaches the functions of all tenants.
    pub fn tenant_of(&self, app: &App, function: &FunctionName) -> Tenant {
        let owner = (self.scope == Scope::Admin).then(|| app.host.owner(function)).flatten();
        owner.unwrap_or_else(|| self.tenant.clone())
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized)
    }
}

/// Lets through who has a key, and notes what they change.
pub(super) async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let call = format!("{} {}", request.method(), request.uri().path());
    let changes = request.method() != Method::GET;
    let Some(caller) = caller(&app, &request) else {
        let refusal = unauthorized();
        if app.audit.notes_refused() {
            let (status, result) = (refusal.status.as_u16(), "no good key".into());
            let entry = Entry { at_ms: now_ms(), who: "-".into(), tenant: "-".into(), call, status, result };
            let _ = note(&app, entry).await;
        }
        return refusal.into_response();
    };
    request.extensions_mut().insert(caller.clone());
    if !changes {
        return next.run(request).await;
    }
    // In a task of its own: what is changed is noted also when its caller has left.
    let changed = tokio::spawn(async move { change(&app, caller, call, next.run(request).await).await });
    changed.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a call of the control API panicked");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "fault", "the host failed; its log has the cause")
            .into_response()
    })
}

/// Notes what came of a call that changes something.
async fn change(app: &App, caller: Caller, call: String, response: Response) -> Response {
    let result = response.extensions().get::<Note>().map(|note| note.0.clone()).unwrap_or_default();
    let (who, tenant, status) = (caller.id, caller.tenant.to_string(), response.status().as_u16());
    if note(app, Entry { at_ms: now_ms(), who, tenant, call, status, result }).await.is_err() {
        let why = format!("the call was answered with {status}, but the audit log cannot be written");
        return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "audit", why).into_response();
    }
    response
}

/// Notes a call where waiting for the disk holds up nobody.
async fn note(app: &App, entry: Entry) -> Result<(), ()> {
    let (audit, call) = (app.audit.clone(), entry.call.clone());
    let noted = tokio::task::spawn_blocking(move || audit.note(&entry)).await;
    match noted.map_err(std::io::Error::other).flatten() {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(%error, call, "the audit log cannot be written");
            Err(())
        }
    }
}

/// Lets through whose key has the scope that a call needs.
pub(super) async fn authorize(needs: Scope, caller: Caller, request: Request, next: Next) -> Response {
    if caller.scope >= needs {
        return next.run(request).await;
    }
    let (has, needs) = (caller.scope.as_str(), needs.as_str());
    let why = format!("this call needs a key of scope {needs}; this one has {has}");
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", why).into_response()
}

fn caller(app: &App, request: &Request) -> Option<Caller> {
    let given = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let given = given.strip_prefix("Bearer ")?;
    if same(given.as_bytes(), app.key.as_bytes()) {
        return Some(Caller { id: "local".into(), tenant: Tenant::default(), scope: Scope::Admin });
    }
    let key = app.host.keys().find(given)?;
    Some(Caller { id: key.id, tenant: key.tenant, scope: key.scope })
}

fn unauthorized() -> ApiError {
    let why = "the control API needs a key, as `Authorization: Bearer`; make one with `hob keys create`, or take the one in control.json in the data directory";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", why)
}

/// Compares without telling, by the time it takes, how much is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
