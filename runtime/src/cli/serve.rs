//! `hob serve`

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use super::engine::EngineArgs;
use crate::api::Control;
use crate::data::DataDir;
use crate::function_host::{Host, HostConfig};
use crate::instance::engine::PoolConfig;
use crate::server::Server;

#[derive(clap::Args)]
pub struct Args {
    /// Where functions are called
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where `hob` commands reach this server; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    control: SocketAddr,
    /// Threads for requests [default: one a core]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Instances that can live at once
    #[arg(long, default_value_t = PoolConfig::default().instances, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    instances: u32,
}

pub fn run(data: DataDir, args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(data, args))
}

async fn serve(data: DataDir, args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let host = open(data, &args).await?;
    let workers = args.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let server = Server::start(host.clone(), args.listen, workers)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))?;
    let control = Control::start(host.clone(), args.control, server.address())
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --control", args.control))?;
    let functions = host.functions();
    let engine = host.library().engine();
    eprintln!("Serving HTTP on http://{}/", server.address());
    tracing::info!(
        control = %control.address(), data = %host.data().root().display(), functions = functions.len(),
        code_path = %engine.code_path(), activations = %engine.config().activations, kv = %engine.config().kv_type,
        threads = engine.config().threads, workers, ready_ms = started.elapsed().as_millis() as u64, "hob is ready",
    );
    stop_signal().await?;
    tracing::info!("stopping: no new requests, those that run have ten seconds");
    server.stop().await;
    drop(control);
    Ok(())
}

async fn open(data: DataDir, args: &Args) -> anyhow::Result<Arc<Host>> {
    let pool = PoolConfig { instances: args.instances, ..PoolConfig::default() };
    let config = HostConfig { pool, engine: args.engine.config(), ..HostConfig::default() };
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
