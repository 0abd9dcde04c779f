//! The engine, alone and as a process, beside llama.cpp and ik_llama.cpp.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hob_gpu::{Engine, EngineConfig, Model, ModelSource, measure};
use hob_tests::weights_of;
use tokio::runtime::Runtime;

use crate::host::Killed;
use crate::peers::Peer;
use crate::report::{Measure, Report, quantile};
use crate::{process, stall};

const MODELS: [&str; 2] = ["smollm2:135m", "gemma3:270m"];
/// Rounds, in each of which hob and its peers measure in turn; the median of them counts.
const ROUNDS: usize = 3;
/// Tokens of prompts, and tokens generated.
const PROMPTS: [usize; 2] = [512, 4000];
const GENERATED: u32 = 128;
/// How many generate at once, and the prompt of each.
const SEQUENCES: [usize; 3] = [1, 8, 32];
const SHORT_PROMPT: usize = 32;

struct Peers {
    llama: Option<Peer>,
    ik: Option<Peer>,
    batched: Option<Peer>,
    server: Option<Peer>,
}

pub fn run(report: &mut Report) -> Result<()> {
    let peers = Peers {
        llama: Peer::find("llama.cpp", "HOB_PEER_LLAMA_BENCH"),
        ik: Peer::find("ik_llama.cpp", "HOB_PEER_IK_BENCH"),
        batched: Peer::find("llama-batched-bench", "HOB_PEER_LLAMA_BATCHED"),
        server: Peer::find("llama-server", "HOB_PEER_LLAMA_SERVER"),
    };
    let threads = EngineConfig::default().threads;
    let read_rate = measure::read_rate(threads)?;
    report.add(Measure::new(format!("memory read rate, {threads} threads"), read_rate / 1e9, "GB/s"));
    for model in MODELS {
        match weights_of(model) {
            Some(file) => self::model(report, &peers, model, &file)?,
            None => report.note(&format!("engine: {model} is not here; `hob models pull` gets it")),
        }
    }
    Ok(())
}

fn model(report: &mut Report, peers: &Peers, model: &str, file: &Path) -> Result<()> {
    let config = EngineConfig::default();
    let threads = config.threads;
    let name = |what: &str| format!("{model}, {threads} threads: {what}");
    // It comes first: nothing of ours is resident yet.
    report.note(&format!("engine: {model}, process start and memory"));
    process::run(report, name, (model, file), threads, peers.server.as_ref())?;
    let engine = Engine::start(config)?;
    report.code_path(engine.code_path());
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let source = ModelSource { name: model.into(), path: file.into(), digest: "bench".into() };
    let started = Instant::now();
    let joined = runtime.block_on(engine.join(&source))?;
    report.add(Measure::new(name("load, file in page cache"), started.elapsed().as_secs_f64() * 1e3, "ms"));
    runtime.block_on(measure::warm_up(&joined))?;
    rates(report, name, &runtime, &joined, peers, (file, threads))?;
    report.note(&format!("engine: {model} beside a busy process on each core"));
    contention(report, name, &runtime, &joined)?;
    report.note(&format!("engine: {model}, a long prompt beside 8 chats"));
    runtime.block_on(stall::run(report, name, &joined))
}

/// What was measured in all rounds: a list for each row.
#[derive(Default)]
struct Rounds {
    prefill: [Vec<f64>; PROMPTS.len()],
    decode: Vec<f64>,
    together: [Vec<f64>; SEQUENCES.len()],
    llama: ([Vec<f64>; PROMPTS.len()], Vec<f64>),
    ik: ([Vec<f64>; PROMPTS.len()], Vec<f64>),
    batched: [Vec<f64>; SEQUENCES.len()],
}

impl Rounds {
    fn round(
        &mut self,
        runtime: &Runtime,
        model: &Model,
        peers: &Peers,
        (file, threads): (&Path, usize),
    ) -> Result<()> {
        for (rates, tokens) in self.prefill.iter_mut().zip(PROMPTS) {
            rates.push(runtime.block_on(measure::prefill(model, tokens))?.rate());
        }
        // As llama-bench has it: with nothing before.
        self.decode.push(decode(runtime, model, 1, 1)?);
        for (peer, (prefill, decode)) in [(&peers.llama, &mut self.llama), (&peers.ik, &mut self.ik)] {
            if let Some(peer) = peer {
                let rates = peer.bench(file, threads, PROMPTS, GENERATED)?;
                prefill.iter_mut().zip(rates.0).for_each(|(rates, rate)| rates.push(rate));
                decode.push(rates.1);
            }
        }
        for (rates, sequences) in self.together.iter_mut().zip(SEQUENCES) {
            rates.push(decode(runtime, model, sequences, SHORT_PROMPT)?);
        }
        if let Some(peer) = &peers.batched {
            let batched = peer.batched(file, threads, (SHORT_PROMPT, GENERATED), &SEQUENCES)?;
            self.batched.iter_mut().zip(batched).for_each(|(rates, rate)| rates.push(rate));
        }
        Ok(())
    }
}

