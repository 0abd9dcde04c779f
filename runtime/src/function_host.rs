//! The host: functions, deployed and called. What the server serves and an embedder holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hob_gpu::{Engine, EngineConfig};
use http::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::config::{FunctionConfig, Limits, Secrets};
use crate::data::{DataDir, DataError};
use crate::digest::Digest;
use crate::host::egress::{Tls, TlsError};
use crate::host::keyvalue::Stores;
use crate::instance::component::{self, ComponentError};
use crate::instance::{Linked, Services};
use crate::instance::engine::{PoolConfig, WasmEngine};
use crate::models::Library;
use crate::models::store::{ModelStore, StoreError};
use crate::names::{FunctionName, ModelName, Route};
use crate::records::{FunctionRecord, Records, RecordsError};
use crate::request::router::Router;
use crate::request::{self, Body, Callable, Invocation, Recent, RequestError, Summary};

/// What a host is made of.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Instances that can live at once.
    pub pool: PoolConfig,
    /// The inference engine.
    pub engine: EngineConfig,
    /// Files in PEM form with more certificate authorities that outgoing connections trust, beside those of the web.
    pub egress_roots: Vec<std::path::PathBuf>,
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
    /// The certificates for outgoing connections.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The inference engine.
    #[error("the inference engine does not start: {0}")]
    Engine(#[from] hob_gpu::StartError),
}

/// Why something cannot be deployed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The component.
    #[error("component {digest} cannot be deployed: {source}", digest = .digest.short())]
    Component {
        /// Which one.
        digest: Digest,
        /// Why.
        source: ComponentError,
    },
    /// It was never uploaded.
    #[error("component {0} is not here; upload it first")]
    NotUploaded(Digest),
    /// What was uploaded is not what was announced.
    #[error("the upload's digest is {got}, not {expected}; it was changed on the way, send it again")]
    WrongDigest {
        /// As announced.
        expected: Digest,
        /// As received.
        got: Digest,
    },
    /// A model it asks for.
    #[error(transparent)]
    Model(#[from] StoreError),
    /// A limit beyond what the host has.
    #[error("{what} is {asked}; this host allows 1 to {most}")]
    Limit {
        /// Which limit, with its unit.
        what: &'static str,
        /// What was asked for.
        asked: u32,
        /// What can be had.
        most: u32,
    },
    /// The route, or the database.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The disk.
    #[error("the component cannot be kept: {0}; is the disk full?")]
    Disk(#[from] std::io::Error),
}

/// What to deploy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// An uploaded component.
    pub component: Digest,
    /// Where its requests come in.
    pub route: Route,
    /// Models it may use; the first is also its `default`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// What one invocation may use.
    #[serde(default)]
    pub limits: Limits,
    /// The rest of what it is given and held to.
    #[serde(default)]
    pub config: FunctionConfig,
}

/// A deployed function, as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FunctionStatus {
    /// Its record.
    #[serde(flatten)]
    pub record: FunctionRecord,
    /// Why it cannot be called, if it cannot.
    pub broken: Option<String>,
}

/// A function in service: linked, or the reason why not.
#[derive(Clone)]
struct Function {
    record: FunctionRecord,
    callable: Result<Arc<Callable>, String>,
    account: u64,
}

/// Functions, their components and the models they share.
pub struct Host {
    data: DataDir,
    wasm: WasmEngine,
    pool: PoolConfig,
    records: Records,
    services: Services,
    functions: Mutex<BTreeMap<FunctionName, Arc<Function>>>,
    router: ArcSwap<Router<Arc<Function>>>,
    recent: Arc<Recent>,
}

