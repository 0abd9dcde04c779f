//! Many functions on one host: what each costs in memory, how long a start takes, and how many can be served.

use std::time::Instant;

use anyhow::{Result, ensure};
use hob::config::FunctionConfig;
use hob::names::Tenant;
use hob_tests::{Connection, Hob, ServeOptions};

use crate::fleet::{Fleet, Memory, Started};
use crate::report::{Measure, Report, quantile};

/// Functions over one component.
const SHARED: usize = 10_000;
/// Functions over a component each.
const DISTINCT: usize = 1_000;
/// More than the address space of a process has regions for.
const MANY: usize = 6_000;

pub fn run(report: &mut Report) -> Result<()> {
    let alone = start(1, false)?;
    let base = Memory::of(&alone.hob)?;
    touch(&alone.hob, 1)?;
    let base_called = Memory::of(&alone.hob)?;
    drop(alone);

    report.note(&format!("density: {SHARED} functions over one component"));
    let shared = start(SHARED, false)?;
    let (idle, _) = Memory::of(&shared.hob)?.each_beyond(base, SHARED);
    report.add(Measure::new("10,000 functions, one component: start to ready", shared.ready_ms, "ms").at_most(2000.0));
    report.add(Measure::new("10,000 functions, one component: each, idle", idle, "KiB").at_most(4.0));
    touch(&shared.hob, SHARED)?;
    let (called, _) = Memory::of(&shared.hob)?.each_beyond(base_called, SHARED);
    report.add(Measure::new("10,000 functions, one component: each, once called", called, "KiB"));
    drop(shared);

    report.note(&format!("density: {DISTINCT} functions, each over its own component"));
    let apart = start(DISTINCT, true)?;
    let ((idle, _), regions) = (Memory::of(&apart.hob)?.each_beyond(base, DISTINCT), maps(&apart.hob)?);
    report.add(Measure::new("1,000 functions, 1,000 components: start to ready", apart.ready_ms, "ms").at_most(2000.0));
    report.add(Measure::new("1,000 functions, 1,000 components: each, idle", idle, "KiB").at_most(80.0));
    let mut first = touch(&apart.hob, DISTINCT)?;
    let (called, files) = Memory::of(&apart.hob)?.each_beyond(base_called, DISTINCT);
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

/// A server with so many functions, just started.
fn start(functions: usize, apart: bool) -> Result<Started> {
    let tenant = |_| Tenant::default();
    Fleet { package: "hello", functions, apart, config: FunctionConfig::default(), tenant }
        .start(ServeOptions::default())
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

/// Regions of address space that the server has.
fn maps(hob: &Hob) -> Result<usize> {
    Ok(std::fs::read_to_string(format!("/proc/{}/maps", hob.pid()))?.lines().count())
}
