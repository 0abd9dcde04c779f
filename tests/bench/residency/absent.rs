//! A model that is not in memory, its file in page cache: from the request to the first token.

use anyhow::{Context as _, Result};
use hob_tests::{Hob, MODEL};

use crate::cold;
use crate::report::{Measure, Report, quantile};

const RUNS: usize = 50;

pub fn run(report: &mut Report) -> Result<()> {
    let hob = Hob::with_model();
    hob.deploy_with_model("chat");
    cold::ask(&hob)?;
    let (mut times, mut loads, mut evictions) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        cold::evict(&hob)?;
        let models = hob.client().all_models()?;
        let moves = models.into_iter().find(|model| model.name == MODEL).context("it is on disk")?;
        loads.extend(moves.last_load_us.map(|us| us as f64 / 1e3));
        evictions.extend(moves.last_eviction_us.map(|us| us as f64 / 1e3));
        times.push(cold::ask(&hob)?.client.as_secs_f64() * 1e3);
    }
    let name = "absent model, file in page cache: request to first token";
    report.add(Measure::new(format!("{name}, p50"), quantile(&mut times, 0.5), "ms").at_most(150.0));
    report.add(Measure::new(format!("{name}, slowest of {RUNS}"), quantile(&mut times, 1.0), "ms").at_most(150.0));
    report.add(Measure::new("  of that: the load, p50", quantile(&mut loads, 0.5), "ms"));
    report.add(Measure::new("  beside that: giving its memory back, p50", quantile(&mut evictions, 0.5), "ms"));
    Ok(())
}
