//! The function host: how fast an instance starts, how many requests a second.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hob::config::{FunctionConfig, Reuse, RouteConfig};
use hob::function_host::{DeployRequest, Host, HostConfig};
use hob::names::Tenant;
use hob::{DataDir, Server, ServerConfig, digest::Digest};
use hob_tests::{Connection, Hob, component};
use http_body_util::{BodyExt as _, Empty};
use tempfile::TempDir;

use crate::load;
use crate::report::{Measure, Report, quantile};

const TIME: Duration = Duration::from_secs(4);

pub fn run(report: &mut Report) -> Result<()> {
    in_process(report)?;
    over_sockets(report)?;
    kinds(report)?;
    limits(report)?;
    beside_a_spinner(report)
}

/// Fresh requests without a socket: what the host itself costs.
fn in_process(report: &mut Report) -> Result<()> {
    report.note("host: requests in process");
    let (_home, host) = embedded(false)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut times = runtime.block_on(async {
        let mut times = Vec::new();
        for _ in 0..10_000 {
            let request = http::Request::get("http://bench/").body(Empty::<Bytes>::new())?;
            let asked = Instant::now();
            let answer = host.handle(request).await;
            answer.into_body().collect().await.context("the guest answers")?;
            times.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        anyhow::Ok(times.split_off(1000))
    })?;
    // Only the last thousand are remembered: enough for a median.
    let mut starts: Vec<f64> = host.recent().iter().map(|summary| summary.instantiate_us as f64).collect();
    report.add(Measure::new("instance start, p50", quantile(&mut starts, 0.5), "us"));
    report.add(Measure::new("instance start, p99", quantile(&mut starts, 0.99), "us"));
    report.add(Measure::new("fresh no-op request in process, p50", quantile(&mut times, 0.5), "us").at_most(20.0));
    report.add(Measure::new("fresh no-op request in process, p99", quantile(&mut times, 0.99), "us").at_most(60.0));
    Ok(())
}

/// A host in this process, with a function. If it is `free`, without limits and metrics.
fn embedded(free: bool) -> Result<(TempDir, Arc<Host>)> {
    let home = tempfile::tempdir()?;
    let host = Host::open(DataDir::open(Some(home.path()))?, HostConfig { free, ..HostConfig::default() })?;
    let bytes = std::fs::read(component("hello"))?;
    let digest = Digest::of(&bytes);
    host.upload(digest, &bytes)?;
    let routes = vec![RouteConfig::path("/".parse()?)];
    let request = DeployRequest::new(digest, FunctionConfig { routes, ..FunctionConfig::default() });
    host.deploy(&Tenant::default(), "hello".parse()?, request)?;
    Ok((home, host))
}

/// What all limits and metrics cost: two hosts in this process, one without them, measured in turns.
fn limits(report: &mut Report) -> Result<()> {
    const CONNECTIONS: usize = 64;
    const ROUNDS: usize = 5;
    report.note("host: limits and metrics on, and off");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let start = |free| {
        let (home, host) = embedded(free)?;
        let config = ServerConfig::new("127.0.0.1:0".parse()?);
        let server = runtime.block_on(Server::start(host.clone(), config))?;
        anyhow::Ok((home, host, server))
    };
    let (on, off) = (start(false)?, start(true)?);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with.push(load::run(on.2.address(), "/", CONNECTIONS, TIME / 2)?.rate);
        without.push(load::run(off.2.address(), "/", CONNECTIONS, TIME / 2)?.rate);
    }
    let without = Some(("without any".to_owned(), quantile(&mut without, 0.5)));
    let name = format!("no-op requests/s, all limits and metrics, {CONNECTIONS} connections");
    report.add(Measure::new(name, quantile(&mut with, 0.5), "1/s").peer(without).ratio_at_least(0.9));
    Ok(())
}

fn over_sockets(report: &mut Report) -> Result<()> {
    let hob = Hob::start();
    hob.deploy("hello", &["--route", "/"]);
    for connections in [1, 16, 64] {
        report.note(&format!("host: {connections} connections"));
        let ours = load::run(hob.address(), "/", connections, TIME)?;
        let peer = peer("hello", &[], "/", connections)?;
        let rate = peer.as_ref().map(|load| ("wasmtime serve, tuned pool".into(), load.rate));
        let measure = Measure::new(format!("no-op requests/s, {connections} connections"), ours.rate, "1/s");
        report.add(measure.peer(rate).ratio_at_least(1.2));
        for (name, ours, theirs) in [
            ("p50", ours.p50_us, peer.as_ref().map(|load| load.p50_us)),
            ("p99", ours.p99_us, peer.as_ref().map(|load| load.p99_us)),
        ] {
            let theirs = theirs.map(|value| ("wasmtime serve, tuned pool".into(), value));
            report
                .add(Measure::new(format!("no-op answer, {connections} connections, {name}"), ours, "us").peer(theirs));
        }
    }
    Ok(())
}

