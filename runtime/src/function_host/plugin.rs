//! Plugins: components of a world that the embedder chose, called with typed arguments instead of requests.
//!
//! Each call gets a fresh instance, held to the same limits as a request's and under the same clock; it passes a gate, and is
//! an invocation in metrics, logs and traces. A plugin is not deployed: it is as long as the embedder holds it, and a new
//! version is another one put in its place. Calls that run hold the one that they began in.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Response};
use wasmtime::component::InstancePre;
use wasmtime::{Engine, Store};

use super::function::account;
use super::{DeployError, Host};
use crate::config::{FunctionConfig, Reuse, Secrets};
use crate::digest::Digest;
use crate::host::State;
use crate::instance::component::ComponentError;
use crate::instance::{Bounds, Granted, Linked, limited};
use crate::names::{FunctionName, Tenant};
use crate::records::FunctionRecord;
use crate::request::{Body, Gate, Invocation, RequestError, explain, spent_error};
use crate::telemetry::{Trace, Watched};

/// What is compiled and unchanged is marked as used this often, so that it is not swept.
const USED_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A component that is ready to be called, as its world's `...Pre` type `P`. Clones are the same plugin.
pub struct Plugin<P>(Arc<Inner<P>>);

struct Inner<P> {
    name: FunctionName,
    world: P,
    engine: Engine,
    granted: Arc<Granted>,
    gate: Gate,
    account: u64,
    watched: Arc<Watched>,
    /// The clock behind its deadlines runs while the host does.
    host: Arc<Host>,
}

/// Why a call has no result.
#[derive(Debug)]
pub struct CallError {
    /// The plugin.
    pub plugin: FunctionName,
    /// The invocation, as in the log.
    pub id: String,
    /// Why, in the host's words.
    pub why: RequestError,
    /// What the guest, or the embedder's own part of the call, said; a trap with its trace, for one.
    pub cause: Option<wasmtime::Error>,
}

impl Host {
    /// Makes a plugin of a component: compiles it, unless that was done before, and links it with what `config` grants.
    /// Blocks while it does; call it off the threads that serve.
    ///
    /// `world` is `new` of the `...Pre` type that [`wasmtime::component::bindgen!`] makes for the plugin's world (with
    /// `wasmtime_crate: hob::wasmtime`): it checks that the component exports the world's functions with their types.
    ///
    /// ```no_run
    /// mod bindings {
    ///     hob::wasmtime::component::bindgen!({
    ///         inline: "
    ///             package example:plugins;
    ///             world scorer { export score: func(text: string) -> u32; }
    ///         ",
    ///         exports: { default: async },
    ///         wasmtime_crate: hob::wasmtime,
    ///     });
    /// }
    /// # async fn example(host: std::sync::Arc<hob::Host>) -> anyhow::Result<()> {
    /// let component = std::fs::read("scorer.wasm")?;
    /// let scorer = host.plugin("scorer".parse()?, &component, Default::default(), bindings::ScorerPre::new)?;
    /// let score = scorer
    ///     .call(async |store, scorer| scorer.instantiate_async(&mut *store).await?.call_score(store, "how good?").await)
    ///     .await?;
    /// # let _ = score;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Config`, `Model`; `Component` if it does not compile, imports what is not there or not granted, or is not of this world.
    pub fn plugin<P>(
        self: &Arc<Self>,
        name: FunctionName,
        component: &[u8],
        config: FunctionConfig,
        world: impl FnOnce(InstancePre<State>) -> wasmtime::Result<P>,
    ) -> Result<Plugin<P>, DeployError> {
        let secrets = Secrets::default();
        let mut mistakes = self.mistakes(&config, &secrets);
        if !config.routes.is_empty() || config.sticky.is_some() {
            mistakes.push("a plugin has no routes; deploy what answers requests".into());
        }
        if config.reuse != Reuse::default() {
            mistakes.push("a plugin's instances are not reused; leave `reuse` out".into());
        }
        self.refuse_mistakes(mistakes, &config)?;
        let digest = Digest::of(component);
        let refused = |source| DeployError::Component { digest, source };
        let pre = self.components.load_bytes(&digest, component).map_err(refused)?;
        self.mark_as_used(&digest);
        let pre = Linked::other(self.components.engine(), &pre, config.grants()).map_err(refused)?;
        let engine = pre.engine().clone();
        let world = world(pre).map_err(|error| refused(ComponentError::OtherWorld(error)))?;
        Ok(Plugin(Arc::new(Inner {
            world,
            engine,
            granted: Arc::new(Granted::new(&name, &config, &secrets, &self.services)),
            gate: Gate::new(config.concurrency),
            account: account(&FunctionRecord::first(name.clone(), Tenant::default())),
            watched: self.telemetry.watch(&name),
            host: self.clone(),
            name,
        })))
    }

