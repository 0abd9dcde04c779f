//! Prints a line to each output, and gives its environment, arguments and clocks as JSON.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use hob_sdk::{Json, handler, json};
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

#[handler]
async fn print() -> Json<json::Value> {
    println!("a line on stdout");
    eprintln!("a line on stderr");
    let started = Instant::now();
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Json(json::json!({
        "environment": std::env::vars().collect::<BTreeMap<_, _>>(),
        "arguments": std::env::args().collect::<Vec<_>>(),
        "unix_seconds": since_1970.as_secs(),
        "monotonic": Instant::now() >= started,
    }))
}
