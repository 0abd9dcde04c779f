//! `hob deploy`

use std::path::PathBuf;

use anyhow::Context as _;

use crate::client::Client;
use crate::config::Limits;
use crate::data::DataDir;
use crate::function_host::DeployRequest;
use crate::names::{FunctionName, ModelName, Route};

#[derive(clap::Args)]
pub struct Args {
    /// The component
    #[arg(value_name = "FILE.wasm")]
    component: PathBuf,
    /// What to call the function [default: the file's name]
    #[arg(long)]
    name: Option<FunctionName>,
    /// The path prefix that leads to it [default: / and its name]
    #[arg(long)]
    route: Option<Route>,
    /// A model it may use; can be given several times, the first is its default
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<ModelName>,
    /// Longest time for one request, in seconds
    #[arg(long, default_value_t = Limits::default().wall_ms / 1000, value_name = "SECONDS")]
    timeout: u32,
    /// Most memory for one instance, in MiB
    #[arg(long, default_value_t = Limits::default().memory_mib, value_name = "MIB")]
    memory: u32,
}

pub fn run(data: &DataDir, args: Args) -> anyhow::Result<()> {
    let name = match args.name {
        Some(name) => name,
        None => name_of(&args.component)?,
    };
    let route = match args.route {
        Some(route) => route,
        None => format!("/{name}").parse()?,
    };
    let bytes = std::fs::read(&args.component).with_context(|| format!("cannot read {}", args.component.display()))?;
    let client = Client::find(data)?;
    let refused = || format!("{} was not deployed", args.component.display());
    let component = client.upload(&bytes).with_context(refused)?;
    let limits = Limits { wall_ms: args.timeout.saturating_mul(1000), memory_mib: args.memory, ..Limits::default() };
    let request = DeployRequest { component, route, models: args.models, limits, config: Default::default() };
    let record = client.deploy(&name, &request).with_context(refused)?;
    let status = client.status()?;
    println!("{name} is deployed: http://{}{}", status.listen, record.route);
    Ok(())
}

/// `target/my_app.wasm` is called `my-app`.
fn name_of(component: &std::path::Path) -> anyhow::Result<FunctionName> {
    let stem = component.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.replace('_', "-").to_lowercase().parse().context("name the function with --name")
}
