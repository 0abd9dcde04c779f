//! A server that is killed a hundred times, while models come and go and what is used is written down.

use anyhow::Result;
use hob_tests::kill_over_and_over;

use crate::report::{Measure, Report, quantile};

const ROUNDS: usize = 100;

pub fn run(report: &mut Report) -> Result<()> {
    let deaths = kill_over_and_over(ROUNDS, 1);
    for trouble in deaths.errors.iter().chain(&deaths.wrong) {
        report.note(&format!("killed: {trouble}"));
    }
    let count = |name: &str, value: usize| Measure::new(format!("killed {ROUNDS} times: {name}"), value as f64, "");
    report.add(count("errors, or wrong answers, after a start", deaths.errors.len() + deaths.wrong.len()).at_most(0.0));
    report.add(count("records that were there twice, or numbers left out", deaths.doubled).at_most(0.0));
    report.add(count("records lost of what was more than a second old", deaths.lost).at_most(0.0));
    report.add(count("starts after which sums were not those of the records", deaths.wrong_sums).at_most(0.0));
    report.add(count("  records in all", deaths.records));
    report.add(count("  requests answered more than a second before an end", deaths.long_ago));
    report.add(count("  invocations that ran at an end", deaths.killed));
    report.add(count("  models on their way in or out at an end", deaths.moving));
    let mut starts: Vec<f64> = deaths.starts.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    report.add(Measure::new("  start after a kill, p50", quantile(&mut starts, 0.5), "ms"));
    Ok(())
}
