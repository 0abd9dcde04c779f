//! `hob serve`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hob_gpu::StartError;

use super::again::Again;
use super::engine::EngineArgs;
use crate::api::{Control, ControlConfig};
use crate::data::DataDir;
use crate::function_host::{Host, HostConfig, HostError};
use crate::instance::engine::PoolConfig;
use crate::model_api::{KeyRule, ModelApiConfig};
use crate::server::{Server, ServerConfig, ServerTls};
use crate::telemetry::Collector;

/// How often a card is looked at.
const CARD_LOOK: Duration = Duration::from_millis(100);
/// How long a process that has started again waits for its card.
const CARD_PATIENCE: Duration = Duration::from_secs(300);
/// How long what needs no card may go on when one has failed: those who come wait for the process that follows.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What is done when a card has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OnCardFault {
    /// Start again, with the same listeners
    Restart,
    /// Go on without: what asks for it is refused, and /health says so
    Stay,
}

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
    /// When a card has failed, which a process cannot mend: start again in place, or go on without it
    #[arg(long, value_enum, default_value = "restart", value_name = "WHAT")]
    on_card_fault: OnCardFault,
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
    let mut again = Again::from_environment();
    let host = open_again(data, &args, &again).await?;
    let mut config = server_config(&args)?;
    let workers = config.threads;
    let where_else = || format!("cannot listen on {}; choose another address with --listen", args.listen);
    config.listener = Some(Arc::new(again.listen("data", args.listen).await.with_context(where_else)?));
    let server = Server::start(host.clone(), config).await.with_context(where_else)?;
    let models = models_server(&host, &args, &mut again).await?;
    let where_else = || format!("cannot listen on {}; choose another address with --control", args.control);
    let mut config = control_config(&args)?;
    config.listener = Some(Arc::new(again.listen("control", args.control).await.with_context(where_else)?));
    let control = Control::start(host.clone(), config, server.address()).await.with_context(where_else)?;
    let functions = host.functions();
    let engine = host.library().engines();
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    eprintln!("Serving HTTP on {scheme}://{}/", server.address());
    tracing::info!(
        control = %control.address(), data = %host.data().root().display(), functions = functions.len(),
        code_path = %engine.runs_on(), activations = %engine.config().activations, kv = %engine.config().kv_type,
        threads = engine.config().threads, workers, ready_ms = started.elapsed().as_millis() as u64, "hob is ready",
    );
    let patience = Duration::from_secs(args.drain.into());
    let lost = tokio::select! {
        signal = stop_signal() => signal.map(|()| false)?,
        () = card_fails(&host, &again), if args.on_card_fault == OnCardFault::Restart => true,
    };
    if lost {
        tracing::error!("a card has failed; hob starts again, with the same listeners");
        stop(&host, [Some(server), models], patience.min(LAST_ANSWERS)).await?;
        tokio::task::spawn_blocking(move || host.usage().stop()).await?;
        return Err(again.start()).context("cannot start again after a card has failed");
    }
    stop(&host, [Some(server), models], patience).await?;
    drop(control);
    // Here, and not when the last who holds the host lets go of it: what was used is on disk when the process ends.
    tokio::task::spawn_blocking(move || host.usage().stop()).await?;
    Ok(())
}

/// Waits until a card has failed, and for a while if that happens again and again: the rest of the host works meanwhile.
async fn card_fails(host: &Host, again: &Again) {
    while !host.library().engines().is_lost() {
        tokio::time::sleep(CARD_LOOK).await;
    }
    tokio::time::sleep(again.pause()).await;
}

/// Opens the host. A process that has started again does not give up at once: a card may need a while.
async fn open_again(data: DataDir, args: &Args, again: &Again) -> anyhow::Result<Arc<Host>> {
    let started = Instant::now();
    loop {
        match open(data.clone(), args).await {
            Err(error) if again.is_again() && is_card(&error) && started.elapsed() < CARD_PATIENCE => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the card is not back yet; it is tried again in a second"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            opened => return opened,
        }
    }
}

fn is_card(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(HostError::Engine(StartError::Card { .. })))
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
async fn models_server(host: &Arc<Host>, args: &Args, again: &mut Again) -> anyhow::Result<Option<Server>> {
    let Some(listen) = args.models.model_listen else { return Ok(None) };
    let where_else = || format!("cannot listen on {listen}; choose another with --model-listen");
    let listener = Some(Arc::new(again.listen("models", listen).await.with_context(where_else)?));
    let models = args.models.config();
    let config = ServerConfig { listen, listener, models, models_only: true, ..server_config(args)? };
    let server = Server::start(host.clone(), config).await.with_context(where_else)?;
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
        devices: args.engine.devices()?,
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
