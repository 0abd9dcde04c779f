//! A function ready to be called: its linked component, and what its instances are given and held to.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};

use super::limiter::Limiter;
use super::linked::Linked;
use super::meter::{AtEpoch, Meter};
use super::shared::Shared;
use super::warm::Warm;
use crate::budget::Budgets;
use crate::config::{Directory, FunctionConfig, Limits, Reuse, Secrets};
use crate::host::egress::{Egress, Tls};
use crate::host::keyvalue::{Namespace, Stores};
use crate::host::preview1::ModuleState;
use crate::host::{Models, State};
use crate::models::Library;
use crate::names::FunctionName;
use crate::request::{Gate, Invocation};
use crate::usage::Owner;

/// What all functions of a host share.
#[derive(Clone)]
pub struct Services {
    /// The models.
    pub library: Arc<Library>,
    /// What guests keep between requests.
    pub stores: Arc<Stores>,
    /// Whom outgoing connections trust.
    pub tls: Tls,
    /// What functions and tenants may use, and what was taken of that.
    pub budgets: Arc<Budgets>,
    /// Instances that can live at once, to say so when they run out.
    pub instances: u32,
    /// Room for instances that are kept between two requests: half of all, so that they never starve fresh ones.
    pub idle: Arc<Semaphore>,
    /// Nothing is limited: see [`crate::HostConfig`].
    pub free: bool,
}

/// What an instance of a function is given.
pub struct Granted {
    /// What it is held to.
    pub limits: Limits,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// What `wasi:config` answers, secrets included.
    pub config: BTreeMap<String, String>,
    /// Directories it may open.
    pub directories: Vec<Directory>,
    /// Models it may use.
    pub models: Models,
    /// Where it may send requests; `None` is nowhere.
    pub egress: Option<Arc<Egress>>,
    /// What it keeps between requests.
    pub store: Namespace,
}

/// A revision of a function, ready to be called.
pub struct Callable {
    pub(super) linked: Arc<Linked>,
    pub(super) granted: Arc<Granted>,
    pub(super) reuse: Reuse,
    pub(super) warm: Warm,
    pub(super) shared: Shared,
    /// What instances belong to between two requests.
    pub(super) resting: Arc<Invocation>,
    /// Who may run now, and who waits.
    pub gate: Gate,
    /// What it shares with others.
    pub services: Services,
}

/// What a guest can run into: its function's limits, and the host's.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub limits: &'a Limits,
    /// Instances that can live at once.
    pub instances: u32,
}

/// A running copy of a component, and the store it lives in.
pub(super) struct Instance {
    pub(super) store: Store<State>,
    pub(super) proxy: Proxy,
    pub(super) served: u32,
}

impl Granted {
    /// What `config` gives to the function `name`.
    pub fn new(name: &FunctionName, config: &FunctionConfig, secrets: &Secrets, services: &Services) -> Self {
        let mut answers = config.config.clone();
        let reveal = |name: &String| Some((name.clone(), secrets.reveal(name)?.to_owned()));
        answers.extend(config.secrets.iter().filter_map(reveal));
        let egress = || Arc::new(Egress::new(config.egress.clone(), services.tls.clone()));
        Self {
            limits: config.limits,
            environment: config.environment.clone().into_iter().collect(),
            config: answers,
            directories: config.directories.clone(),
            models: Models { names: config.models.clone().into(), library: services.library.clone(), allowance: None },
            egress: (!config.egress.is_empty()).then(egress),
            store: services.stores.namespace(name),
        }
    }
}

impl Callable {
    /// The function of `owner`, as `config` says.
    pub fn new(
        owner: &Owner,
        linked: Arc<Linked>,
        config: &FunctionConfig,
        secrets: &Secrets,
        services: &Services,
    ) -> Arc<Self> {
        let name = &owner.function;
        let mut granted = Granted::new(name, config, secrets, services);
        granted.models.allowance =
            config.grants().models.then(|| services.budgets.allowance(owner, config.budget, config.priority));
        Arc::new(Self {
            linked,
            granted: Arc::new(granted),
            reuse: config.reuse,
            warm: Warm::default(),
            shared: Shared::default(),
            resting: Arc::new(Invocation::none(name.clone())),
            gate: Gate::new(config.concurrency),
            services: services.clone(),
        })
    }

    /// What an invocation may use.
    pub fn limits(&self) -> &Limits {
        &self.granted.limits
    }

    /// Whether nothing is limited.
    pub(crate) fn is_free(&self) -> bool {
        self.services.free
    }

    /// What an invocation runs into when it uses too much.
    pub(crate) fn bounds(&self) -> Bounds<'_> {
        Bounds { limits: self.limits(), instances: self.services.instances }
    }

    /// Makes a store and an instance in it, for `invocation` and those that come after it.
    pub(super) async fn start(&self, invocation: &Arc<Invocation>, meter: &Arc<Meter>) -> wasmtime::Result<Instance> {
        let mut store = self.store(invocation, meter)?;
        let accepted = invocation.started.elapsed();
        let proxy = self.linked.pre.instantiate_async(&mut store).await?;
        let instantiated = invocation.started.elapsed();
        invocation.mark(|marks| {
            marks.accept = accepted.saturating_sub(marks.wait);
            marks.instantiate = instantiated - accepted;
        });
        Ok(Instance { store, proxy, served: 0 })
    }

    fn store(&self, invocation: &Arc<Invocation>, meter: &Arc<Meter>) -> wasmtime::Result<Store<State>> {
        let engine = match &self.linked.pre {
            ProxyPre::P2(pre) => pre.engine(),
            ProxyPre::P3(pre) => pre.engine(),
        };
        let state = State::new(self.granted.clone(), invocation.clone(), meter.clone())?;
        let store = Store::new(engine, state);
        Ok(if self.is_free() { store } else { limited(store, self.limits()) })
    }
}

/// The state of a store that can be held to limits.
pub(crate) trait Held: Send + 'static {
    /// Asked before anything grows.
    fn limiter(&mut self) -> &mut Limiter;
    /// Asked at each epoch.
    fn meter(&self) -> &Meter;
}

impl Held for State {
    fn limiter(&mut self) -> &mut Limiter {
        &mut self.limiter
    }

    fn meter(&self) -> &Meter {
        self.meter()
    }
}

impl Held for ModuleState {
    fn limiter(&mut self) -> &mut Limiter {
        &mut self.limiter
    }

    fn meter(&self) -> &Meter {
        &self.meter
    }
}

/// Holds a store to `limits`.
pub(crate) fn limited<T: Held>(mut store: Store<T>, limits: &Limits) -> Store<T> {
    store.limiter(|state| state.limiter());
    store.set_hostcall_fuel(usize::try_from(limits.hostcall_bytes).unwrap_or(usize::MAX));
    store.set_max_component_handles(limits.handles as usize);
    if let Some(table) = store.concurrent_resource_table() {
        // Tasks, waitable sets, both ends of streams: some of each for every handle.
        table.set_max_capacity(limits.handles as usize * 4);
    }
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        Ok(match store.data().meter().at_epoch() {
            AtEpoch::Ends => UpdateDeadline::Interrupt,
            AtEpoch::GoesOn => UpdateDeadline::Continue(1),
            AtEpoch::Yields => UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())),
        })
    });
    store
}