    /// What it compiled to is wanted: the sweep removes what was not for a month.
    fn mark_as_used(&self, digest: &Digest) {
        let compiled = self.data.compiled(self.components.engine().compatibility(), digest);
        let is_recent = || compiled.metadata()?.modified()?.elapsed().map_err(std::io::Error::other);
        if is_recent().is_ok_and(|age| age < USED_EVERY) {
            return;
        }
        let marked = std::fs::File::options().append(true).open(&compiled);
        if let Err(error) = marked.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, path = %compiled.display(), "not marked as used");
        }
    }
}

impl<P> Plugin<P> {
    /// Its name.
    pub fn name(&self) -> &FunctionName {
        &self.0.name
    }

    /// Calls it in a fresh instance. `call` is given the instance's store and the world; it instantiates the world and
    /// calls what it exports. All of it counts as the guest's time. Dropping the future ends the call, and its instance.
    ///
    /// # Errors
    /// No place at the gate, a limit, a trap, or what `call` fails with.
    pub async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&mut Store<State>, &P) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        let Inner { name, account, watched, host, .. } = &*self.0;
        let called = || (format!("call {name}"), String::new());
        let trace = Trace::begin(&HeaderMap::new(), called, host.exporter.as_ref());
        let invocation = Invocation::start(name.clone(), *account, Instant::now(), host.recent.clone());
        let invocation = Arc::new(invocation.watched(watched.clone()).traced(trace));
        let ended = self.run(&invocation, call).await;
        invocation.mark(|marks| marks.outcome = ended.as_ref().err().map_or("ok", |(why, _)| why.code()));
        ended.map_err(|(why, cause)| CallError { plugin: name.clone(), id: invocation.id.clone(), why, cause })
    }

    async fn run<T>(
        &self,
        invocation: &Arc<Invocation>,
        call: impl AsyncFnOnce(&mut Store<State>, &P) -> wasmtime::Result<T>,
    ) -> Result<T, (RequestError, Option<wasmtime::Error>)> {
        let Inner { world, engine, granted, gate, host, .. } = &*self.0;
        let (limits, meter) = (&granted.limits, &invocation.meter);
        let _permit = gate.admit().await.map_err(|why| (why, None))?;
        invocation.mark(|marks| marks.wait = invocation.started.elapsed());
        meter.allow(invocation.started + limits.wall(), limits.cpu());
        let bounds = Bounds { limits, instances: host.services.instances };
        let explained = |error| (explain(&error, bounds, invocation, meter), Some(error));
        let state = State::new(granted.clone(), invocation.clone(), meter.clone()).map_err(explained)?;
        let mut store = limited(Store::new(engine, state), limits);
        match meter.run(call(&mut store, world)).await {
            Ok(ended) => ended.map_err(explained),
            Err(spent) => {
                let why = spent_error(spent, limits);
                tracing::warn!(plugin = %invocation.function, id = %invocation.id, error = %why, "plugin stopped");
                invocation.print("host", format!("plugin stopped: {why}"));
                Err((why, None))
            }
        }
    }
}

impl<P> Clone for Plugin<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl CallError {
    /// The answer to a request that was for this call: its status, and a line of JSON that tells no more than is good for
    /// who asked.
    pub fn response(&self) -> Response<Body> {
        self.why.response(Some(&self.id))
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { plugin, id, why, cause } = self;
        match cause {
            Some(cause) if matches!(why, RequestError::Failed) => {
                write!(f, "plugin `{plugin}` failed in call {id}: {cause:#}")
            }
            _ => write!(f, "plugin `{plugin}`, call {id}: {why}"),
        }
    }
}

impl std::error::Error for CallError {}
