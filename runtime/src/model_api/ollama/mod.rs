//! Ollama's API: `/api/chat`, `/api/generate`, and what is there (`/api/tags`, `/api/show`, `/api/ps`).
//!
//! Answers are lines of JSON, and streams unless `stream` is false. Times are nanoseconds.

pub mod blobs;
pub mod chat;
pub mod embed;
pub mod generate;
mod keep;
pub mod models;
mod options;
mod stream;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::ask::Call;
use super::reply::{End, Reply};

/// What `/api/version` says: clients look whether it is new enough for what they want.
pub const VERSION: &str = "0.12.6";

/// Now, as `2026-11-25T09:30:00.123456789Z`.
fn now() -> String {
    at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// So long after 1970 began, as text.
fn at(since: Duration) -> String {
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// The date so many days after 1970 began, by the rules of the Gregorian calendar.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// How an answer ended, in Ollama's words.
fn done_reason(end: Option<End>) -> &'static str {
    match end {
        Some(End::Length | End::Budget) => "length",
        _ => "stop",
    }
}

/// What the last line tells of tokens and times.
fn numbers(reply: &Reply, line: &mut Value) {
    let (counts, timing) = (reply.counts(1), reply.timing());
    let (total, load) = times(&reply.call);
    let told = json!({
        "total_duration": total,
        "load_duration": load,
        "prompt_eval_count": counts.prompt,
        "prompt_eval_duration": ns(timing.prefill),
        "eval_count": counts.generated,
        "eval_duration": ns(timing.decode),
    });
    for (key, value) in told.as_object().into_iter().flatten() {
        line[key] = value.clone();
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since a call began, and those in which its model was loaded.
fn times(call: &Call) -> (u64, u64) {
    let invocation = &call.called.invocation;
    let mut load = Duration::ZERO;
    invocation.mark(|marks| load = marks.join);
    (ns(invocation.started.elapsed()), ns(load))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(at(Duration::from_secs(seconds)), text);
        }
        assert_eq!(at(Duration::from_millis(1)), "1970-01-01T00:00:00.001000000Z");
    }
}
