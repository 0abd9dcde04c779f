//! 1,000 functions over one model: what each takes beside the first, and whether the last is answered as soon.

use anyhow::Result;
use hob::names::Tenant;
use hob_tests::{Hob, ServeOptions};

use super::{first_token, wait_until_idle, with_model};
use crate::fleet::{Fleet, Memory, Started};
use crate::report::{Measure, Report, quantile};

const FUNCTIONS: usize = 1_000;
/// First calls of which the median is compared: one alone says more of the machine than of hob.
const SOME: usize = 100;

pub fn run(report: &mut Report) -> Result<()> {
    // As many calls on a server with one function: what they leave behind is not the functions'.
    let alone = start(1)?;
    let base = Memory::of(&alone.hob)?;
    warm_up(&alone.hob, 0)?;
    (0..FUNCTIONS).try_for_each(|_| call(&alone.hob, 0).map(drop))?;
    let base_called = Memory::of(&alone.hob)?;
    drop(alone);

    let many = start(FUNCTIONS)?;
    let (deployed, _) = Memory::of(&many.hob)?.each_beyond(base, FUNCTIONS - 1);
    warm_up(&many.hob, 0)?;
    (0..FUNCTIONS - SOME).try_for_each(|n| call(&many.hob, n).map(drop))?;
    // The first ones of a server that has no more are called in turn with the last ones: a machine's clock changes in the minute
    // between the first and the last.
    let few = start(SOME + 1)?;
    warm_up(&few.hob, SOME)?;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for n in 0..SOME {
        first.push(call(&few.hob, n)?);
        last.push(call(&many.hob, FUNCTIONS - SOME + n)?);
    }
    drop(few);
    let (called, files) = Memory::of(&many.hob)?.each_beyond(base_called, FUNCTIONS - 1);
    report.add(Measure::new("1,000 functions, one model: each beyond the first, deployed", deployed, "KiB"));
    report.add(Measure::new("1,000 functions, one model: each, called once, now idle", called, "KiB").at_most(150.0));
    report.add(Measure::new("  beside that, pages of its component that the kernel may drop", files, "KiB"));
    let first = Some((format!("the first {SOME}, in turn"), quantile(&mut first, 0.5)));
    let name = format!("first token of a function's first call, the last {SOME} of 1,000");
    report.add(Measure::new(name, quantile(&mut last, 0.5), "ms").peer(first).ratio_at_most(1.1));
    Ok(())
}

/// A server whose functions have a component each, and all of them the model.
fn start(functions: usize) -> Result<Started> {
    let tenant = |_| Tenant::default();
    let fleet = Fleet { package: "guest-infer", functions, apart: true, config: with_model(), tenant };
    fleet.start(ServeOptions { model: true, ..ServeOptions::default() })
}

/// The model is loaded, and on its way to where it is read fast.
fn warm_up(hob: &Hob, function: usize) -> Result<()> {
    (0..20).try_for_each(|_| call(hob, function).map(drop))
}

/// Calls a function when nothing else runs: milliseconds to the first token.
fn call(hob: &Hob, function: usize) -> Result<f64> {
    let (_, time) = first_token(hob, &format!("/function-{function}?do=stream&max_tokens=64"))?;
    wait_until_idle(hob)?;
    Ok(time.as_secs_f64() * 1e3)
}
