//! `cargo xtask demo`: the main job, as a person would see it.

use std::io::Write as _;

use anyhow::Result;
use hob_tests::{Connection, Hob};

use crate::report::Report;

const QUESTION: &str = "Why is the sky blue?";

pub fn run(report: &mut Report) -> Result<()> {
    println!("starting `hob serve` on an empty directory, with the model beside it");
    let hob = Hob::with_model();
    report.code_path(hob.client().status()?.code_path);
    println!("deploying examples/02-chat: `hob deploy chat.wasm --name chat --route /chat --model smollm2:135m`");
    hob.deploy_with_model("chat");
    println!("{}", hob.ok(&["list"]));
    println!("asking {}: {QUESTION}\n", hob.url("/chat"));
    stream(&hob)?;
    crate::cold::measure(report, &hob, 10)?;
    report.print();
    println!("\nTo go on: `cargo run --release -p hob -- serve`, and README.md");
    Ok(())
}

/// Prints the answer as it comes: each event is a line of JSON with a piece of text.
fn stream(hob: &Hob) -> Result<()> {
    let mut connection = Connection::open(hob.address());
    let body = serde_json::json!({ "messages": [{ "role": "user", "content": QUESTION }] });
    connection.post("/chat", &body.to_string());
    let head = connection.head();
    anyhow::ensure!(head.status == 200, "the function answered {}: {}", head.status, connection.body());
    let mut out = std::io::stdout();
    let mut pending = String::new();
    while let Some(chunk) = connection.chunk() {
        pending += &chunk;
        while let Some((event, rest)) = pending.split_once("\n\n") {
            let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or("{}");
            let data: serde_json::Value = serde_json::from_str(data)?;
            if let Some(text) = data["text"].as_str() {
                write!(out, "{text}")?;
                out.flush()?;
            }
            pending = rest.to_owned();
        }
    }
    writeln!(out, "\n")?;
    Ok(())
}
