//! `hob deploy`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::Global;
use crate::client::{Client, ClientError};
use crate::config::manifest::{self, Manifest};
use crate::config::{FunctionConfig, Limits, RouteConfig, Secrets};
use crate::digest::Digest;
use crate::function_host::{DeployRequest, Deployed};
use crate::instance::component;
use crate::names::{FunctionName, ModelName, Route};
use crate::records::PartRecord;
use crate::sources::{Fetched, Source};

#[derive(clap::Args)]
pub struct Args {
    /// A component: a file, or a place in a registry (oci://ghcr.io/acme/chat:1.2). Or a hob.toml that names one, or its folder
    #[arg(value_name = "FILE.wasm|hob.toml|DIR|oci://...", default_value = ".")]
    what: String,
    /// A component on the web, with its digest
    #[arg(long, requires = "sha256", conflicts_with = "what", value_name = "URL")]
    url: Option<String>,
    /// The SHA-256 of the component at --url
    #[arg(long, requires = "url", value_name = "HEX")]
    sha256: Option<Digest>,
    /// A component that requests pass before it: a file, or a place in a registry; can be given several times, the outermost first
    #[arg(long, value_name = "FILE.wasm|oci://...")]
    middleware: Vec<String>,
    /// What to call the function [default: the component's]
    #[arg(long)]
    name: Option<FunctionName>,
    /// A path prefix that leads to it; can be given several times [default: / and its name]
    #[arg(long = "route", value_name = "PATH")]
    routes: Vec<Route>,
    /// A model it may use; can be given several times, the first is its default
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<ModelName>,
    /// Longest time for one request, in seconds [default: 300]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Most memory for one instance, in MiB [default: 128]
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Leave requests to the revisions that have them; the new one takes those that name it
    #[arg(long)]
    no_traffic: bool,
    /// Only say whether it could be deployed
    #[arg(long)]
    check: bool,
}

/// Everything that a deployment needs, from flags or from a manifest.
struct Plan {
    name: FunctionName,
    component: Source,
    middleware: Vec<Source>,
    config: FunctionConfig,
    secrets: Secrets,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let plan = plan(&args)?;
    let shown = plan.component.to_string();
    let Fetched { bytes, from: source } = plan.component.fetch()?;
    let middleware = plan.middleware.iter().map(Source::fetch).collect::<Result<Vec<_>, _>>()?;
    if args.check {
        return check(global, plan, &shown, &bytes, &middleware, !args.no_traffic);
    }
    let client = global.client()?;
    let refused = || format!("{shown} was not deployed");
    let component = client.upload(&bytes).with_context(refused)?;
    let middleware = upload(&client, &middleware).with_context(refused)?;
    let Plan { name, config, secrets, .. } = plan;
    let request = DeployRequest { component, config, secrets, source, middleware, traffic: !args.no_traffic };
    let deployed = client.deploy(&name, &request).with_context(refused)?;
    tell(&client, &name, &request.config, &deployed)
}

fn upload(client: &Client, middleware: &[Fetched]) -> Result<Vec<PartRecord>, ClientError> {
    let upload = |part: &Fetched| Ok(PartRecord { component: client.upload(&part.bytes)?, source: part.from.clone() });
    middleware.iter().map(upload).collect()
}

fn plan(args: &Args) -> anyhow::Result<Plan> {
    if let (Some(url), Some(sha256)) = (&args.url, args.sha256) {
        return from_flags(Source::Url { url: url.clone(), sha256 }, args);
    }
    if args.what.starts_with("oci://") {
        return from_flags(Source::Oci(args.what.parse()?), args);
    }
    ensure!(!args.what.contains("://"), "give a component on the web as --url {} --sha256 HEX", args.what);
    let path = PathBuf::from(&args.what);
    match manifest_of(&path) {
        Some(manifest) => from_manifest(&manifest, args),
        None => from_flags(Source::File(path), args),
    }
}

/// The manifest that is meant, if one is.
pub fn manifest_of(what: &Path) -> Option<PathBuf> {
    if what.is_dir() {
        return Some(what.join(manifest::FILE));
    }
    what.extension().is_some_and(|extension| extension == "toml").then(|| what.to_owned())
}

