//! `cargo xtask bench [GROUP [ROW]] [--json]`: measures, beside its peers where they are given.
//!
//! Peers are named by environment variables: `HOB_PEER_WASMTIME` (the `wasmtime` command, version 48); llama.cpp's
//! `HOB_PEER_LLAMA_BENCH`, `HOB_PEER_LLAMA_BATCHED` and `HOB_PEER_LLAMA_SERVER`; ik_llama.cpp's `HOB_PEER_IK_BENCH`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it talks to a person

mod api;
mod card;
mod cold;
mod demo;
mod density;
mod engine;
mod fleet;
mod host;
mod load;
mod peers;
mod process;
mod report;
mod residency;
mod stall;

use std::process::ExitCode;

use anyhow::{Result, bail};
use report::Report;

const GROUPS: [&str; 6] = ["host", "density", "cold", "engine", "residency", "api"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let json = args.iter().position(|arg| arg == "--json").map(|at| args.remove(at)).is_some();
    let mut report = Report::new(json);
    let groups: Vec<&str> = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => GROUPS.to_vec(),
        ["demo"] => return demo::run(&mut report),
        // Not one of all: it needs an NVIDIA card.
        ["card", rest @ ..] => {
            let done = match rest {
                [] => card::run(&mut report, false),
                ["small"] => card::run(&mut report, true),
                _ => bail!("`card`, or `card small`"),
            };
            // A card may be had once: what was measured until something failed is worth having.
            report.print();
            return done;
        }
        ["residency", row] => {
            residency::run(&mut report, Some(row))?;
            report.print();
            return Ok(());
        }
        [group] => vec![*group],
        _ => bail!("one group at a time: {}", GROUPS.join(", ")),
    };
    for group in groups {
        match group {
            "host" => host::run(&mut report)?,
            "density" => density::run(&mut report)?,
            "cold" => cold::run(&mut report)?,
            "engine" => engine::run(&mut report)?,
            "api" => api::run(&mut report)?,
            "residency" => residency::run(&mut report, None)?,
            other => bail!("no group is called `{other}`; there are {}", GROUPS.join(", ")),
        }
    }
    report.print();
    Ok(())
}