/// Instances that answer many requests, and WASI 0.3; the peer reuses its instances in the same way.
fn kinds(report: &mut Report) -> Result<()> {
    const CONNECTIONS: usize = 64;
    let hob = Hob::start();
    let many = |concurrent| Reuse { requests: 128, concurrent, idle_ms: 1000 };
    let (once, times) = ("--max-instance-reuse-count=1", "--max-instance-reuse-count=128");
    let (one, some) = ("--max-instance-concurrent-reuse-count=1", "--max-instance-concurrent-reuse-count=16");
    for (guest, name, kind, reuse, peers) in [
        ("hello", "reused", "0.2, reused 128 times", many(1), vec![times]),
        ("guest-three", "fresh3", "0.3, fresh", Reuse::default(), vec![once, one]),
        ("guest-three", "reused3", "0.3, reused 128 times", many(1), vec![times, one]),
        ("guest-three", "shared3", "0.3, reused 128 times, 16 at once", many(16), vec![times, some]),
    ] {
        report.note(&format!("host: WASI {kind}"));
        hob.deploy_as(guest, name, FunctionConfig { reuse, ..FunctionConfig::default() });
        let path = format!("/{name}");
        let load = load::run(hob.address(), &path, CONNECTIONS, TIME)?;
        let rate = peer(guest, &peers, &path, CONNECTIONS)?.map(|load| ("wasmtime serve, the same".into(), load.rate));
        let name = format!("no-op requests/s, WASI {kind}, {CONNECTIONS} connections");
        report.add(Measure::new(name, load.rate, "1/s").peer(rate).ratio_at_least(1.0));
    }
    Ok(())
}

/// What a guest that computes all the time costs a no-op function beside it.
fn beside_a_spinner(report: &mut Report) -> Result<()> {
    const CONNECTIONS: usize = 64;
    report.note("host: beside a guest that spins");
    let hob = Hob::start();
    hob.deploy("hello", &["--route", "/"]);
    hob.deploy("guest-spin", &["--timeout", "3600"]);
    let alone = load::run(hob.address(), "/", CONNECTIONS, TIME)?;
    let mut spinning = Connection::open(hob.address());
    spinning.get("/guest-spin");
    let beside = load::run(hob.address(), "/", CONNECTIONS, TIME)?;
    let alone = Some(("alone".to_owned(), alone.p99_us));
    let measure =
        Measure::new(format!("no-op answer beside a spinner, {CONNECTIONS} connections, p99"), beside.p99_us, "us");
    report.add(measure.peer(alone).ratio_at_most(3.0));
    Ok(())
}

/// `wasmtime serve` on the same component, with the stock flags that make it three times faster than its defaults.
fn peer(guest: &str, reuse: &[&str], path: &str, connections: usize) -> Result<Option<load::Load>> {
    let Some(wasmtime) = std::env::var_os("HOB_PEER_WASMTIME") else {
        if connections == 1 {
            eprintln!("host: HOB_PEER_WASMTIME is not set; no comparison with `wasmtime serve`");
        }
        return Ok(None);
    };
    const TUNED: &str = "pooling-pagemap-scan=y,pooling-memory-keep-resident=524288,pooling-table-keep-resident=65536,pooling-async-stack-keep-resident=65536";
    let address = free_address()?;
    let process = Command::new(wasmtime)
        // The standard library of wasm32-wasip2 imports the command line.
        .args(["serve", "-S", "cli", "-O", TUNED, "--addr", &address.to_string()])
        .args(reuse)
        .arg(component(guest))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("HOB_PEER_WASMTIME cannot be started")?;
    let _process = Killed(process);
    wait_for(address)?;
    load::run(address, path, connections, TIME).map(Some)
}

/// A child that does not outlive its measurement.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that nobody listens on.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Waits until somebody listens.
pub fn wait_for(address: SocketAddr) -> Result<()> {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        if started.elapsed() > Duration::from_secs(30) {
            bail!("nobody listens on {address}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
