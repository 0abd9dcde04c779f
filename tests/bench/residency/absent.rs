//! A model that is not in memory, its file in page cache: from the request to the first token.

use anyhow::Result;
use hob_tests::Hob;

use crate::cold;
use crate::report::{Measure, Report, quantile};

const RUNS: usize = 50;

pub fn run(report: &mut Report) -> Result<()> {
    let hob = Hob::with_model();
    hob.deploy_with_model("chat");
    cold::ask(&hob)?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        cold::evict(&hob)?;
        times.push(cold::ask(&hob)?.client.as_secs_f64() * 1e3);
    }
    let name = "absent model, file in page cache: request to first token";
    report.add(Measure::new(format!("{name}, p50"), quantile(&mut times, 0.5), "ms").at_most(150.0));
    report.add(Measure::new(format!("{name}, slowest of {RUNS}"), quantile(&mut times, 1.0), "ms").at_most(150.0));
    Ok(())
}
