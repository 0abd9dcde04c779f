//! The host in somebody else's program: built there, and its functions called there, without a listener.
//!
//! A function is a [`tower_service::Service`], so it takes the place of a handler in an axum or tower server, under
//! whatever layers that has. Traffic, limits, metrics and logs are those of a request that came over a socket.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hob_gpu::EngineConfig;
use http::{Request, Response};
use tower_service::Service;

use super::{Host, HostConfig, HostError};
use crate::data::DataDir;
use crate::names::FunctionName;
use crate::request::{Body, BoxError};

/// How a host is to be. Made by [`Host::builder`].
#[derive(Debug, Default)]
#[must_use]
pub struct HostBuilder {
    data: Option<PathBuf>,
    config: HostConfig,
}

impl HostBuilder {
    /// Where it keeps functions and models; `~/.local/share/hob`, unless said. One host at a time has a directory.
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data = Some(directory.into());
        self
    }

    /// Instances that can live at once. Address space is reserved for them.
    pub fn instances(mut self, instances: u32) -> Self {
        self.config.pool.instances = instances;
        self
    }

    /// The inference engine.
    pub fn engine(mut self, engine: EngineConfig) -> Self {
        self.config.engine = engine;
        self
    }

    /// All that can be configured, in place of what was.
    pub fn config(mut self, config: HostConfig) -> Self {
        self.config = config;
        self
    }

    /// Opens it. Blocks while it reads what is deployed.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn build(self) -> Result<Arc<Host>, HostError> {
        Host::open(DataDir::open(self.data.as_deref())?, self.config)
    }
}

impl Host {
    /// Begins to build one.
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// A deployed function, to be called whatever its routes are. It stays what is called by its name: a deployment, or a
    /// change of traffic, takes effect at the next call. `None` if there is none of this name.
    pub fn function(self: &Arc<Self>, name: &str) -> Option<FunctionService> {
        let name: FunctionName = name.parse().ok()?;
        self.table.load().get(&name)?;
        Some(FunctionService { host: self.clone(), name, calls: Arc::default() })
    }
}

/// A function of a host, as a service. Clones are the same function.
#[derive(Clone)]
pub struct FunctionService {
    host: Arc<Host>,
    name: FunctionName,
    /// Whose turn it is, of several revisions.
    calls: Arc<AtomicU64>,
}

impl<B> Service<Request<B>> for FunctionService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    /// What goes wrong is an answer.
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    /// Always: a request waits at its function's gate, and is refused there.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { host, name, calls } = self.clone();
        let started = Instant::now();
        Box::pin(async move {
            let turn = calls.fetch_add(1, Ordering::Relaxed);
            let (parts, body) = request.into_parts();
            let found = host.table.load().of_function(&name, &parts, turn);
            let request = Request::from_parts(parts, body);
            Ok(match found {
                Ok(revision) => host.handle_in(&revision, request, started).await,
                Err(error) => host.lost(&error),
            })
        })
    }
}
