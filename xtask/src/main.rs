//! Every chore of the repository; thin, no logic that belongs in the product.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it talks to a person

mod guests;
mod kernels;
mod passed;
mod scripts;
mod skipped;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo            a real model answers through a sandboxed function, with the times it took
  test            all that must hold: format, lints, docs, guests, tests; tests that passed before are run when something that they
                  depend on has changed, and all of them with --all
  bench [GROUP]   measure (host, density, cold, engine, residency, api; all without a GROUP; card, on an NVIDIA card); --json for one object a line
  guests          build the examples and test guests into target/guests/out
  kernels         check the PTX of the card's kernels with NVIDIA's compiler; --write renews it
  fuzz TARGET [S] feed hostile files to a reader (gguf, checkpoint, tokenizer) for S seconds, 60 by default

Each brings what it lacks, once: the compiler's wasm targets, a model (98 MB), and for the tests a second one (253 MB),
what builds guests in JavaScript and Python, and clients of the model APIs (800 MB; needs python3, and skips them without).";

/// What is built and tested. Always all of them: cargo chooses features of dependencies for the packages at hand, and
/// builds these anew when they change.
const PACKAGES: [&str; 10] = ["-p", "hob-gpu", "-p", "hob", "-p", "hob-sdk", "-p", "hob-tests", "-p", "axum-plugins"];

/// The model that the demo, the tests and the benchmarks use.
const MODEL: &str = "smollm2:135m";
/// A second one, of another architecture, that the engine's golden tests use.
const SECOND_MODEL: &str = "gemma3:270m";
/// One that embeds.
const EMBEDDER: &str = "all-minilm:l6-v2";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["demo"] => demo(),
        ["test"] => test(false),
        ["test", "--all"] => test(true),
        ["bench", rest @ ..] => bench(rest),
        ["fuzz", target] => fuzz(target, "60"),
        ["fuzz", target, seconds] => fuzz(target, seconds),
        ["guests"] => all_guests(),
        ["kernels"] => kernels::run(root(), false),
        ["kernels", "--write"] => kernels::run(root(), true),
        ["help" | "--help" | "-h"] | [] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(anyhow::anyhow!("no command is called `{}`\n\n{USAGE}", args.join(" "))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    prepare()?;
    say("running the demo");
    run(hob_bench().arg("demo"))
}

fn bench(args: &[&str]) -> Result<()> {
    prepare()?;
    run(hob_bench().args(args))
}

fn test(all: bool) -> Result<()> {
    let started = Instant::now();
    skipped::begin(root())?;
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    say("bringing the clients of OpenAI's, Ollama's and Anthropic's APIs, beside what follows");
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| scripts::clients(root()));
        build_all()?;
        clients.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    pull(SECOND_MODEL)?;
    pull(EMBEDDER)?;
    step("tests of these chores", cargo().args(["test", "--release", "--quiet", "-p", "xtask"]))?;
    say("tests");
    let done = passed::run(root(), &cargo, &PACKAGES, (&data(), all));
    let skipped = skipped::show(root());
    done?;
    let but = if skipped == 0 { String::new() } else { format!(", but for {skipped} that could not be tested here") };
    say(&format!("all good{but}, in {} s", started.elapsed().as_secs()));
    Ok(())
}

/// What is seen without running the product, and what its tests run.
fn build_all() -> Result<()> {
    // The release profile: it shares build scripts and macros with the build below.
    let lints = ["clippy", "--release", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    step("lints", cargo().args(lints))?;
    let docs = ["doc", "--release", "--no-deps", "--quiet", "-p", "hob", "-p", "hob-gpu", "-p", "hob-sdk"];
    step("docs", cargo().args(docs).env("RUSTDOCFLAGS", "-D warnings"))?;
    say("the card's kernels");
    kernels::run(root(), false)?;
    prepare()?;
    say("building the guests in JavaScript and Python");
    scripts::build(root(), &guests::out(root()))
}

/// Runs libFuzzer on a target of `tests/fuzz`; what it finds stays in its corpus between runs.
fn fuzz(target: &str, seconds: &str) -> Result<()> {
    if !cargo().args(["fuzz", "--version"]).output().is_ok_and(|output| output.status.success()) {
        step("installing cargo-fuzz", cargo().args(["install", "cargo-fuzz", "--locked"]))?;
    }
    let fuzz = root().join("tests/fuzz");
    let (corpus, seeds) = (fuzz.join("corpus").join(target), fuzz.join("seeds").join(target));
    std::fs::create_dir_all(&corpus)?;
    let mut run = cargo();
    // Sanitizers are not stable; the compiler is the usual one all the same.
    run.env("RUSTC_BOOTSTRAP", "1").env_remove("CARGO_TARGET_DIR").args(["fuzz", "run", "--fuzz-dir"]).arg(&fuzz);
    run.arg(target)
        .arg(corpus)
        .arg(seeds)
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        // A header must not make a reader allocate what the file does not hold.
        .arg("-malloc_limit_mb=256")
        .arg("-print_final_stats=1");
    step(&format!("fuzzing {target} for {seconds} s"), &mut run)
}

fn all_guests() -> Result<()> {
    guests::build(root())?;
    scripts::build(root(), &guests::out(root()))
}

/// Builds what runs, and brings the model.
fn prepare() -> Result<()> {
    say("building the guests");
    guests::build(root())?;
    let build = ["build", "--release", "--bins"];
    step("build (the first takes some minutes)", cargo().args(build).args(PACKAGES))?;
    pull(MODEL)
}

/// Gets a model, unless it is here.
fn pull(model: &str) -> Result<()> {
    let mut pull = Command::new(release("hob"));
    pull.args(["models", "pull", model]).env("HOB_DATA", data());
    step(&format!("model {model}"), &mut pull)
}

fn hob_bench() -> Command {
    let mut command = Command::new(release("hob-bench"));
    // A backtrace for each guest that traps would only slow down what is measured.
    command.env("HOB_TEST_DATA", data()).env_remove("RUST_BACKTRACE");
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where models are kept between runs: out of the user's own data directory.
fn data() -> PathBuf {
    root().join("target/hob-data")
}

fn release(program: &str) -> PathBuf {
    root().join("target/release").join(program)
}

/// Cargo for the host, on this repository's own target folder.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", root().join("target"));
    // What cargo told this process about its own package. Some build scripts ask to run again where that changes, and all
    // that depends on them would be built anew each time that cargo is run now by hand and now from here.
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    command
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    say(name);
    run(command).with_context(|| format!("step `{name}` failed"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}; what went wrong is above", command.get_program().display());
    }
    Ok(())
}

fn say(what: &str) {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    match STARTED.elapsed().as_secs() {
        0 => println!("== {what}"),
        seconds => println!("== {what} (after {seconds} s)"),
    }
}
