//! The control API: JSON over HTTP on a listener of its own, for those who hold its key.
//!
//! | call | does |
//! |---|---|
//! | `GET /v1/status` | version, data listener, code path of the engine |
//! | `PUT /v1/components/{digest}` | uploads a component |
//! | `GET /v1/functions` | lists functions |
//! | `PUT /v1/functions/{name}` | deploys one ([`DeployRequest`]) |
//! | `POST /v1/functions/{name}/check` | says what deploying would be refused for |
//! | `DELETE /v1/functions/{name}` | removes one |
//! | `GET /v1/functions/{name}/revisions` | its revisions, newest first |
//! | `PUT /v1/functions/{name}/traffic` | shares its requests out ([`TrafficRequest`]) |
//! | `POST /v1/functions/{name}/rollback` | goes back to how that was before |
//! | `GET /v1/invocations` | the last invocations, with their times |
//! | `GET /v1/models/resident` | models in memory |
//! | `DELETE /v1/models/resident/{name}` | gives back the memory of an unused model |
//!
//! An error is `{"error":{"code":...,"message":...}}`.
//!
//! [`DeployRequest`]: crate::function_host::DeployRequest

mod functions;
mod models;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::data::{DataDir, write_private};
use crate::function_host::Host;
use crate::names::Tenant;

pub use functions::TrafficRequest;

/// Largest component that can be uploaded, in bytes.
pub const MAX_COMPONENT_BYTES: usize = 256 << 20;

/// How to reach a running server; kept in the data directory, readable by its owner only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlFile {
    /// Where the control API listens.
    pub address: SocketAddr,
    /// The key that every call must carry, as `Authorization: Bearer`.
    pub key: String,
    /// The server's process.
    pub pid: u32,
}

/// What `GET /v1/status` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// Where functions are called.
    pub listen: SocketAddr,
    /// Which instructions the engine uses: `avx512-vnni`, `avx2`, `neon`, `portable`...
    pub code_path: String,
}

/// What the handlers share.
#[derive(Clone)]
struct App {
    host: Arc<Host>,
    status: Status,
    key: Arc<str>,
}

/// A running control API; its file is removed when it is dropped.
pub struct Control {
    address: SocketAddr,
    data: DataDir,
}

impl Control {
    /// Listens on `listen`, and writes down where for `hob` commands that use the same data directory.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the file not written.
    pub async fn start(host: Arc<Host>, listen: SocketAddr, data_listener: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let key = random_key()?;
        let data = host.data().clone();
        let file = ControlFile { address, key: key.clone(), pid: std::process::id() };
        let text = serde_json::to_vec_pretty(&file).expect("the file has only string keys");
        write_private(&data.control(), &text)?;
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            listen: data_listener,
            code_path: host.library().engine().code_path().to_string(),
        };
        let router = router(App { host, status, key: key.into() });
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the control API ended");
            }
        });
        Ok(Self { address, data })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Left behind, it only makes commands say that nobody answers.
        let _ = std::fs::remove_file(self.data.control());
    }
}

fn router(app: App) -> Router {
    let upload = put(functions::upload).layer(axum::extract::DefaultBodyLimit::max(MAX_COMPONENT_BYTES));
    Router::new()
        .route("/v1/status", get(|State(app): State<App>| async move { Json(app.status) }))
        .route("/v1/components/{digest}", upload)
        .route("/v1/functions", get(functions::list))
        .route("/v1/functions/{name}", put(functions::deploy).delete(functions::remove))
        .route("/v1/functions/{name}/check", post(functions::check))
        .route("/v1/functions/{name}/revisions", get(functions::revisions))
        .route("/v1/functions/{name}/traffic", put(functions::traffic))
        .route("/v1/functions/{name}/rollback", post(functions::rollback))
        .route("/v1/invocations", get(|State(app): State<App>| async move { Json(app.host.recent()) }))
        .route("/v1/models/resident", get(models::resident))
        .route("/v1/models/resident/{name}", delete(models::evict))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "not-found", "no such call") })
        .layer(axum::middleware::from_fn_with_state(app.clone(), authenticate))
        .with_state(app)
}

async fn authenticate(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    if given.is_some_and(|given| same(given.as_bytes(), app.key.as_bytes())) {
        return next.run(request).await;
    }
    let why = "the control API needs its key, as `Authorization: Bearer`; it is in control.json in the data directory";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", why).into_response()
}

impl FromRequestParts<App> for Tenant {
    type Rejection = std::convert::Infallible;

    /// Whom a call is made for.
    async fn from_request_parts(_parts: &mut axum::http::request::Parts, _app: &App) -> Result<Self, Self::Rejection> {
        Ok(Self::default())
    }
}

/// Compares without telling, by the time it takes, how much is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// 256 bits from the system's generator.
fn random_key() -> io::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A refusal, as JSON.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": { "code": self.code, "message": self.message } });
        (self.status, Json(body)).into_response()
    }
}
