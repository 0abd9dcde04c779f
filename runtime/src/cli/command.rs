//! `hob run app.wasm`: a command - a component, or a core module of WASI 0.1 - as a process of this terminal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use tokio::sync::Semaphore;

use super::engine::EngineArgs;
use crate::config::{Directory, EgressRule, FunctionConfig, Limits, Secrets};
use crate::data::DataDir;
use crate::host::egress::Tls;
use crate::host::keyvalue::Stores;
use crate::instance::command::Command;
use crate::instance::engine::{PoolConfig, WasmEngine};
use crate::instance::{Granted, Services};
use crate::models::Library;
use crate::models::store::ModelStore;
use crate::names::ModelName;
use crate::request::{Invocation, Recent};

/// What a command is given; a model takes none of it.
#[derive(clap::Args)]
pub struct CommandArgs {
    /// A variable of the command's environment; can be given several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A directory that the command may open, and what it calls it; `:ro` makes it read-only
    #[arg(long = "dir", value_name = "HOST[::GUEST][:ro]", value_parser = directory)]
    dirs: Vec<Directory>,
    /// Where the command may send requests, as in https://api.example.com
    #[arg(long, value_name = "RULE")]
    egress: Vec<EgressRule>,
    /// A model that the command may use; the first is its default
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<ModelName>,
    /// Most memory for the command, in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=4096))]
    memory: u32,
    /// The command's arguments, after `--`
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// Runs what is in `file`, and ends this process as it ends.
pub fn run(data: DataDir, file: &Path, given: CommandArgs, engine: EngineArgs) -> anyhow::Result<()> {
    let wasm = WasmEngine::start(PoolConfig { instances: 8, memory_mib: given.memory }, false)?;
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let refused = || format!("{} was not run", file.display());
    let config = FunctionConfig {
        environment: given.env.into_iter().collect(),
        directories: given.dirs,
        egress: given.egress,
        models: given.models,
        limits: Limits { memory_mib: given.memory, ..Limits::default() },
        ..FunctionConfig::default()
    };
    let command = Command::load(&wasm, &data, bytes, config.grants()).with_context(refused)?;
    let services = Services {
        library: Arc::new(Library::new(ModelStore::new(data.clone()), engine.start()?)),
        stores: Arc::new(Stores::new(data.root().join("stores"))),
        tls: Tls::new(&[])?,
        budgets: Arc::default(),
        instances: 1,
        idle: Arc::new(Semaphore::new(0)),
        free: false,
    };
    // What it keeps, it keeps under this name.
    let name = "run".parse().expect("it is a name");
    let granted = Granted::new(&name, &config, &Secrets::default(), &services);
    let invocation = Invocation::start(name, 0, Instant::now(), Arc::new(Recent::new()));
    let program = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let args: Vec<String> = std::iter::once(program).chain(given.args).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let code = runtime.block_on(command.run(&args, granted, invocation)).map_err(anyhow::Error::from);
    let code = code.with_context(|| format!("{} failed", file.display()))?;
    if code != 0 {
        std::process::exit(code);
    }
    Ok(())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn directory(text: &str) -> Result<Directory, String> {
    let (text, writable) = match text.strip_suffix(":ro") {
        Some(text) => (text, false),
        None => (text, true),
    };
    let (host, guest) = text.split_once("::").unwrap_or((text, text));
    Ok(Directory { host: PathBuf::from(host), guest: guest.to_owned(), writable })
}
