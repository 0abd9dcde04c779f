//! The command line: one file for each subcommand.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it talks to a person

mod again;
mod bench;
mod command;
mod deploy;
mod engine;
mod functions;
mod gpu;
mod keys;
mod logs;
mod models;
mod push;
mod revisions;
mod run;
mod serve;
mod tenants;
mod usage;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::builder::OsStringValueParser;
use clap::{Parser, Subcommand};

use crate::client::Client;
use crate::data::DataDir;

/// Run WebAssembly functions that share resident models.
#[derive(Parser)]
#[command(name = "hob", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// Where hob keeps functions and models [default: ~/.local/share/hob]
    #[arg(long, env = "HOB_DATA", value_name = "DIR", global = true, value_parser = OsStringValueParser::new())]
    data: Option<OsString>,
    /// The control API of a server elsewhere, as in https://10.0.0.7:9000 [default: the server of this directory]
    #[arg(long, env = "HOB_SERVER", value_name = "URL", global = true)]
    server: Option<String>,
    /// The key to it, from `hob keys create`; better in the variable, which other users of the machine do not see
    #[arg(long, env = "HOB_KEY", value_name = "KEY", global = true, hide_env_values = true)]
    key: Option<String>,
    /// Whom to trust when that server speaks TLS: certificate authorities in a PEM file [default: whom this machine trusts]
    #[arg(long, env = "HOB_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

impl Global {
    /// The directory named, if one is: an empty variable names none.
    fn data(&self) -> Option<&Path> {
        self.data.as_deref().filter(|path| !path.is_empty()).map(Path::new)
    }

    /// Whether a server was named, rather than a directory.
    fn is_elsewhere(&self) -> bool {
        self.server.as_deref().is_some_and(|server| !server.is_empty())
    }

    /// A client of the server that is meant.
    fn client(&self) -> anyhow::Result<Client> {
        match self.server.as_deref().filter(|_| self.is_elsewhere()) {
            Some(server) => {
                let key = self.key.clone().context("give the key of that server in HOB_KEY, or with --key")?;
                match self.ca.as_deref().filter(|path| !path.as_os_str().is_empty()) {
                    Some(ca) => Ok(Client::at_trusting(server, key, ca)?),
                    None => Ok(Client::at(server, key)),
                }
            }
            None => Ok(Client::find(&DataDir::open(self.data())?)?),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Serve deployed functions over HTTP
    Serve(serve::Args),
    /// Put a component into service, on the server that runs
    Deploy(deploy::Args),
    /// Put a component into an OCI registry
    Push(push::Args),
    /// List deployed functions
    List(functions::ListArgs),
    /// Show what a function prints
    Logs(logs::Args),
    /// Show what was used, and by whom
    Usage(usage::Args),
    /// List a function's revisions
    Revisions(revisions::ListArgs),
    /// Share a function's requests out over its revisions
    Traffic(revisions::TrafficArgs),
    /// Go back to how a function's requests were shared out before, at once
    Rollback(revisions::RollbackArgs),
    /// Remove a function, with its revisions and what it keeps
    Rm(functions::RemoveArgs),
    /// Make and revoke keys to the control API
    #[command(subcommand)]
    Keys(keys::Command),
    /// See tenants, and what they may use
    #[command(subcommand)]
    Tenants(tenants::Command),
    /// Let a model answer a prompt, or run a command component, here and now
    Run(run::Args),
    /// Measure how fast a model is on this machine
    Bench(bench::Args),
    /// See what this machine's NVIDIA cards can do
    #[command(subcommand)]
    Gpu(gpu::Command),
    /// Get models, and see which are here
    #[command(subcommand)]
    Models(models::Command),
}

/// Parses the arguments, does what they say, and prints what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    hob_gpu::measure::keep_large_apart();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hob: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    log(match cli.command {
        Command::Serve(_) => "info",
        // Why the host refused a program something: its interface may have only a number for that.
        Command::Run(_) => "error,hob::guest=warn",
        _ => "error",
    });
    let global = cli.global;
    let data = || DataDir::open(global.data());
    match cli.command {
        Command::Serve(args) => serve::run(data()?, args),
        Command::Deploy(args) => deploy::run(&global, args),
        Command::Push(args) => push::run(&args),
        Command::List(args) => functions::list(&global.client()?, &args),
        Command::Logs(args) => logs::run(&global.client()?, &args),
        Command::Usage(args) => usage::run(&global.client()?, &args),
        Command::Revisions(args) => revisions::list(&global.client()?, &args),
        Command::Traffic(args) => revisions::traffic(&global.client()?, &args),
        Command::Rollback(args) => revisions::rollback(&global.client()?, &args),
        Command::Rm(args) => functions::remove(&global.client()?, &args),
        Command::Keys(command) => keys::run(&global.client()?, command),
        Command::Tenants(command) => tenants::run(&global.client()?, command),
        Command::Run(args) => run::run(data()?, args),
        Command::Bench(args) => bench::run(data()?, args),
        Command::Gpu(command) => gpu::run(data()?, command),
        Command::Models(command) => models::run(&global, command),
    }
}

/// Logs go to standard error; `HOB_LOG` chooses what is logged, in the form `info,hob=debug`.
fn log(default: &str) {
    use std::io::IsTerminal as _;
    let filter = std::env::var("HOB_LOG").unwrap_or_else(|_| default.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// `12.3 MB`; powers of ten, as disks and networks count.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `3 h ago`.
fn ago(seconds_since_1970: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let age = now.saturating_sub(seconds_since_1970);
    match age {
        0..60 => format!("{age} s ago"),
        60..3600 => format!("{} min ago", age / 60),
        3600..86_400 => format!("{} h ago", age / 3600),
        _ => format!("{} d ago", age / 86_400),
    }
}

/// Prints rows under a head, columns aligned.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells: Vec<_> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    };
    line(head);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!([size(999), size(1000), size(98_362_432), size(999_950)], ["999 B", "1.0 kB", "98.4 MB", "1.0 MB"]);
    }
}
