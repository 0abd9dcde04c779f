//! llama.cpp and its relative, as they measure themselves.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A command that an environment variable names.
pub struct Peer {
    /// What people call it.
    pub name: &'static str,
    program: std::ffi::OsString,
}

impl Peer {
    /// The one that `variable` names, or a line that there is none.
    pub fn find(name: &'static str, variable: &str) -> Option<Self> {
        let program = std::env::var_os(variable);
        if program.is_none() {
            eprintln!("engine: {variable} is not set; no comparison with {name}");
        }
        Some(Self { name, program: program? })
    }

    /// The program, with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args);
        command
    }

    fn output(&self, args: &[&str], model: &Path) -> Result<Output> {
        let output = self.command(args).arg("-m").arg(model).output();
        let output = output.with_context(|| format!("{} cannot be started", self.program.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} ended with {}: {complaint}", self.program.display(), output.status);
        Ok(output)
    }

    /// llama-bench: tokens a second of prompts of so many tokens, and of `generate` tokens after nothing.
    pub fn bench<const N: usize>(
        &self,
        model: &Path,
        threads: usize,
        prompts: [usize; N],
        generate: u32,
    ) -> Result<([f64; N], f64)> {
        let p = prompts.map(|tokens| tokens.to_string()).join(",");
        let (n, t) = (generate.to_string(), threads.to_string());
        let output = self.output(&["-p", &p, "-n", &n, "-r", "1", "-o", "json", "-t", &t], model)?;
        let tests: Value = serde_json::from_slice(&output.stdout).context("llama-bench prints JSON")?;
        let rate = |prompt: usize, generated: u32| {
            let mut tests = tests.as_array()?.iter();
            let tokens = (Some(prompt as u64), Some(u64::from(generated)));
            tests.find(|test| (test["n_prompt"].as_u64(), test["n_gen"].as_u64()) == tokens)?["avg_ts"].as_f64()
        };
        let missing = || format!("llama-bench measures prompts of {p} tokens, and generating {n}");
        let mut rates = [0.0; N];
        for (rate_of, prompt) in rates.iter_mut().zip(prompts) {
            *rate_of = rate(prompt, 0).with_context(missing)?;
        }
        Ok((rates, rate(0, generate).with_context(missing)?))
    }

    /// llama-batched-bench: tokens a second, in total, of each number of sequences, after `prompt` tokens each.
    pub fn batched(
        &self,
        model: &Path,
        threads: usize,
        (prompt, generate): (usize, u32),
        sequences: &[usize],
    ) -> Result<Vec<f64>> {
        let list = sequences.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let (p, n, t) = (prompt.to_string(), generate.to_string(), threads.to_string());
        let sizes = ["-fit", "off", "-c", "8192", "-b", "2048", "-ub", "512", "-t", &t, "-tb", &t];
        let tests = ["-npp", &p, "-ntg", &n, "-npl", &list, "--output-format", "jsonl"];
        let output = self.output(&[&sizes[..], &tests].concat(), model)?;
        let lines = String::from_utf8_lossy(&output.stdout);
        let rows: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let rate = |n: &usize| rows.iter().find(|row| row["pl"].as_u64() == Some(*n as u64))?["speed_tg"].as_f64();
        sequences.iter().map(|n| rate(n).with_context(|| format!("no row has pl {n}"))).collect()
    }
}
