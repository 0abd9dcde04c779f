//! Two models in a budget that holds one: each request makes one go for the other, a thousand times each way.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hob::config::FunctionConfig;
use hob_tests::{Hob, MODEL, ServeOptions, TWIN, get, lend_twin};

use super::counter;
use crate::cold;
use crate::fleet::Memory;
use crate::report::{Measure, Report, quantile};

const CYCLES: usize = 1_000;
/// After this nothing goes on any more.
const SETTLED: Duration = Duration::from_secs(3);
/// Room for one, and not for both.
const ROOM: &str = "180MB";

pub fn run(report: &mut Report) -> Result<()> {
    let home = tempfile::tempdir()?;
    lend_twin(home.path());
    let args = vec!["--model-memory".into(), ROOM.into()];
    let hob = Hob::on(home, ServeOptions { model: true, args, ..ServeOptions::default() });
    let models = [MODEL, TWIN].map(|name| name.parse().expect("it is a name")).to_vec();
    hob.deploy_as("guest-infer", "infer", FunctionConfig { models, ..FunctionConfig::default() });
    let (mut failed, mut times, mut levels) = (0, Vec::new(), Vec::new());
    for cycle in 0..CYCLES {
        for model in [MODEL, TWIN] {
            let asked = Instant::now();
            let (status, body) = get(&hob.url(&format!("/infer?do=raw&max_tokens=2&model={model}")));
            times.push(asked.elapsed().as_secs_f64() * 1e3);
            if status != 200 {
                failed += 1;
                report.note(&format!("turns: cycle {cycle}, {model}: {status} {body}"));
            }
        }
        // With neither in memory.
        if cycle == 0 || cycle + 1 == CYCLES || cycle % 100 == 0 {
            cold::evict_model(&hob, TWIN)?;
            // A thread that was moving its weights to huge pages ends, too.
            std::thread::sleep(SETTLED);
            levels.push(Memory::of(&hob)?.own as f64 / f64::from(1 << 20));
        }
    }
    ensure!(counter(&hob, "hob_models_resident")? == 0, "both models are gone");
    let (first, last) = (levels[0], levels[levels.len() - 1]);
    let most = levels.iter().copied().fold(0.0, f64::max);
    let name = "two models in room for one, 1,000 cycles";
    report.add(Measure::new(format!("{name}: failed requests"), f64::from(failed), "").at_most(0.0));
    report.add(Measure::new(format!("{name}: memory beyond the first's"), last - first, "MiB").at_most(1.0));
    report.add(Measure::new("  at its most, looked at every hundredth", most - first, "MiB"));
    report.add(Measure::new("  after the first cycle", first, "MiB"));
    report.add(Measure::new(
        "  a request that evicts, loads, and makes two tokens, p50",
        quantile(&mut times, 0.5),
        "ms",
    ));
    report.add(Measure::new("  the same, p99", quantile(&mut times, 0.99), "ms"));
    Ok(())
}
