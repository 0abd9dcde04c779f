//! A server with many functions: records are written as the host writes them, without deploying each over its API.
//! Distinct components differ in a section that nobody reads, so that what one compiles to is what all compile to: it is
//! copied, not compiled anew.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hob::DataDir;
use hob::config::{FunctionConfig, RouteConfig};
use hob::digest::Digest;
use hob::function_host::{Host, HostConfig};
use hob::names::{FunctionName, RevisionId, Tenant};
use hob::records::{FunctionRecord, Records, RevisionRecord};
use hob_tests::{Hob, ServeOptions, component, distinct};

/// Functions `function-0`, `function-1`... over one package.
pub struct Fleet<'a> {
    /// What `cargo xtask guests` built.
    pub package: &'a str,
    /// How many functions.
    pub functions: usize,
    /// Whether each has a component of its own.
    pub apart: bool,
    /// What all of them are given, beside their routes.
    pub config: FunctionConfig,
    /// Whose the `n`th is.
    pub tenant: fn(usize) -> Tenant,
}

/// A server that has just started.
pub struct Started {
    pub hob: Hob,
    pub ready_ms: f64,
}

impl Fleet<'_> {
    /// A server with these functions.
    pub fn start(&self, options: ServeOptions) -> Result<Started> {
        let home = tempfile::tempdir()?;
        self.prepare(home.path())?;
        let started = Instant::now();
        let hob = Hob::on(home, options);
        Ok(Started { hob, ready_ms: started.elapsed().as_secs_f64() * 1e3 })
    }

    fn prepare(&self, home: &Path) -> Result<()> {
        let data = DataDir::open(Some(home))?;
        let bytes = std::fs::read(component(self.package))?;
        let first = Digest::of(&bytes);
        let host = Host::open(data.clone(), HostConfig::default())?;
        host.upload(first, &bytes)?;
        host.components().compile(&first)?;
        let engine = host.components().engine().compatibility().to_owned();
        drop(host);
        let mut records = Vec::with_capacity(self.functions);
        for n in 0..self.functions {
            let component = if self.apart { copy(&data, &engine, &bytes, &first, n)? } else { first };
            records.push(self.record(n, component)?);
        }
        let records = records.iter().map(|(function, revision)| (function, revision));
        Ok(Records::open(&data.records())?.import(records)?)
    }

    fn record(&self, n: usize, component: Digest) -> Result<(FunctionRecord, RevisionRecord)> {
        let name: FunctionName = format!("function-{n}").parse()?;
        let routes = vec![RouteConfig::path(name.default_route())];
        let revision = RevisionRecord {
            id: RevisionId::FIRST,
            component,
            parts: Vec::new(),
            source: format!("{}.wasm", self.package),
            config: FunctionConfig { routes, ..self.config.clone() },
            deployed_at: 1,
        };
        Ok((FunctionRecord::first(name, (self.tenant)(n)), revision))
    }
}

/// The `n`th component, as it lies there after it was deployed.
fn copy(data: &DataDir, engine: &str, bytes: &[u8], first: &Digest, n: usize) -> Result<Digest> {
    let bytes = distinct(bytes, &n.to_le_bytes());
    let digest = Digest::of(&bytes);
    std::fs::write(data.component(&digest), &bytes)?;
    std::fs::copy(data.compiled(engine, first), data.compiled(engine, &digest))?;
    Ok(digest)
}

/// What a server has in memory, in bytes.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Nobody else has it, and it is nowhere else.
    pub own: u64,
    /// Pages of mapped files: the kernel can read them again.
    pub files: u64,
}

impl Memory {
    /// What the server has in memory, once that has settled.
    pub fn of(hob: &Hob) -> Result<Self> {
        std::thread::sleep(Duration::from_millis(200));
        Self::now(hob)
    }

    /// The same at this moment.
    pub fn now(hob: &Hob) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", hob.pid()))?;
        let line = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel counts it")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok(Self { own: line("RssAnon:")? + line("RssShmem:")?, files: line("RssFile:")? })
    }

    /// What each of `count` takes beyond `base`, in KiB: of its own, and pages of files.
    pub fn each_beyond(self, base: Self, count: usize) -> (f64, f64) {
        let kib = |now: u64, base: u64| now.saturating_sub(base) as f64 / 1024.0 / count as f64;
        (kib(self.own, base.own), kib(self.files, base.files))
    }
}