impl Host {
    /// Opens a data directory, and puts every function recorded there into service. Blocks while it does.
    ///
    /// A function that cannot be put into service stays recorded, and answers with the reason.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn open(data: DataDir, config: HostConfig) -> Result<Arc<Self>, HostError> {
        let records = Records::open(&data.records())?;
        data.sweep();
        let wasm = WasmEngine::start(config.pool).map_err(HostError::Pool)?;
        let engine = Engine::start(config.engine)?;
        let library = Arc::new(Library::new(ModelStore::new(data.clone()), engine));
        let stores = Arc::new(Stores::new(data.root().join("stores")));
        let host = Self {
            data,
            wasm,
            pool: config.pool,
            records,
            services: Services {
                library,
                stores,
                tls: Tls::new(&config.egress_roots)?,
                instances: config.pool.instances,
                idle: Arc::new(Semaphore::new(config.pool.instances as usize / 2)),
            },
            functions: Mutex::default(),
            router: ArcSwap::from_pointee(Router::new([])),
            recent: Arc::default(),
        };
        for record in host.records.functions()? {
            let callable = host.load(&record).map_err(|error| {
                tracing::error!(function = %record.name, %error, "function is broken");
                error.to_string()
            });
            host.serve(record, callable);
        }
        Ok(Arc::new(host))
    }

    /// The models.
    pub fn library(&self) -> &Arc<Library> {
        &self.services.library
    }

    /// The data directory.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// All functions, by name.
    pub fn functions(&self) -> Vec<FunctionStatus> {
        let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        functions
            .values()
            .map(|function| FunctionStatus {
                record: function.record.clone(),
                broken: function.callable.as_ref().err().cloned(),
            })
            .collect()
    }

    /// The invocations that ended last, oldest first.
    pub fn recent(&self) -> Vec<Summary> {
        self.recent.list()
    }

    /// Keeps an uploaded component. Blocks while it writes.
    ///
    /// # Errors
    /// `WrongDigest`, `Component` if it is none, `Disk`.
    pub fn upload(&self, expected: Digest, bytes: &[u8]) -> Result<(), DeployError> {
        let got = Digest::of(bytes);
        if got != expected {
            return Err(DeployError::WrongDigest { expected, got });
        }
        component::check_kind(bytes).map_err(|source| DeployError::Component { digest: got, source })?;
        Ok(self.data.write(&self.data.component(&got), bytes)?)
    }

    /// Puts a function into service, in place of one of the same name. Blocks while it compiles.
    ///
    /// Requests that run go on in the component they started in.
    ///
    /// # Errors
    /// See [`DeployError`]; the functions in service are as they were then.
    pub fn deploy(&self, name: FunctionName, request: DeployRequest) -> Result<FunctionRecord, DeployError> {
        let DeployRequest { component, route, models, limits, config } = request;
        self.check_limits(limits)?;
        for model in &models {
            self.services.library.store().get(model)?;
        }
        let deployed_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = FunctionRecord { name, route, component, models, limits, config, deployed_at };
        let callable = self.load(&record)?;
        // One at a time from here: the record and the router must change in the same order.
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        self.records.put(&record)?;
        self.insert(&mut functions, record.clone(), Ok(callable));
        Ok(record)
    }

    /// Takes a function out of service. Requests that run go on to their end.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, name: &FunctionName) -> Result<(), RecordsError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        self.records.remove(name)?;
        functions.remove(name);
        self.route(&functions);
        Ok(())
    }

    /// Answers a request: by the function that has its path, or with an error in JSON.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<wasmtime_wasi_http::Error>,
    {
        let started = Instant::now();
        let (invocation, callable) = match self.find(request.uri().path(), started) {
            Ok(found) => found,
            Err(error) => return error.response(None),
        };
        if request.uri().authority().is_none() && !request.headers().contains_key(http::header::HOST) {
            return RequestError::BadRequest("it has no Host header".into()).response(Some(&invocation.id));
        }
        match request::run(callable, request, invocation.clone()).await {
            Ok(response) => response,
            Err(error) => error.response(Some(&invocation.id)),
        }
    }

    fn find(&self, path: &str, started: Instant) -> Result<(Arc<Invocation>, Arc<Callable>), RequestError> {
        let no_route = || RequestError::NoRoute(path.chars().take(200).collect());
        let function = self.router.load().find(path).ok_or_else(no_route)?;
        let name = function.record.name.clone();
        let callable = function.callable.clone().map_err(|why| RequestError::Broken { name: name.to_string(), why })?;
        let invocation = Invocation::start(name, function.account, started, self.recent.clone());
        Ok((Arc::new(invocation), callable))
    }

    fn check_limits(&self, limits: Limits) -> Result<(), DeployError> {
        let check = |what, asked, most| {
            if (1..=most).contains(&asked) { Ok(()) } else { Err(DeployError::Limit { what, asked, most }) }
        };
        check("the time limit in milliseconds", limits.wall_ms, 24 * 3_600_000)?;
        check("the memory limit in MiB", limits.memory_mib, self.pool.memory_mib)
    }

    /// Loads, checks and links a function's component.
    fn load(&self, record: &FunctionRecord) -> Result<Arc<Callable>, DeployError> {
        let digest = record.component;
        if !self.data.component(&digest).exists() {
            return Err(DeployError::NotUploaded(digest));
        }
        let config =
            FunctionConfig { models: record.models.clone(), limits: record.limits, ..record.config.clone() };
        let fail = |source| DeployError::Component { digest, source };
        let component = component::load(&self.wasm, &self.data, &digest).map_err(fail)?;
        let linked = Arc::new(Linked::new(&self.wasm, &component, config.grants()).map_err(fail)?);
        Ok(Callable::new(&record.name, linked, &config, &Secrets::default(), &self.services))
    }

    fn serve(&self, record: FunctionRecord, callable: Result<Arc<Callable>, String>) {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        self.insert(&mut functions, record, callable);
    }

    fn insert(
        &self,
        functions: &mut BTreeMap<FunctionName, Arc<Function>>,
        record: FunctionRecord,
        callable: Result<Arc<Callable>, String>,
    ) {
        let account = account(&record.name);
        functions.insert(record.name.clone(), Arc::new(Function { record, callable, account }));
        self.route(functions);
    }

    fn route(&self, functions: &BTreeMap<FunctionName, Arc<Function>>) {
        let routes = functions.values().map(|function| (function.record.route.clone(), function.clone()));
        self.router.store(Arc::new(Router::new(routes)));
    }
}

/// Whom a function's tokens are counted for: until there are tenants, each function stands for itself.
fn account(name: &FunctionName) -> u64 {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    name.as_str().hash(&mut hasher);
    hasher.finish()
}
