//! The `Server-Timing` header: where the time before an answer's first byte went.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::request::Invocation;

/// The header.
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

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
    let mut text = String::with_capacity(96);
    push(&mut text, "queue;dur=", queue);
    push(&mut text, ", start;dur=", start);
    push(&mut text, ", guest;dur=", guest);
    push(&mut text, ", total;dur=", total);
    text
}

/// In whole microseconds, and by hand: quicker to write than a float, and than by `format!`, and each answer does.
fn push(text: &mut String, name: &str, time: Duration) {
    // 64 bits last for as long as a request may, and are quicker to write than 128.
    let us = time.as_micros() as u64;
    text.push_str(name);
    text.push_str(itoa::Buffer::new().format(us / 1000));
    text.push('.');
    for digit in [us / 100 % 10, us / 10 % 10, us % 10] {
        text.push(char::from(b'0' + digit as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        let us = Duration::from_micros;
        assert_eq!(text(us(3), us(20), us(1500)), "queue;dur=0.003, start;dur=0.020, guest;dur=1.477, total;dur=1.500");
        assert_eq!(
            text(us(0), us(99_999), us(100_078)),
            "queue;dur=0.000, start;dur=99.999, guest;dur=0.079, total;dur=100.078"
        );
        assert_eq!(text(us(3), us(20), us(10)), "queue;dur=0.003, start;dur=0.020, guest;dur=0.000, total;dur=0.010");
    }
}
