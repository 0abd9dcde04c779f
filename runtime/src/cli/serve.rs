//! `hob serve`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::engine::EngineArgs;
use crate::api::{Control, ControlConfig};
use crate::data::DataDir;
use crate::function_host::{Host, HostConfig};
use crate::instance::engine::PoolConfig;
use crate::model_api::{KeyRule, ModelApiConfig};
use crate::server::{Server, ServerConfig, ServerTls};
use crate::telemetry::Collector;

#[derive(clap::Args)]
pub struct Args {
    /// Where functions are called
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where `hob` commands reach this server; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    control: SocketAddr,
    /// Speak TLS on the control listener with this certificate, a PEM file; commands on this machine use another, on loopback
    #[arg(long, value_name = "FILE", requires = "control_tls_key")]
    control_tls_cert: Option<PathBuf>,
    /// That certificate's key, a PEM file
    #[arg(long, value_name = "FILE", requires = "control_tls_cert")]
    control_tls_key: Option<PathBuf>,
    /// Threads for requests [default: one a core]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Connections at once; those beyond wait
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Speak TLS (HTTP/1.1 and HTTP/2) with this certificate, a PEM file with those between it and its authority
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificate authorities that functions' outgoing requests trust, beside those of the web: a PEM file
    #[arg(long, value_name = "FILE")]
    egress_ca: Vec<PathBuf>,
    /// When it is asked to stop: how long what runs may go on, in seconds, while new requests are refused
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    drain: u32,
    /// Answers without the Server-Timing header, which says where their time went
    #[arg(long)]
    no_server_timing: bool,
    /// A collector that gets a trace of each request, over OTLP/HTTP as JSON, as in http://localhost:4318; also from
    /// OpenTelemetry's variables, as headers and attributes are [default: OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// What this server is called in traces [default: OTEL_SERVICE_NAME, or hob]
    #[arg(long, value_name = "NAME")]
    otlp_service: Option<String>,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Instances that can live at once
    #[arg(long, default_value_t = PoolConfig::default().instances, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    instances: u32,
}

/// The APIs of OpenAI, Ollama and Anthropic.
#[derive(clap::Args)]
struct ModelArgs {
    /// Leave the paths of the model APIs (/v1/..., /api/...) to functions
    #[arg(long)]
    no_model_api: bool,
    /// Answer the model APIs there, and not where functions are called
    #[arg(long, value_name = "ADDR", conflicts_with = "no_model_api")]
    model_listen: Option<SocketAddr>,
    /// Answer the model APIs for this host only; functions have their paths on all others
    #[arg(long, value_name = "HOST", conflicts_with = "no_model_api")]
    model_host: Option<String>,
    /// Whether the model APIs need a key: required, optional, or auto: required unless only this machine reaches them
    #[arg(long, value_name = "RULE", default_value = "auto")]
    model_keys: KeyRule,
    /// Web pages from there may call the model APIs, as in https://chat.example.com; `*` for all [default: this machine's]
    #[arg(long, value_name = "ORIGIN")]
    model_origin: Vec<String>,
    /// Largest request that the model APIs take, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = ModelApiConfig::default().body_bytes)]
    model_request_bytes: usize,
}

impl ModelArgs {
    fn config(&self) -> Option<ModelApiConfig> {
        (!self.no_model_api).then(|| ModelApiConfig {
            host: self.model_host.clone(),
            keys: self.model_keys,
            origins: self.model_origin.clone(),
            body_bytes: self.model_request_bytes,
        })
    }
}

pub fn run(data: DataDir, args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(data, args))
}

async fn serve(data: DataDir, args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let host = open(data, &args).await?;
    let config = server_config(&args)?;
    let workers = config.threads;
    let server = Server::start(host.clone(), config)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))?;
    let models = models_server(&host, &args).await?;
    let control = Control::start(host.clone(), control_config(&args)?, server.address())
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --control", args.control))?;
    let functions = host.functions();
    let engine = host.library().engine();
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    eprintln!("Serving HTTP on {scheme}://{}/", server.address());
    tracing::info!(
        control = %control.address(), data = %host.data().root().display(), functions = functions.len(),
        code_path = %engine.runs_on(), activations = %engine.config().activations, kv = %engine.config().kv_type,
        threads = engine.config().threads, workers, ready_ms = started.elapsed().as_millis() as u64, "hob is ready",
    );
    stop_signal().await?;
    stop(&host, [Some(server), models], Duration::from_secs(args.drain.into())).await?;
    drop(control);
    // Here, and not when the last who holds the host lets go of it: what was used is on disk when the process ends.
    tokio::task::spawn_blocking(move || host.usage().stop()).await?;
    Ok(())
}

/// Takes no more work, and lets what runs end: for `patience` at most, or until a second signal.
async fn stop(host: &Host, servers: [Option<Server>; 2], patience: Duration) -> anyhow::Result<()> {
    tracing::info!(patience_s = patience.as_secs(), "stopping: new requests are refused, those that run may end");
    host.drain();
    let running = tokio::select! {
        running = host.drained(patience) => running,
        signal = stop_signal() => signal.map(|()| 1)?,
    };
    if running > 0 {
        tracing::warn!(running, "what still runs is cut off");
        host.give_up();
    }
    for server in servers.into_iter().flatten() {
        match running {
            // The rest of the answers, on its way to those who read slowly.
            0 => server.stop().await,
            _ => server.stop_within(Duration::ZERO).await,
        }
    }
    Ok(())
}

fn control_config(args: &Args) -> anyhow::Result<ControlConfig> {
    let mut config = ControlConfig::new(args.control);
    if let (Some(cert), Some(key)) = (&args.control_tls_cert, &args.control_tls_key) {
        config.tls = Some(ServerTls::open(cert, key)?);
    }
    Ok(config)
}

fn server_config(args: &Args) -> anyhow::Result<ServerConfig> {
    let mut config = ServerConfig::new(args.listen);
    config.threads = args.workers.unwrap_or(config.threads);
    config.connections = args.connections as usize;
    config.models = args.models.config().filter(|_| args.models.model_listen.is_none());
    if let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) {
        config.tls = Some(ServerTls::open(cert, key)?);
    }
    Ok(config)
}

/// The model APIs' own listener, if they are to have one.
async fn models_server(host: &Arc<Host>, args: &Args) -> anyhow::Result<Option<Server>> {
    let Some(listen) = args.models.model_listen else { return Ok(None) };
    let config = ServerConfig { listen, models: args.models.config(), models_only: true, ..server_config(args)? };
    let server = Server::start(host.clone(), config).await;
    let server = server.with_context(|| format!("cannot listen on {listen}; choose another with --model-listen"))?;
    tracing::info!(listen = %server.address(), "the model APIs have a listener of their own");
    Ok(Some(server))
}

async fn open(data: DataDir, args: &Args) -> anyhow::Result<Arc<Host>> {
    let pool = PoolConfig { instances: args.instances, ..PoolConfig::default() };
    let variable = |name: &str| std::env::var(name).ok();
    let traces = Collector::named(args.otlp_endpoint.as_deref(), args.otlp_service.as_deref(), variable)?;
    let config = HostConfig {
        pool,
        engine: args.engine.config(),
        egress_roots: args.egress_ca.clone(),
        hide_timing: args.no_server_timing,
        traces,
        ..HostConfig::default()
    };
    Ok(tokio::task::spawn_blocking(|| Host::open(data, config)).await??)
}

async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result,
    }
}
