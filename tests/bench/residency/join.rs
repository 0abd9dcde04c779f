//! A new function joins a model that others use: what that adds to the time that the engine reads its prompt.
//!
//! Of the client's time, from the first byte sent to the first piece of text read, the meter's prefill time is subtracted:
//! from when the engine took the sequence into its batch until the step was computed that has the prompt's last token. What
//! is left is the host's: reading the request, finding the function, making the instance, the guest's own work, joining the model,
//! the engine's queue, choosing and writing the token, two sockets. Generation goes on meanwhile, as it would: the client reads the
//! first token while the engine computes the second.
//!
//! Each function has a component of its own, has just been deployed over the API, and was never called. One that nobody has called
//! for some minutes is mapped and linked anew by its next request; that is measured by restarting the server.

use anyhow::Result;
use hob::config::{FunctionConfig, RouteConfig};
use hob::digest::Digest;
use hob::function_host::{DeployRequest, Host, HostConfig};
use hob::request::Summary;
use hob::{DataDir, names::FunctionName};
use hob_tests::{Hob, ServeOptions, component, distinct};

use super::{first_token, summaries, wait_until_idle, with_model};
use crate::report::{Measure, Report, quantile};

const FUNCTIONS: usize = 500;

pub fn run(report: &mut Report) -> Result<()> {
    let mut hob = start(&[])?;
    report.code_path(hob.client().status()?.code_path);
    warm_up(&hob)?;
    let (times, splits) = ask_each(&hob)?;
    let ms = |us: u64| us as f64 / 1e3;
    let join = |(time, split): (&f64, &Summary)| time - ms(split.prefill_us);
    let mut joins: Vec<f64> = times.iter().zip(&splits).map(join).collect();
    let name = "new function, resident model: first token less prefill";
    report.add(Measure::new(format!("{name}, p50"), quantile(&mut joins, 0.5), "ms").at_most(1.0));
    report.add(Measure::new(format!("{name}, p99"), quantile(&mut joins, 0.99), "ms").at_most(3.0));
    let mut part = |name: &str, of: &dyn Fn((&f64, &Summary)) -> f64| {
        let mut values: Vec<f64> = times.iter().zip(&splits).map(of).collect();
        report.add(Measure::new(format!("  {name}, p50"), quantile(&mut values, 0.5), "ms"));
    };
    part("prefill, which is subtracted", &|(_, split)| ms(split.prefill_us));
    part("of the rest: the function's gate", &|(_, split)| ms(split.wait_us));
    part("of the rest: making its store", &|(_, split)| ms(split.accept_us));
    part("of the rest: instantiate", &|(_, split)| ms(split.instantiate_us));
    part("of the rest: join", &|(_, split)| ms(split.join_us));
    part("of the rest: queue", &|(_, split)| ms(split.queue_us));
    part("of the rest: guest, choice of the token, and waking those who wait", &|(_, split)| {
        let known = split.wait_us + split.accept_us + split.instantiate_us + split.join_us;
        let known = known + split.queue_us + split.prefill_us;
        ms(split.first_token_us.unwrap_or(0)) - ms(known)
    });
    part("of the rest: sockets, from the guest's first text to the client", &|(time, split)| {
        time - ms(split.first_token_us.unwrap_or(0))
    });
    hob.kill();
    hob.restart();
    warm_up(&hob)?;
    let (times, splits) = ask_each(&hob)?;
    let mut mapped: Vec<f64> = times.iter().zip(&splits).map(join).collect();
    report.add(Measure::new("  a function that is mapped first, p50", quantile(&mut mapped, 0.5), "ms"));
    report.add(Measure::new("  a function that is mapped first, p99", quantile(&mut mapped, 0.99), "ms"));
    drop(hob);
    // One core of two is the requests'.
    let hob = start(&["--threads", "1"])?;
    warm_up(&hob)?;
    let (times, splits) = ask_each(&hob)?;
    let mut apart: Vec<f64> = times.iter().zip(&splits).map(join).collect();
    report.add(Measure::new("  a new function, the engine with one thread, p50", quantile(&mut apart, 0.5), "ms"));
    report.add(Measure::new("  a new function, the engine with one thread, p99", quantile(&mut apart, 0.99), "ms"));
    Ok(())
}

/// A server on which all functions were deployed just now. They have been compiled: what one compiles to is what all do.
fn start(args: &[&str]) -> Result<Hob> {
    let home = tempfile::tempdir()?;
    let data = DataDir::open(Some(home.path()))?;
    let guest = std::fs::read(component("guest-infer"))?;
    let first = Digest::of(&guest);
    let host = Host::open(data.clone(), HostConfig::default())?;
    host.upload(first, &guest)?;
    host.components().compile(&first)?;
    let engine = host.components().engine().compatibility().to_owned();
    drop(host);
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let hob = Hob::on(home, ServeOptions { model: true, args, ..ServeOptions::default() });
    for n in 0..=FUNCTIONS {
        let bytes = distinct(&guest, &n.to_le_bytes());
        let digest = hob.client().upload(&bytes)?;
        std::fs::copy(data.compiled(&engine, &first), data.compiled(&engine, &digest))?;
        let name: FunctionName = format!("function-{n}").parse()?;
        let routes = vec![RouteConfig::path(name.default_route())];
        let config = FunctionConfig { routes, ..with_model() };
        hob.client().deploy(&name, &DeployRequest::new(digest, config))?;
    }
    Ok(hob)
}

/// The model is resident, and read fast: the last function has used it.
fn warm_up(hob: &Hob) -> Result<()> {
    for _ in 0..50 {
        first_token(hob, &format!("/function-{FUNCTIONS}?do=stream&max_tokens=64"))?;
        wait_until_idle(hob)?;
    }
    Ok(())
}

/// Calls each function once: the client's milliseconds to the first token, and the host's split of them.
fn ask_each(hob: &Hob) -> Result<(Vec<f64>, Vec<Summary>)> {
    let (mut ids, mut times) = (Vec::new(), Vec::new());
    for n in 0..FUNCTIONS {
        let (id, time) = first_token(hob, &format!("/function-{n}?do=stream&max_tokens=64"))?;
        ids.push(id);
        times.push(time.as_secs_f64() * 1e3);
        wait_until_idle(hob)?;
    }
    let splits = summaries(hob, &ids);
    Ok((times, splits))
}
