//! `hob logs`

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use crate::client::Client;
use crate::names::FunctionName;
use crate::telemetry::Line;

#[derive(clap::Args)]
pub struct Args {
    /// The function
    name: FunctionName,
    /// Go on with the lines to come, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only the lines of one invocation; its id is in the answer's x-hob-invocation header
    #[arg(long, value_name = "INVOCATION")]
    id: Option<String>,
    /// Only the last lines of those there are
    #[arg(long, value_name = "LINES")]
    last: Option<usize>,
    /// As JSON, a line each, for programs
    #[arg(long)]
    json: bool,
}

pub fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let lines = client.logs(&args.name, args.follow, args.id.as_deref(), args.last)?;
    let mut out = std::io::stdout().lock();
    let mut any = false;
    for line in lines.lines() {
        let line = line?;
        any = true;
        let written = if args.json { writeln!(out, "{line}") } else { writeln!(out, "{}", shown(&line)?) };
        match written.and_then(|()| out.flush()) {
            // As in `hob logs chat | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    if !any && std::io::stderr().is_terminal() {
        eprintln!("{} has printed nothing, or nothing that is kept", args.name);
    }
    Ok(())
}

/// `2026-11-25T01:02:03.456Z 6744a1c0-1f stdout: text`
fn shown(line: &str) -> anyhow::Result<String> {
    let line: Line = serde_json::from_str(line)?;
    Ok(format!("{} {} {}: {}", time(line.at_ms), line.id, line.stream, harmless(&line.text)))
}

/// A guest's text without what a terminal would obey.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Milliseconds since 1970 as people write them.
fn time(at_ms: u64) -> String {
    let (days, ms) = (at_ms / 86_400_000, at_ms % 86_400_000);
    // The calendar of 400 years, counted from a first of March.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let (month, day) = ((march + 2) % 12 + 1, day - (153 * march + 2) / 5 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(time(1_735_689_600_001), "2025-01-01T00:00:00.001Z");
    }

    #[test]
    fn a_terminal_is_told_nothing() {
        assert_eq!(harmless("a\tb\u{1b}[2Jc\r"), "a\tb\\u{1b}[2Jc\\r");
    }
}
