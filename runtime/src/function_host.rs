//! The host: functions, deployed and called. What the server serves and an embedder holds.
//!
//! [`deploy`] changes it, [`table`] finds what answers a request, [`function`] is what is found.

mod called;
pub mod deploy;
mod drain;
mod embed;
pub mod function;
mod observe;
mod plugin;
mod quota;
mod sweep;
pub mod table;
mod warm;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hob_gpu::{EngineConfig, EngineDevice, Engines};
use http::{Request, Response};
use tokio::sync::Semaphore;

use crate::budget::Budgets;
use crate::components::{Components, Sweeper};
use crate::config::Secrets;
use crate::data::{DataDir, DataError};
use crate::digest::Digest;
use crate::host::egress::{Tls, TlsError};
use crate::host::keyvalue::Stores;
use crate::instance::Services;
use crate::instance::component::ComponentError;
use crate::instance::engine::{PoolConfig, WasmEngine};
use crate::keys::Keys;
use crate::models::Library;
use crate::models::keep;
use crate::models::store::ModelStore;
use crate::names::{FunctionName, Tenant};
use crate::records::{Records, RecordsError};
use crate::request::{self, Body, BoxError, Callable, Invocation, Recent, RequestError, Summary};
use crate::telemetry::{
    Collector, Exporter, ExporterError, SERVER_TIMING, TRACEPARENT, Telemetry, Trace, server_timing,
};
use crate::usage::{Usage, UsageError};

pub use called::{Called, MODEL_API};
pub use deploy::{DeployError, DeployRequest, Deployed};
pub use embed::{FunctionService, HostBuilder};
use function::{Function, Revision};
pub use function::{FunctionState, FunctionStatus, RevisionState, RevisionStatus};
pub use plugin::{CallError, Plugin};
pub use quota::TenantStatus;
use table::Table;

/// What a host is made of.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Instances that can live at once.
    pub pool: PoolConfig,
    /// The inference engine, or each of several.
    pub engine: EngineConfig,
    /// What computes, an engine on each; the engine's own device if there is nothing here.
    pub devices: Vec<EngineDevice>,
    /// Files in PEM form with more certificate authorities that outgoing connections trust, beside those of the web.
    pub egress_roots: Vec<std::path::PathBuf>,
    /// Most components that are mapped at once; as many as the process may map, unless said.
    pub mapped_components: Option<usize>,
    /// Answers do not say in a `Server-Timing` header where their time went.
    pub hide_timing: bool,
    /// Where traces of requests go; nowhere, unless said.
    pub traces: Option<Collector>,
    /// Instances have no limits of their own, no deadlines, and leave no numbers: what a benchmark measures to tell what
    /// all these cost. Nothing but a program that embeds the host can ask for it, and none should.
    #[doc(hidden)]
    pub free: bool,
}

