//! The two plugins: loaded from files, and again when these change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use hob::config::{FunctionConfig, Limits, RouteConfig};
use hob::digest::Digest;
use hob::function_host::DeployRequest;
use hob::names::{ModelName, Tenant};
use hob::{CallError, FunctionService, Host, Plugin, State};
use serde::Serialize;

use crate::watch;

/// The host's side of `wit/moderator.wit`.
mod bindings {
    #![allow(missing_docs)]
    hob::wasmtime::component::bindgen!({
        path: "wit",
        world: "moderator",
        exports: { default: async },
        wasmtime_crate: hob::wasmtime,
    });
}
use bindings::ModeratorPre;
pub use bindings::exports::example::comments::moderation::Verdict;

/// Answers requests.
pub const ASSISTANT: &str = "assistant";
/// Judges comments.
const MODERATOR: &str = "moderator";

/// The plugins of this server.
pub struct Plugins {
    host: Arc<Host>,
    folder: PathBuf,
    model: ModelName,
    moderator: ArcSwapOption<Plugin<ModeratorPre<State>>>,
    running: Mutex<Running>,
}

/// For each plugin, which component runs, and why a newer file does not.
pub type Running = BTreeMap<&'static str, Version>;

/// What runs of a plugin.
#[derive(Clone, Default, Serialize)]
pub struct Version {
    component: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl Plugins {
    /// Takes up both plugins. Blocks while they are compiled.
    pub fn load(host: Arc<Host>, folder: PathBuf, model: ModelName) -> anyhow::Result<Arc<Self>> {
        let (moderator, running) = (ArcSwapOption::empty(), Mutex::default());
        let plugins = Arc::new(Self { host, folder, model, moderator, running });
        for name in [ASSISTANT, MODERATOR] {
            plugins.take_up(name)?;
        }
        Ok(plugins)
    }

    /// Takes up files that change. One that cannot be used leaves in force what was, and the log says why.
    pub fn watch(self: Arc<Self>) -> std::io::Result<()> {
        let names = [ASSISTANT, MODERATOR];
        let files = names.map(|name| self.file(name));
        watch::changes(files, move |changed| {
            let name = names[changed];
            match self.take_up(name) {
                Ok(()) => tracing::info!(name, "taken up"),
                Err(error) => {
                    tracing::warn!(name, "the new file is not used: {error}");
                    self.versions().entry(name).or_default().refused = Some(error.to_string());
                }
            }
        })
    }

    /// A plugin that answers requests. What it is when a request comes answers that request.
    pub fn function(&self, name: &str) -> FunctionService {
        self.host.function(name).expect("it was taken up before")
    }

    /// Asks the moderator. A newer one that comes meanwhile has no part in this call.
    pub async fn judge(&self, comment: &str) -> Result<Result<Verdict, String>, CallError> {
        let moderator = self.moderator.load_full().expect("it was taken up before");
        let judge = async |store: &mut _, world: &ModeratorPre<State>| {
            let moderator = world.instantiate_async(&mut *store).await?;
            moderator.example_comments_moderation().call_judge(store, comment).await
        };
        moderator.call(judge).await
    }

    /// What runs.
    pub fn running(&self) -> Running {
        self.versions().clone()
    }

    /// Reads a plugin's file and puts it into force. Requests that run end in what they began in.
    fn take_up(&self, name: &'static str) -> anyhow::Result<()> {
        let path = self.file(name);
        let component = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let digest = Digest::of(&component);
        let limits = Limits { wall_ms: 30_000, cpu_ms: 1000, memory_mib: 64, ..Limits::default() };
        let mut config = FunctionConfig { models: vec![self.model.clone()], limits, ..FunctionConfig::default() };
        if name == MODERATOR {
            let plugin = self.host.plugin(name.parse()?, &component, config, ModeratorPre::new)?;
            self.moderator.store(Some(Arc::new(plugin)));
        } else {
            // Reached by its name here; a route is what a listener of hob's own would need.
            config.routes = vec![RouteConfig::path(format!("/{name}").parse()?)];
            self.host.upload(digest, &component)?;
            let mut request = DeployRequest::new(digest, config);
            request.source = path.display().to_string();
            self.host.deploy(&Tenant::default(), name.parse()?, request)?;
        }
        self.versions().insert(name, Version { component: Some(digest), refused: None });
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(&self.folder).join(name).with_extension("wasm")
    }

    fn versions(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
