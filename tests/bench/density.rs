//! Many functions on one host: what each costs in memory, how long a start takes, and how many can be served.
//!
//! Records are written as the host writes them, without deploying each over its API. Distinct components differ in a
//! section that nobody reads, so that what one compiles to is what all compile to: it is copied, not compiled anew.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hob::DataDir;
use hob::config::{FunctionConfig, RouteConfig};
use hob::digest::Digest;
use hob::function_host::{Host, HostConfig};
use hob::names::{FunctionName, RevisionId, Tenant};
use hob::records::{FunctionRecord, Records, RevisionRecord};
use hob_tests::{Connection, Hob, ServeOptions, component, distinct};

use crate::report::{Measure, Report, quantile};

/// Functions over one component.
const SHARED: usize = 10_000;
/// Functions over a component each.
const DISTINCT: usize = 1_000;
/// More than the address space of a process has regions for.
const MANY: usize = 6_000;

pub fn run(report: &mut Report) -> Result<()> {
    let alone = start(1, false)?;
    let base = memory(&alone.hob)?;
    touch(&alone.hob, 1)?;
    let base_called = memory(&alone.hob)?;
    drop(alone);

    report.note(&format!("density: {SHARED} functions over one component"));
    let shared = start(SHARED, false)?;
    let each = |now: Memory, base: Memory, count: usize| {
        let kib = |now: u64, base: u64| now.saturating_sub(base) as f64 / 1024.0 / count as f64;
        (kib(now.own, base.own), kib(now.files, base.files))
    };
    let (idle, _) = each(memory(&shared.hob)?, base, SHARED);
    report.add(Measure::new("10,000 functions, one component: start to ready", shared.ready_ms, "ms").at_most(2000.0));
    report.add(Measure::new("10,000 functions, one component: each, idle", idle, "KiB").at_most(4.0));
    touch(&shared.hob, SHARED)?;
    let (called, _) = each(memory(&shared.hob)?, base_called, SHARED);
    report.add(Measure::new("10,000 functions, one component: each, once called", called, "KiB"));
    drop(shared);

    report.note(&format!("density: {DISTINCT} functions, each over its own component"));
    let apart = start(DISTINCT, true)?;
    let ((idle, _), regions) = (each(memory(&apart.hob)?, base, DISTINCT), maps(&apart.hob)?);
    report.add(Measure::new("1,000 functions, 1,000 components: start to ready", apart.ready_ms, "ms").at_most(2000.0));
    report.add(Measure::new("1,000 functions, 1,000 components: each, idle", idle, "KiB").at_most(80.0));
    let mut first = touch(&apart.hob, DISTINCT)?;
    let (called, files) = each(memory(&apart.hob)?, base_called, DISTINCT);
    report.add(Measure::new("1,000 functions, 1,000 components: each, once called", called, "KiB"));
    report.add(Measure::new("  beside that, pages of its file that the kernel may drop", files, "KiB"));
    report.add(Measure::new("first call of a function, p50", quantile(&mut first, 0.5), "ms"));
    report.add(Measure::new("first call of a function, p99", quantile(&mut first, 0.99), "ms"));
    let regions = maps(&apart.hob)?.saturating_sub(regions) as f64 / DISTINCT as f64;
    report.add(Measure::new("regions of address space for each mapped component", regions, "regions"));
    drop(apart);

    report.note(&format!("density: {MANY} functions, each over its own component, all called twice"));
    let many = start(MANY, true)?;
    touch(&many.hob, MANY)?;
    touch(&many.hob, MANY)?;
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count")?.trim().parse::<f64>()?;
    report.add(Measure::new("6,000 components called in turn: start to ready", many.ready_ms, "ms"));
    report.add(
        Measure::new("6,000 components called in turn: regions", maps(&many.hob)? as f64, "regions").at_most(most),
    );
    Ok(())
}

struct Started {
    hob: Hob,
    ready_ms: f64,
}

/// A server with so many functions, just started.
fn start(functions: usize, apart: bool) -> Result<Started> {
    let home = tempfile::tempdir()?;
    prepare(home.path(), functions, apart)?;
    let started = Instant::now();
    let hob = Hob::on(home, ServeOptions::default());
    Ok(Started { hob, ready_ms: started.elapsed().as_secs_f64() * 1e3 })
}

fn prepare(home: &Path, functions: usize, apart: bool) -> Result<()> {
    let data = DataDir::open(Some(home))?;
    let hello = std::fs::read(component("hello"))?;
    let first = Digest::of(&hello);
    let host = Host::open(data.clone(), HostConfig::default())?;
    host.upload(first, &hello)?;
    host.components().compile(&first)?;
    let engine = host.components().engine().compatibility().to_owned();
    drop(host);
    let mut records = Vec::with_capacity(functions);
    for n in 0..functions {
        let component = if apart { copy(&data, &engine, &hello, &first, n)? } else { first };
        records.push(record(n, component)?);
    }
    let records = records.iter().map(|(function, revision)| (function, revision));
    Ok(Records::open(&data.records())?.import(records)?)
}

/// The `n`th component, as it lies there after it was deployed.
fn copy(data: &DataDir, engine: &str, hello: &[u8], first: &Digest, n: usize) -> Result<Digest> {
    let bytes = distinct(hello, &n.to_le_bytes());
    let digest = Digest::of(&bytes);
    std::fs::write(data.component(&digest), &bytes)?;
    std::fs::copy(data.compiled(engine, first), data.compiled(engine, &digest))?;
    Ok(digest)
}

fn record(n: usize, component: Digest) -> Result<(FunctionRecord, RevisionRecord)> {
    let name: FunctionName = format!("function-{n}").parse()?;
    let routes = vec![RouteConfig::path(name.default_route())];
    let revision = RevisionRecord {
        id: RevisionId::FIRST,
        component,
        parts: Vec::new(),
        source: "hello.wasm".into(),
        config: FunctionConfig { routes, ..FunctionConfig::default() },
        deployed_at: 1,
    };
    Ok((FunctionRecord::first(name, Tenant::default()), revision))
}

/// Calls each function once; how long each call took, in milliseconds.
fn touch(hob: &Hob, functions: usize) -> Result<Vec<f64>> {
    let mut connection = Connection::open(hob.address());
    let mut times = Vec::with_capacity(functions);
    for n in 0..functions {
        let asked = Instant::now();
        connection.get(&format!("/function-{n}"));
        let head = connection.head();
        let body = connection.body();
        times.push(asked.elapsed().as_secs_f64() * 1e3);
        ensure!(head.status == 200, "function {n} answered {}: {body}", head.status);
    }
    Ok(times)
}

/// What a server has in memory, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    /// Nobody else has it, and it is nowhere else.
    own: u64,
    /// Pages of mapped files: the kernel can read them again.
    files: u64,
}

/// What the server has in memory, once that has settled.
fn memory(hob: &Hob) -> Result<Memory> {
    std::thread::sleep(Duration::from_millis(200));
    let status = std::fs::read_to_string(format!("/proc/{}/status", hob.pid()))?;
    let line = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel counts it")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    Ok(Memory { own: line("RssAnon:")? + line("RssShmem:")?, files: line("RssFile:")? })
}

/// Regions of address space that the server has.
fn maps(hob: &Hob) -> Result<usize> {
    Ok(std::fs::read_to_string(format!("/proc/{}/maps", hob.pid()))?.lines().count())
}
