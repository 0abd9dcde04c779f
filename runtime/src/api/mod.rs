//! The control API: JSON over HTTP on a listener of its own, for those who hold a key.
//!
//! [`calls`] is the table of all calls; `GET /v1/openapi.json` describes them, and needs no key. An error is
//! `{"error":{"code":...,"message":...}}`. What changes something is noted in `audit.jsonl` in the data directory.

mod access;
mod audit;
pub mod calls;
mod functions;
mod keys;
mod models;
mod observe;
mod openapi;
mod secure;
mod store;
mod tenants;
mod usage;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::data::{DataDir, write_private};
use crate::function_host::Host;
use crate::keys::random_hex;
use crate::server::ServerTls;
use audit::Audit;
use secure::SecureListener;

pub use functions::TrafficRequest;
pub use keys::{KeyStatus, NewKey};
pub use models::ModelView;
pub use store::{CopyCall, PullCall};

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
pub struct App {
    host: Arc<Host>,
    status: Status,
    /// The key in `control.json`.
    key: Arc<str>,
    audit: Arc<Audit>,
}

/// How the control API is reached.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// A listener that is there already, in place of a new one.
    pub listener: Option<Arc<std::net::TcpListener>>,
    /// Speak TLS there. Commands on this machine then have a listener of their own, on loopback and without: the
    /// certificate is for the names by which others know the host.
    pub tls: Option<ServerTls>,
}

impl ControlConfig {
    /// Listens on `listen` without TLS.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, listener: None, tls: None }
    }
}

/// A running control API; its file is removed when it is dropped.
pub struct Control {
    address: SocketAddr,
    data: DataDir,
}

impl Control {
    /// Listens, and writes down where for `hob` commands that use the same data directory.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the file not written.
    #[expect(
        clippy::manual_async_fn,
        reason = "the body of a public `async fn` is compiled for the library's own tests, too"
    )]
    pub fn start(
        host: Arc<Host>,
        config: ControlConfig,
        data_listener: SocketAddr,
    ) -> impl Future<Output = io::Result<Self>> + Send {
        async move {
            let listener = crate::server::listener(config.listen, config.listener).await?;
            let address = listener.local_addr()?;
            let local = match &config.tls {
                Some(_) => Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?),
                None => None,
            };
            let local_address = local.as_ref().map_or(Ok(address), TcpListener::local_addr)?;
            let key = random_hex(32)?;
            let data = host.data().clone();
            let audit = Arc::new(Audit::open(&data.audit())?);
            let file = ControlFile { address: local_address, key: key.clone(), pid: std::process::id() };
            let text = serde_json::to_vec_pretty(&file).expect("the file has only string keys");
            write_private(&data.control(), &text)?;
            let status = Status {
                version: env!("CARGO_PKG_VERSION").into(),
                listen: data_listener,
                code_path: host.library().engines().runs_on(),
            };
            let router = router(App { host, status, key: key.into(), audit });
            match (config.tls, local) {
                (Some(tls), Some(local)) => {
                    serve(SecureListener::start(listener, tls)?, router.clone());
                    serve(local, router);
                }
                _ => serve(listener, router),
            }
            Ok(Self { address, data })
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn serve<L: Listener<Addr: std::fmt::Debug>>(listener: L, router: Router) {
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the control API ended");
        }
    });
}

impl Drop for Control {
    fn drop(&mut self) {
        // Left behind, it only makes commands say that nobody answers.
        let _ = std::fs::remove_file(self.data.control());
    }
}

fn router(app: App) -> Router {
    let mut calls = Router::new();
    for call in calls::all() {
        let needs = call.needs;
        let authorize =
            move |caller: access::Caller, request: Request, next: Next| access::authorize(needs, caller, request, next);
        calls = calls.route(call.path, call.handler.layer(middleware::from_fn_with_state(app.clone(), authorize)));
    }
    calls
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not-found", "no such call; /v1/openapi.json has them all")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                "this path has other methods; /v1/openapi.json has them all",
            )
        })
        .layer(middleware::from_fn_with_state(app.clone(), access::authenticate))
        .route("/v1/openapi.json", get(|| async { Json(openapi::document()) }))
        .with_state(app)
}

/// A refusal, as JSON.
#[derive(Debug)]
pub struct ApiError {
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
        // What is wrong with a body may show what is in it, and that may be a secret.
        let note = if self.code == "body" { "body".into() } else { format!("{}: {}", self.code, self.message) };
        let note = access::Note(note);
        (self.status, axum::Extension(note), Json(body)).into_response()
    }
}
