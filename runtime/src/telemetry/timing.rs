//! The `Server-Timing` header: where the time before an answer's first byte went.

use std::fmt;
use std::time::Duration;

use http::HeaderValue;

use crate::request::Invocation;

/// The header's value for an answer that begins now, in milliseconds: `queue` is from the request until it may run,
/// `start` makes the instance, `guest` is from there until the answer begins, and `total` is all of it.
pub(crate) fn server_timing(invocation: &Invocation) -> HeaderValue {
    let total = invocation.started.elapsed();
    let (mut queue, mut start) = (Duration::ZERO, Duration::ZERO);
    invocation.mark(|marks| (queue, start) = (marks.wait, marks.accept + marks.instantiate));
    let text = text(queue, start, total);
    HeaderValue::try_from(text).expect("it is numbers and letters")
}

fn text(queue: Duration, start: Duration, total: Duration) -> String {
    let guest = total.saturating_sub(queue + start);
    let [queue, start, guest, total] = [queue, start, guest, total].map(Ms);
    format!("queue;dur={queue}, start;dur={start}, guest;dur={guest}, total;dur={total}")
}

/// In whole microseconds: quicker to write than a float, and each answer does.
struct Ms(Duration);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 64 bits last for as long as a request may, and are quicker to write than 128.
        let us = self.0.as_micros() as u64;
        write!(f, "{}.{:03}", us / 1000, us % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        let us = Duration::from_micros;
        assert_eq!(text(us(3), us(20), us(1500)), "queue;dur=0.003, start;dur=0.020, guest;dur=1.477, total;dur=1.500");
        assert_eq!(text(us(3), us(20), us(10)), "queue;dur=0.003, start;dur=0.020, guest;dur=0.000, total;dur=0.010");
    }
}
