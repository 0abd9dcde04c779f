//! From a request to the first token, through a function: the model resident, and not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hob::request::Summary;
use hob_tests::{Connection, Hob, MODEL};

use crate::report::{Measure, Report, quantile};

const RUNS: usize = 20;
const QUESTION: &str = r#"{"messages":[{"role":"user","content":"Why is the sky blue?"}]}"#;

/// One request, as the client and as the host saw it.
pub struct Run {
    /// From the first byte sent to the first piece of text read.
    pub client: Duration,
    /// The host's split of it.
    pub split: Summary,
}

pub fn run(report: &mut Report) -> Result<()> {
    let hob = Hob::with_model();
    hob.deploy_with_model("chat");
    report.code_path(hob.client().status()?.code_path);
    measure(report, &hob, RUNS)
}

/// Measures both temperatures, and adds them to the report.
pub fn measure(report: &mut Report, hob: &Hob, runs: usize) -> Result<()> {
    for resident in [true, false] {
        let state = if resident { "resident" } else { "not resident (file in page cache)" };
        report.note(&format!("cold: first token, model {state}"));
        ask(hob)?;
        let runs = (0..runs)
            .map(|_| {
                if !resident {
                    evict(hob)?;
                }
                ask(hob)
            })
            .collect::<Result<Vec<_>>>()?;
        add(report, state, &runs);
    }
    Ok(())
}

fn add(report: &mut Report, state: &str, runs: &[Run]) {
    let mut add = |part: &str, of: &dyn Fn(&Run) -> f64| {
        let mut values: Vec<_> = runs.iter().map(of).collect();
        report.add(Measure::new(format!("{part}; model {state}"), quantile(&mut values, 0.5), "ms"));
    };
    let ms = |us: u64| us as f64 / 1e3;
    add("request to first token", &|run| run.client.as_secs_f64() * 1e3);
    add("  of that: accept", &|run| ms(run.split.accept_us));
    add("  of that: instantiate", &|run| ms(run.split.instantiate_us));
    add("  of that: join", &|run| ms(run.split.join_us));
    add("  of that: queue", &|run| ms(run.split.queue_us));
    add("  of that: prefill (36 tokens)", &|run| ms(run.split.prefill_us));
    add("  of that: the rest, guest and sockets", &|run| {
        let split = &run.split;
        let known = split.accept_us + split.instantiate_us + split.join_us + split.queue_us + split.prefill_us;
        run.client.as_secs_f64() * 1e3 - ms(known)
    });
}

/// Asks once, and leaves after the first token.
pub fn ask(hob: &Hob) -> Result<Run> {
    // The engine is to be idle: the one that left before is noticed at the end of a step.
    std::thread::sleep(Duration::from_millis(50));
    let mut connection = Connection::open(hob.address());
    let asked = Instant::now();
    connection.post("/chat", QUESTION);
    let head = connection.head();
    anyhow::ensure!(head.status == 200, "the function answered {}: {}", head.status, connection.body());
    connection.chunk().context("the answer is empty")?;
    let client = asked.elapsed();
    drop(connection);
    let id = head.header("x-hob-invocation").context("the answer has an id")?.to_owned();
    Ok(Run { client, split: hob.ended(|summary| summary.id == id) })
}

/// Gives the model's memory back; its last user may be on the way out still.
pub fn evict(hob: &Hob) -> Result<()> {
    evict_model(hob, MODEL)
}

/// The same of any model.
pub fn evict_model(hob: &Hob, model: &str) -> Result<()> {
    let name = model.parse()?;
    let started = Instant::now();
    loop {
        match hob.client().evict(&name) {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > Duration::from_secs(5) => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