fn from_manifest(path: &Path, args: &Args) -> anyhow::Result<Plan> {
    let flags = [
        ("--middleware", !args.middleware.is_empty()),
        ("--name", args.name.is_some()),
        ("--route", !args.routes.is_empty()),
        ("--model", !args.models.is_empty()),
        ("--timeout", args.timeout.is_some()),
        ("--memory", args.memory.is_some()),
    ];
    if let Some((flag, _)) = flags.iter().find(|(_, given)| *given) {
        anyhow::bail!("{flag} is for deploying a component as it is; {} says it already", path.display());
    }
    let Manifest { name, component, middleware, config, secrets } = Manifest::read(path)?;
    Ok(Plan { name, component, middleware, config, secrets })
}

fn from_flags(component: Source, args: &Args) -> anyhow::Result<Plan> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&component)?,
    };
    let mut routes: Vec<_> = args.routes.iter().cloned().map(RouteConfig::path).collect();
    if routes.is_empty() {
        routes.push(RouteConfig::path(name.default_route()));
    }
    let default = Limits::default();
    let limits = Limits {
        wall_ms: args.timeout.map_or(default.wall_ms, |seconds| seconds.saturating_mul(1000)),
        memory_mib: args.memory.unwrap_or(default.memory_mib),
        ..default
    };
    let config = FunctionConfig { routes, models: args.models.clone(), limits, ..FunctionConfig::default() };
    let middleware = args.middleware.iter().map(|text| source(text)).collect::<anyhow::Result<_>>()?;
    Ok(Plan { name, component, middleware, config, secrets: Secrets::default() })
}

/// A file, or a place in a registry.
fn source(text: &str) -> anyhow::Result<Source> {
    if text.starts_with("oci://") {
        return Ok(Source::Oci(text.parse()?));
    }
    ensure!(!text.contains("://"), "middleware on the web needs its digest: write a {}", manifest::FILE);
    Ok(Source::File(text.into()))
}

/// What can be told without a server, and, if one runs, what that says.
fn check(
    global: &Global,
    plan: Plan,
    shown: &str,
    bytes: &[u8],
    middleware: &[Fetched],
    traffic: bool,
) -> anyhow::Result<()> {
    let mistakes = plan.config.mistakes();
    ensure!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    component::check_kind(bytes).with_context(|| shown.to_owned())?;
    for part in middleware {
        component::check_kind(&part.bytes).with_context(|| part.from.clone())?;
    }
    let Plan { name, config, secrets, .. } = plan;
    let client = match global.client() {
        Ok(client) => client,
        Err(error) if is_no_server(&error) => return without_a_server(&name),
        Err(error) => return Err(error),
    };
    let component = match client.upload(bytes) {
        Err(ClientError::NoServer(_)) => return without_a_server(&name),
        uploaded => uploaded.with_context(|| format!("{shown} could not be deployed"))?,
    };
    let middleware = upload(&client, middleware).with_context(|| format!("{shown} could not be deployed"))?;
    let request = DeployRequest { component, config, secrets, source: String::new(), middleware, traffic };
    client.check_deploy(&name, &request).with_context(|| format!("{shown} could not be deployed"))?;
    println!("{name} can be deployed; nothing was changed");
    Ok(())
}

fn is_no_server(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::NoServer(_)))
}

#[allow(clippy::unnecessary_wraps)] // it ends a command
fn without_a_server(name: &FunctionName) -> anyhow::Result<()> {
    println!("{name} looks right; no server runs here to check its imports, models and routes");
    Ok(())
}

fn tell(client: &Client, name: &FunctionName, config: &FunctionConfig, deployed: &Deployed) -> anyhow::Result<()> {
    let revision = deployed.revision;
    let listen = client.status()?.listen;
    let function = &deployed.function;
    let route = config.routes.first().map(RouteConfig::url_part).unwrap_or_default();
    if function.traffic.has(revision) {
        println!("{name} {revision} is deployed: http://{listen}{route}");
    } else if function.pending.as_ref().is_some_and(|pending| pending.has(revision)) {
        println!("{name} {revision} is warming; {} serves until its models are resident", function.traffic);
    } else {
        println!(
            "{name} {revision} is deployed without traffic; curl -H 'hob-revision: {revision}' http://{listen}{route}"
        );
    }
    if let Some(host) = config.routes.first().and_then(|route| route.host.as_ref()) {
        println!("it answers requests for the host {host}");
    }
    Ok(())
}

/// `target/my_app.wasm` is called `my-app`.
fn name_of(component: &Source) -> anyhow::Result<FunctionName> {
    component.stem().replace('_', "-").to_lowercase().parse().context("name the function with --name")
}
