//! OpenAI's API: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`, `/v1/models`.
//!
//! Fields that are not known are ignored, as clients send ever new ones; what is known and cannot be is refused with its name.

pub mod chat;
mod chat_stream;
pub mod completions;
pub mod embeddings;
mod form;
mod logprobs;
mod messages;
pub mod models;
mod options;
pub mod responses;
mod responses_stream;

pub(super) use chat::converse;
pub(super) use messages::conversation;
pub(super) use options::OneOrMany;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::reply::{Counts, End};

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Which build answers: same seed, same text as long as it stays the same.
const FINGERPRINT: &str = concat!("hob-", env!("CARGO_PKG_VERSION"));

fn usage(counts: Counts) -> Value {
    json!({
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.generated,
        "total_tokens": counts.prompt + counts.generated,
        "prompt_tokens_details": { "cached_tokens": counts.cached },
        "completion_tokens_details": { "reasoning_tokens": counts.thought },
    })
}

/// Clients know a fixed list: an answer that a budget ends is cut short like any other.
fn finish_reason(end: Option<End>) -> &'static str {
    match end {
        Some(End::Calls) => "tool_calls",
        Some(End::Length | End::Budget) => "length",
        Some(End::Stop) | None => "stop",
    }
}
