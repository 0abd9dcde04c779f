//! The engine alone: tokens a second, beside llama.cpp.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hob_gpu::{Ask, Engine, EngineConfig, Event, Model, ModelSource, Prompt, TokenId, Tokens};
use hob_tests::{MODEL, weights};

use crate::report::{Measure, Report};
use crate::stall;

/// Tokens of the prompt, and tokens generated.
const PROMPT: usize = 512;
const GENERATED: u32 = 128;

pub fn run(report: &mut Report) -> Result<()> {
    let config = EngineConfig::default();
    let threads = config.threads;
    let engine = Engine::start(config)?;
    report.code_path(engine.code_path());
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let source = ModelSource { name: MODEL.into(), path: weights(), digest: "bench".into() };
    let started = Instant::now();
    let model = runtime.block_on(engine.join(&source))?;
    let loaded = started.elapsed();
    let peer = peer(threads)?;
    let peer_of = |test: &str| {
        let rate = peer.iter().find(|(name, _)| name == test)?.1;
        Some(("llama.cpp".to_owned(), rate))
    };
    runtime.block_on(async {
        report.note("engine: one sequence");
        generate(&model, 1).await?; // pages of the file are touched for the first time
        let (mut prefill, mut decode) = (0.0_f64, 0.0_f64);
        for _ in 0..3 {
            let rates = generate(&model, 1).await?;
            (prefill, decode) = (prefill.max(rates.0), decode.max(rates.1));
        }
        let name = |what: &str| format!("{MODEL}, {threads} threads: {what}");
        report.add(Measure::new(name("load, file in page cache"), loaded.as_secs_f64() * 1e3, "ms"));
        report.add(Measure::new(name("prefill, 512 tokens"), prefill, "tokens/s").peer(peer_of("pp512")));
        let decode = Measure::new(name("decode, 1 sequence"), decode, "tokens/s").peer(peer_of("tg128"));
        report.add(decode.target(40.0));
        for sequences in [8, 32] {
            report.note(&format!("engine: {sequences} sequences"));
            let (_, rate) = generate(&model, sequences).await?;
            report.add(Measure::new(name(&format!("decode, {sequences} sequences, total")), rate, "tokens/s"));
        }
        report.note("engine: a long prompt beside 8 chats");
        stall::run(report, name, &model).await
    })
}

/// Generates in `sequences` sequences at once, all of them new to the engine; tokens a second of prefill (all of them) and of decode (in total).
async fn generate(model: &Model, sequences: usize) -> Result<(f64, f64)> {
    static PROMPTS: AtomicU32 = AtomicU32::new(0);
    let prompt: Vec<_> = (0..PROMPT).map(|n| TokenId(1000 + (n as u32 * 37) % 20_000)).collect();
    let prompt = if sequences == 1 { prompt } else { prompt[..32].to_vec() };
    let started = Instant::now();
    let mut running = Vec::new();
    for n in 0..sequences {
        let mut prompt = prompt.clone();
        prompt[0].0 += PROMPTS.fetch_add(1, Ordering::Relaxed); // no prefix is known
        let mut ask = Ask::new(Prompt::Tokens(prompt));
        ask.max_tokens = Some(GENERATED);
        ask.account = n as u64;
        running.push(model.generate(ask)?);
    }
    let mut generated = 0;
    let mut timing = None;
    for tokens in &mut running {
        drain(tokens).await?;
        generated += tokens.usage().generated_tokens;
        timing = Some(tokens.timing());
    }
    let timing = timing.context("at least one sequence ran")?;
    let prefill = PROMPT as f64 / timing.prefill.as_secs_f64();
    if sequences == 1 {
        return Ok((prefill, f64::from(generated - 1) / timing.decode.as_secs_f64()));
    }
    Ok((prefill, f64::from(generated) / started.elapsed().as_secs_f64()))
}

async fn drain(tokens: &mut Tokens) -> Result<()> {
    loop {
        match tokens.next().await {
            Event::Text(_) => {}
            Event::Finished(_) => return Ok(()),
            Event::Fault(why) => bail!("generation ended early: {why}"),
        }
    }
}

/// llama-bench on the same file: test name and tokens a second.
fn peer(threads: usize) -> Result<Vec<(String, f64)>> {
    let Some(bench) = std::env::var_os("HOB_PEER_LLAMA_BENCH") else {
        eprintln!("engine: HOB_PEER_LLAMA_BENCH is not set; no comparison with llama.cpp");
        return Ok(Vec::new());
    };
    let output = Command::new(bench)
        .args(["-p", "512", "-n", "128", "-r", "3", "-o", "json", "-t", &threads.to_string(), "-m"])
        .arg(weights())
        .output()
        .context("HOB_PEER_LLAMA_BENCH cannot be started")?;
    std::thread::sleep(Duration::from_millis(200));
    let tests: serde_json::Value = serde_json::from_slice(&output.stdout).context("llama-bench prints JSON")?;
    let tests = tests.as_array().context("llama-bench prints a list")?;
    Ok(tests
        .iter()
        .filter_map(|test| {
            let (prompt, generated) = (test["n_prompt"].as_u64()?, test["n_gen"].as_u64()?);
            let name = if generated == 0 { format!("pp{prompt}") } else { format!("tg{generated}") };
            Some((name, test["avg_ts"].as_f64()?))
        })
        .collect())
}