fn rates(
    report: &mut Report,
    name: impl Fn(&str) -> String,
    runtime: &Runtime,
    model: &Model,
    peers: &Peers,
    (file, threads): (&Path, usize),
) -> Result<()> {
    let mut rounds = Rounds::default();
    for round in 1..=ROUNDS {
        report.note(&format!("engine: {}, round {round} of {ROUNDS}", model.name()));
        rounds.round(runtime, model, peers, (file, threads))?;
    }
    let peer = |peer: &Option<Peer>, rates: &mut [f64]| Some((peer.as_ref()?.name.to_owned(), quantile(rates, 0.5)));
    let mut add = |what: &str, ours: &mut [f64], peer: Option<(String, f64)>, target: Option<f64>| {
        let measure = Measure::new(name(what), quantile(ours, 0.5), "tokens/s").peer(peer);
        report.add(match target {
            Some(ratio) => measure.ratio_at_least(ratio),
            None => measure,
        });
    };
    let ((llama_prefill, llama_decode), (ik_prefill, ik_decode)) = (&mut rounds.llama, &mut rounds.ik);
    let theirs = llama_prefill.iter_mut().zip(ik_prefill);
    for ((tokens, ours), (llama, ik)) in PROMPTS.into_iter().zip(&mut rounds.prefill).zip(theirs) {
        let prefill = format!("prefill, {tokens} tokens");
        add(&prefill, ours, peer(&peers.ik, ik), Some(1.0));
        if peers.llama.is_some() {
            add(&prefill, ours, peer(&peers.llama, llama), None);
        }
    }
    // The faster peer has the target.
    let mut faster = [peer(&peers.llama, llama_decode), peer(&peers.ik, ik_decode)];
    faster.sort_by(|a, b| b.as_ref().map_or(0.0, |b| b.1).total_cmp(&a.as_ref().map_or(0.0, |a| a.1)));
    let [faster, slower] = faster;
    add("decode, 1 sequence", &mut rounds.decode, faster, Some(1.5));
    if slower.is_some() {
        add("decode, 1 sequence", &mut rounds.decode, slower, None);
    }
    for ((ours, theirs), sequences) in rounds.together.iter_mut().zip(&mut rounds.batched).zip(SEQUENCES) {
        let target = (sequences == 32).then_some(2.5);
        add(&format!("decode, {sequences} at once, total"), ours, peer(&peers.batched, theirs), target);
    }
    // Each token reads all weights. Measured again here, since machines that others share change.
    let allowed = measure::read_rate(threads)? / model.info().weight_bytes as f64;
    let share = 100.0 * quantile(&mut rounds.decode, 0.5) / allowed;
    report.add(Measure::new(name("decode, 1 sequence, of what reading the weights allows"), share, "%"));
    Ok(())
}

fn decode(runtime: &Runtime, model: &Model, sequences: usize, prompt: usize) -> Result<f64> {
    Ok(runtime.block_on(measure::decode(model, sequences, prompt, GENERATED))?.rate())
}

/// Decode beside a process of our own priority on each core, and without, in turn.
fn contention(report: &mut Report, name: impl Fn(&str) -> String, runtime: &Runtime, model: &Model) -> Result<()> {
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        quiet.push(decode(runtime, model, 1, 1)?);
        let others = busy_processes()?;
        // They are to have begun.
        std::thread::sleep(Duration::from_millis(100));
        busy.push(decode(runtime, model, 1, 1)?);
        drop(others);
    }
    let percent = 100.0 * quantile(&mut busy, 0.5) / quantile(&mut quiet, 0.5);
    let row = name("decode beside busy cores, of the quiet rate");
    report.add(Measure::new(row, percent, "%").at_least(40.0));
    Ok(())
}

/// A busy process for each core; the system ends them after a minute of work, should we not.
fn busy_processes() -> Result<Vec<Killed>> {
    let cores = std::thread::available_parallelism()?.get();
    let spin = || {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -t 60; while :; do :; done"]).stdin(Stdio::null());
        shell.spawn().map(Killed).context("sh cannot be started")
    };
    (0..cores).map(|_| spin()).collect()
}
