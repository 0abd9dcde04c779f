//! Whole processes, beside llama-server: from start to the first token, and memory at its peak.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hob_tests::{Connection, hob_binary, model_home};
use serde_json::json;

use crate::host::{Killed, free_address};
use crate::peers::Peer;
use crate::report::{Measure, Report, quantile};

const RUNS: usize = 10;
const PROMPT: &str = "Once upon a time";
/// Four tokens each: near the end of a context of [`CONTEXT`].
const REPEATED: usize = 950;
const CONTEXT: &str = "4096";
const GENERATED: u32 = 32;

pub fn run(
    report: &mut Report,
    name: impl Fn(&str) -> String,
    (model, file): (&str, &Path),
    threads: usize,
    server: Option<&Peer>,
) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(start(model, threads)?.as_secs_f64() * 1e3);
        if let Some(server) = server {
            theirs.push(Server::start(server, file, threads)?.ask(PROMPT, 1)?.as_secs_f64() * 1e3);
        }
    }
    let peer = |value: f64| server.map(|server| (server.name.to_owned(), value));
    let median = |values: &mut Vec<f64>| if values.is_empty() { 0.0 } else { quantile(values, 0.5) };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    let start = Measure::new(name("process start to first token"), ours, "ms").peer(peer(theirs));
    report.add(start.ratio_at_most(1.0 / 3.0));

    let prompt = [PROMPT; REPEATED].join(" ");
    let file_bytes = std::fs::metadata(file)?.len();
    let beyond = |peak: u64| (peak as f64 - file_bytes as f64) / 1e6;
    let ours = beyond(peak(model, threads, &prompt)?);
    let theirs = match server {
        Some(server) => {
            let server = Server::start(server, file, threads)?;
            server.ask(&prompt, GENERATED)?;
            beyond(peak_bytes(&server.process.0).context("the server runs")?)
        }
        None => 0.0,
    };
    let memory = Measure::new(name("memory beyond the file, 3,800 tokens"), ours, "MB").peer(peer(theirs));
    report.add(memory.ratio_at_most(1.0));
    Ok(())
}

fn hob_run(model: &str, threads: usize, prompt: &str, max_tokens: u32) -> Result<Child> {
    let (threads, max_tokens) = (threads.to_string(), max_tokens.to_string());
    Command::new(hob_binary())
        .args(["run", model, prompt, "--raw", "--threads", &threads, "--max-tokens", &max_tokens])
        .env("HOB_DATA", model_home())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("hob cannot be started")
}

/// From the start of `hob run` to the first byte of its answer.
fn start(model: &str, threads: usize) -> Result<Duration> {
    let started = Instant::now();
    let mut process = hob_run(model, threads, PROMPT, 1)?;
    let mut answer = process.stdout.take().expect("it is piped");
    answer.read_exact(&mut [0]).context("hob answers")?;
    let time = started.elapsed();
    ensure!(process.wait()?.success(), "hob did not answer well");
    Ok(time)
}

/// The most memory that `hob run` had, looked at each millisecond.
fn peak(model: &str, threads: usize, prompt: &str) -> Result<u64> {
    let mut process = Killed(hob_run(model, threads, prompt, GENERATED)?);
    let mut peak = None;
    while process.0.try_wait()?.is_none() {
        peak = peak_bytes(&process.0).or(peak);
        std::thread::sleep(Duration::from_millis(1));
    }
    ensure!(process.0.wait()?.success(), "hob did not answer well");
    peak.context("hob was seen while it ran")
}

/// The most memory that a process has had so far, pages of mapped files included; `None` once it has ended.
fn peak_bytes(process: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A llama-server.
pub struct Server {
    process: Killed,
    address: SocketAddr,
    started: Instant,
}

impl Server {
    fn start(peer: &Peer, model: &Path, threads: usize) -> Result<Self> {
        Self::start_for(peer, model, threads, CONTEXT, "1")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts one with so many tokens of context, shared by so many sequences.
    pub fn start_for(peer: &Peer, model: &Path, threads: usize, context: &str, sequences: &str) -> Result<Self> {
        let address = free_address()?;
        let (threads, port) = (threads.to_string(), address.port().to_string());
        let sizes = ["-fit", "off", "-t", &threads, "-tb", &threads, "-c", context, "-np", sequences];
        let plain = ["--no-warmup", "--no-ui", "--offline", "--cache-ram", "0", "--no-cache-prompt"];
        let listen = ["--host", "127.0.0.1", "--port", &port];
        let started = Instant::now();
        let mut command = peer.command(&[&sizes[..], &plain, &listen].concat());
        command.arg("-m").arg(model).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Killed(command.spawn().context("HOB_PEER_LLAMA_SERVER cannot be started")?);
        let mut server = Self { process, address, started };
        while !server.is_healthy() {
            if let Some(status) = server.process.0.try_wait()? {
                bail!("llama-server ended with {status}");
            }
            ensure!(started.elapsed() < Duration::from_secs(60), "llama-server is not up after a minute");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(server)
    }

    fn is_healthy(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }

    /// Asks, and reads the whole answer; from the start of the process to the first piece of it.
    fn ask(&self, prompt: &str, tokens: u32) -> Result<Duration> {
        let body = json!({
            "prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": true, "cache_prompt": false,
        });
        let mut connection = Connection::open(self.address);
        connection.post("/completion", &body.to_string());
        let head = connection.head();
        ensure!(head.status == 200, "llama-server answered {}: {}", head.status, connection.body());
        let first = connection.chunk().context("llama-server's answer is empty")?;
        let time = self.started.elapsed();
        ensure!(first.starts_with("data: "), "llama-server sent no event: {first}");
        while connection.chunk().is_some() {}
        Ok(time)
    }
}
