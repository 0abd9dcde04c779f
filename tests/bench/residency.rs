//! Many functions, one set of weights: what sharing a model costs, and what it must never cost.
//!
//! All over a real `hob serve` and real sockets, with a client on the same cores. Each row has a module of its own.

mod absent;
mod heavy;
mod join;
mod killed;
mod many;
mod storm;
mod turns;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hob::config::FunctionConfig;
use hob::request::Summary;
use hob_tests::{Connection, Hob, MODEL};

use crate::report::Report;

pub fn run(report: &mut Report, only: Option<&str>) -> Result<()> {
    type Row = fn(&mut Report) -> Result<()>;
    let rows: [(&str, Row); 7] = [
        ("many", many::run),
        ("join", join::run),
        ("heavy", heavy::run),
        ("storm", storm::run),
        ("turns", turns::run),
        ("absent", absent::run),
        ("killed", killed::run),
    ];
    let names = rows.map(|(name, _)| name).join(", ");
    ensure!(only.is_none_or(|only| rows.iter().any(|(name, _)| *name == only)), "residency has the rows {names}");
    // The client stands for one that is elsewhere, and has a core of its own to read on.
    hob_gpu::short_turns();
    for (name, row) in rows {
        if only.is_none_or(|only| only == name) {
            report.note(&format!("residency: {name}"));
            row(report).with_context(|| format!("row `{name}`"))?;
        }
    }
    Ok(())
}

/// A function that may use the model.
fn with_model() -> FunctionConfig {
    FunctionConfig { models: vec![MODEL.parse().expect("it is a name")], ..FunctionConfig::default() }
}

/// Asks for a stream of text that goes on for a while, and leaves after its first piece: the invocation's id, and the time
/// from the first byte sent to the first piece read. Connecting is not in it.
fn first_token(hob: &Hob, path: &str) -> Result<(String, Duration)> {
    let mut connection = Connection::open(hob.address());
    let asked = Instant::now();
    connection.get(path);
    let head = connection.head();
    ensure!(head.status == 200, "{path} answered {}: {}", head.status, connection.body());
    connection.chunk().context("the answer is empty")?;
    let time = asked.elapsed();
    Ok((head.header("x-hob-invocation").context("the answer has an id")?.to_owned(), time))
}

/// Waits until nothing runs in the engine: who left is noticed at the end of a step.
fn wait_until_idle(hob: &Hob) -> Result<()> {
    let started = Instant::now();
    std::thread::sleep(Duration::from_millis(15));
    while counter(hob, "hob_engine_sequences_running")? + counter(hob, "hob_engine_sequences_waiting")? > 0 {
        ensure!(started.elapsed() < Duration::from_secs(60), "the engine is not idle after a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A number of the host's metrics.
fn counter(hob: &Hob, name: &str) -> Result<u64> {
    let metrics = hob.client().metrics()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("there is no metric {name}"))?.parse()?)
}

/// Where the time of these invocations went, once all of them have ended.
fn summaries(hob: &Hob, ids: &[String]) -> Vec<Summary> {
    hob.until("all have ended", || {
        let ended = hob.client().invocations().expect("the server runs").into_iter();
        let mut ended: HashMap<String, Summary> = ended.map(|summary| (summary.id.clone(), summary)).collect();
        ids.iter().map(|id| ended.remove(id)).collect()
    })
}