/// Why a host does not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The data directory.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The records in it.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The instance pool.
    #[error("the instance pool cannot be reserved: {0:#}; lower --instances")]
    Pool(wasmtime::Error),
    /// No thread for what goes on behind the scenes.
    #[error("no thread can be started: {0}")]
    Thread(std::io::Error),
    /// The certificates for outgoing connections.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The way to the collector of traces.
    #[error(transparent)]
    Traces(#[from] ExporterError),
    /// What was used cannot be written down.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The inference engine.
    #[error("the inference engine does not start: {0}")]
    Engine(#[from] hob_gpu::StartError),
}

/// Functions, their components and the models they share.
pub struct Host {
    /// Itself, for what goes on behind the scenes.
    me: Weak<Self>,
    data: DataDir,
    pool: PoolConfig,
    records: Arc<Records>,
    keys: Keys,
    services: Services,
    components: Arc<Components>,
    _sweeper: Sweeper,
    /// Held by whoever changes records and table: both must change in the same order.
    changing: Mutex<()>,
    table: ArcSwap<Table>,
    /// Why the new revision of a function does not get its models.
    warming: Mutex<HashMap<FunctionName, String>>,
    /// Components that came lately, and may not be named by a revision yet.
    uploads: Mutex<HashMap<Digest, Instant>>,
    recent: Arc<Recent>,
    usage: Usage,
    /// No more requests are taken.
    draining: AtomicBool,
    /// Held by each call that no guest sees.
    calls: Arc<()>,
    telemetry: Arc<Telemetry>,
    hide_timing: bool,
    exporter: Option<Arc<Exporter>>,
}

impl Host {
    /// Opens a data directory, and puts every function recorded there into service. Blocks while it does.
    ///
    /// Components are mapped when they are called first. One that cannot be breaks its own function, which answers with
    /// the reason.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn open(data: DataDir, config: HostConfig) -> Result<Arc<Self>, HostError> {
        let records = Arc::new(Records::open(&data.records())?);
        let keys = Keys::open(records.clone())?;
        data.sweep();
        let wasm = WasmEngine::start(config.pool, config.free).map_err(HostError::Pool)?;
        let engines = Engines::start(&config.engine, &config.devices)?;
        let library = Arc::new(Library::new(ModelStore::new(data.clone()), engines));
        keep::start(&library).map_err(HostError::Thread)?;
        let functions = records.all()?.into_iter();
        let functions = functions.map(|(name, (record, revisions))| (name, Arc::new(Function::new(record, revisions))));
        let table = Table::new(functions.collect::<BTreeMap<_, _>>());
        let services = Services {
            library,
            stores: Arc::new(Stores::new(data.root().join("stores"))),
            tls: Tls::new(&config.egress_roots)?,
            budgets: Arc::new(Budgets::default()),
            instances: config.pool.instances,
            idle: Arc::new(Semaphore::new(config.pool.instances as usize / 2)),
            free: config.free,
        };
        let components = Arc::new(Components::new(wasm, data.clone(), config.mapped_components));
        let sweeper = Sweeper::start(&components).map_err(HostError::Thread)?;
        let exporter = config.traces.as_ref().map(Exporter::start).transpose()?.map(Arc::new);
        let recent = Arc::new(Recent::new());
        let usage = Usage::open(&data.usage(), recent.start())?;
        quota::take_up(&services.budgets, &records, &usage)?;
        let host = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            components,
            _sweeper: sweeper,
            data,
            pool: config.pool,
            records,
            keys,
            services,
            changing: Mutex::default(),
            table: ArcSwap::from_pointee(table),
            warming: Mutex::default(),
            uploads: Mutex::default(),
            recent,
            usage,
            draining: AtomicBool::new(false),
            calls: Arc::default(),
            telemetry: Arc::default(),
            hide_timing: config.hide_timing,
            exporter,
        });
        host.resume();
        Ok(host)
    }

    /// Takes up what the process before left: sweeps, compiles for this engine, loads models that are waited for.
    fn resume(&self) {
        let table = self.table.load();
        self.sweep_all(&table);
        let mut uncompiled: HashMap<Digest, Vec<Arc<Revision>>> = HashMap::new();
        let mut compiled = std::collections::HashSet::new();
        for revision in table.functions().flat_map(|function| function.wanted()) {
            let digest = revision.record.component;
            if compiled.contains(&digest) || !uncompiled.contains_key(&digest) && self.components.is_compiled(&digest) {
                compiled.insert(digest);
            } else {
                uncompiled.entry(digest).or_default().push(revision.clone());
            }
        }
        self.compile_behind_the_scenes(uncompiled);
        for function in table.functions() {
            if let Some(pending) = &function.record.pending {
                self.warm(function, pending.clone());
            }
        }
    }

    fn compile_behind_the_scenes(&self, uncompiled: HashMap<Digest, Vec<Arc<Revision>>>) {
        if uncompiled.is_empty() {
            return;
        }
        tracing::info!(components = uncompiled.len(), "compiling for this version of the engine");
        let components = self.components.clone();
        let work = move || {
            for (digest, revisions) in uncompiled {
                if let Err(error) = components.compile(&digest) {
                    let why = cannot(&digest, &error);
                    tracing::error!(function = %revisions[0].function, why, "function is broken");
                    revisions.iter().for_each(|revision| revision.break_for_good(why.clone()));
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("hob-compile".into()).spawn(work) {
            tracing::warn!(%error, "no thread to compile ahead: the first request of each function waits for it");
        }
    }

    /// The models.
    pub fn library(&self) -> &Arc<Library> {
        &self.services.library
    }

    /// The data directory.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// The keys to the control API.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whose a function is.
    pub fn owner(&self, function: &FunctionName) -> Option<Tenant> {
        self.table.load().get(function).map(|function| function.record.tenant.clone())
    }

    /// What is used, and by whom.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The components.
    pub fn components(&self) -> &Arc<Components> {
        &self.components
    }

    /// All functions, by name.
    pub fn functions(&self) -> Vec<FunctionStatus> {
        self.table.load().functions().map(|function| self.status_of(function)).collect()
    }

    /// A tenant's functions, by name.
    pub fn functions_of(&self, tenant: &Tenant) -> Vec<FunctionStatus> {
        let table = self.table.load();
        let own = table.functions().filter(|function| function.record.tenant == *tenant);
        own.map(|function| self.status_of(function)).collect()
    }

    fn status_of(&self, function: &Function) -> FunctionStatus {
        let warming = self.warming.lock().unwrap_or_else(PoisonError::into_inner);
        function.status(warming.get(&function.record.name).map(String::as_str))
    }

    /// The invocations that ended last, oldest first.
    pub fn recent(&self) -> Vec<Summary> {
        self.recent.list()
    }

    /// Answers a request: by the function that takes it, or with an error in JSON.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let revision = match self.table.load().find(&parts) {
            Ok(revision) => revision,
            Err(error) => return self.lost(&error),
        };
        self.handle_in(&revision, Request::from_parts(parts, body), started).await
    }

    /// The answer to a request that led to no function.
    fn lost(&self, error: &RequestError) -> Response<Body> {
        self.telemetry.lost.count(error.code());
        error.response(None)
    }

    /// Answers a request in a revision.
    async fn handle_in<B>(&self, revision: &Arc<Revision>, mut request: Request<B>, started: Instant) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if self.services.free {
            let invocation = Arc::new(Invocation::none(revision.function.clone()));
            let answer = self.answer(revision, request, &invocation).await;
            return answer.unwrap_or_else(|error| error.response(None));
        }
        if let Some(refusal) = self.refuse(&request) {
            return refusal;
        }
        let called = || (format!("{} {}", request.method(), revision.function), request.uri().path().to_owned());
        let trace = Trace::begin(request.headers(), called, self.exporter.as_ref());
        if let Some(trace) = &trace {
            request.headers_mut().insert(TRACEPARENT, trace.header());
        }
        let invocation = Invocation::start(revision.function.clone(), revision.account, started, self.recent.clone());
        let watched = revision.watched(&self.telemetry);
        let tab = self.usage.begin(revision.owner(), invocation.number, started, invocation.meter.clone());
        let invocation = Arc::new(invocation.watched(watched.clone()).traced(trace).billed(tab));
        let mut response = match self.answer(revision, request, &invocation).await {
            Ok(response) => response,
            Err(error) => {
                invocation.mark(|marks| marks.outcome = error.code());
                error.response(Some(&invocation.id))
            }
        };
        watched.metrics.answered(response.status());
        if revision.record.config.server_timing.unwrap_or(!self.hide_timing) {
            response.headers_mut().append(SERVER_TIMING, server_timing(&invocation));
        }
        response.headers_mut().insert(table::REVISION_HEADER, revision.header());
        response
    }

    async fn answer<B>(
        &self,
        revision: &Arc<Revision>,
        request: Request<B>,
        invocation: &Arc<Invocation>,
    ) -> Result<Response<Body>, RequestError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let callable = self.callable(revision).await?;
        if request.uri().authority().is_none() && !request.headers().contains_key(http::header::HOST) {
            return Err(RequestError::BadRequest("it has no Host header".into()));
        }
        request::run(callable, request, invocation.clone()).await
    }

    /// What is called for a revision: at hand, or mapped and linked now.
    async fn callable(&self, revision: &Arc<Revision>) -> Result<Arc<Callable>, RequestError> {
        if let Some(callable) = revision.callable(self.components.clock()) {
            return Ok(callable);
        }
        let broken = |why: String| RequestError::Broken { name: revision.function.to_string(), why };
        if let Some(why) = revision.broken() {
            return Err(broken(why.to_owned()));
        }
        let made = if self.components.is_quick(&revision.record.component) {
            self.make(revision)
        } else {
            let (me, revision) = (self.me.clone(), revision.clone());
            let make = move || me.upgrade().map_or_else(|| Err("the host stops".into()), |host| host.make(&revision));
            tokio::task::spawn_blocking(make).await.unwrap_or_else(|panic| Err(panic.to_string()))
        };
        made.map_err(broken)
    }

    /// Maps and links a revision's component. Blocks, for long only if it must be compiled.
    fn make(&self, revision: &Arc<Revision>) -> Result<Arc<Callable>, String> {
        let digest = revision.record.component;
        let config = &revision.record.config;
        let linked = match self.components.link(&digest, config.grants(), Some(revision)) {
            Ok(linked) => linked,
            Err(error) => {
                let why = cannot(&digest, &error);
                tracing::error!(function = %revision.function, why, "function is broken");
                if !matches!(error, ComponentError::Disk(_)) {
                    revision.break_for_good(why.clone());
                }
                return Err(why);
            }
        };
        let secrets = self.secrets(revision)?;
        Ok(revision.keep(Callable::new(&revision.owner(), linked, config, &secrets, &self.services)))
    }

    fn secrets(&self, revision: &Revision) -> Result<Secrets, String> {
        if revision.record.config.secrets.is_empty() {
            return Ok(Secrets::default());
        }
        let read = std::fs::read(self.data.secrets(&revision.function, revision.record.id));
        let read = read.and_then(|text| serde_json::from_slice(&text).map_err(std::io::Error::from));
        read.map_err(|error| format!("its secrets cannot be read: {error}"))
    }
}

fn cannot(digest: &Digest, error: &ComponentError) -> String {
    format!("component {} cannot be called: {error}", digest.short())
}
