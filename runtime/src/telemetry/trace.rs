//! Traces: which one a request belongs to (W3C trace context), and what is told of it.
//!
//! A request that comes with a `traceparent` belongs to that trace; its guest, and whom the guest asks, are told the
//! invocation as their parent. Where traces are exported, a request without one begins a trace.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::otlp::Exporter;
use crate::request::Marks;

/// The header.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// An invocation's place in a trace: a span of its own.
#[derive(Debug)]
pub struct Trace {
    trace: u128,
    /// The invocation.
    span: u64,
    /// Who asked for it.
    parent: Option<u64>,
    sampled: bool,
    began: SystemTime,
    /// What it is called, as in `GET chat`, and the request's path.
    request: (String, String),
    exporter: Option<Arc<Exporter>>,
}

impl Trace {
    /// The trace of a request with these headers, if it belongs to one or begins one.
    pub fn begin(
        headers: &HeaderMap,
        request: impl FnOnce() -> (String, String),
        exporter: Option<&Arc<Exporter>>,
    ) -> Option<Self> {
        let given = headers.get(TRACEPARENT).and_then(|value| parse(value.to_str().ok()?));
        if given.is_none() && exporter.is_none() {
            return None;
        }
        let (trace, parent, sampled) = match given {
            Some((trace, parent, sampled)) => (trace, Some(parent), sampled),
            None => (u128::from(fresh()) << 64 | u128::from(fresh()), None, true),
        };
        let exporter = exporter.filter(|_| sampled).cloned();
        let request = if exporter.is_some() { request() } else { Default::default() };
        Some(Self { trace, span: fresh(), parent, sampled, began: SystemTime::now(), request, exporter })
    }

    /// Its trace, the span of the invocation, and whether anybody is told.
    pub fn ids(&self) -> (u128, u64, bool) {
        (self.trace, self.span, self.sampled)
    }

    /// Whether spans go anywhere.
    pub fn is_exported(&self) -> bool {
        self.exporter.is_some()
    }

    /// Tells of a span within the invocation that the guest made; `more` is what OTLP has beyond its name and times.
    pub fn tell(
        &self,
        (span, parent): (u64, u64),
        name: String,
        (from_ns, to_ns): (u64, u64),
        more: serde_json::Value,
    ) {
        if let Some(exporter) = &self.exporter {
            let (trace, parent) = (self.trace, Some(parent));
            exporter.take(Span { trace, span, parent, name, from_ns, to_ns, ended: None, more: Some(more) });
        }
    }

    /// What those are told that the invocation asks.
    pub fn header(&self) -> HeaderValue {
        let text = format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled));
        HeaderValue::try_from(text).expect("it is hexadecimal digits and dashes")
    }

    /// Tells how the invocation went, if anybody wants to know.
    pub fn end(&self, id: &str, function: &str, outcome: &'static str, marks: &Marks, total: Duration) {
        let Some(exporter) = &self.exporter else { return };
        let start = marks.accept + marks.instantiate;
        let answered = marks.wait + start;
        let ns = |after: Duration| {
            let since = (self.began + after).duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        let part = |name: &'static str, from: Duration, to: Duration| Span {
            trace: self.trace,
            span: fresh(),
            parent: Some(self.span),
            name: name.into(),
            from_ns: ns(from),
            to_ns: ns(to),
            ended: None,
            more: None,
        };
        let whole = Span {
            parent: self.parent,
            span: self.span,
            name: self.request.0.clone(),
            ended: Some(Ended {
                id: id.into(),
                function: function.into(),
                path: self.request.1.clone(),
                outcome,
                tokens: marks.tokens,
            }),
            ..part("", Duration::ZERO, total)
        };
        exporter.take(whole);
        if answered > Duration::ZERO {
            exporter.take(part("queue", Duration::ZERO, marks.wait));
            exporter.take(part("start", marks.wait, answered));
            exporter.take(part("guest", answered, total.max(answered)));
        }
    }
}

/// One span, on its way out.
#[derive(Debug)]
pub(super) struct Span {
    pub trace: u128,
    pub span: u64,
    pub parent: Option<u64>,
    pub name: String,
    pub from_ns: u64,
    pub to_ns: u64,
    /// Of an invocation as a whole, how it ended.
    pub ended: Option<Ended>,
    /// Of a guest's own, the rest of it, as OTLP has it.
    pub more: Option<serde_json::Value>,
}

/// How an invocation ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub id: String,
    pub function: String,
    pub path: String,
    pub outcome: &'static str,
    pub tokens: (u32, u32),
}

/// `00-<trace>-<parent>-<flags>`; later versions may have more behind it.
fn parse(text: &str) -> Option<(u128, u64, bool)> {
    let mut parts = text.split('-');
    let mut part = |digits: usize| {
        let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        parts.next().filter(|part| part.len() == digits && part.bytes().all(lower))
    };
    let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    if version == "ff" || version == "00" && parts.next().is_some() {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|parent| *parent != 0)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some((trace, parent, flags & 1 == 1))
}

/// An id that no other has had, and that nobody can guess from one before it. Never zero, which stands for none.
fn fresh() -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    KEYS.hash_one(NEXT.fetch_add(1, Ordering::Relaxed)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_trace_context_begins_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse(good), Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, true)));
        let later = format!("cc{}-what-the-future-holds", &good[2..]);
        assert!(parse(&later).is_some() && parse(&format!("{good}-more")).is_none());
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_trace_goes_on_with_a_span_of_its_own() {
        let mut headers = HeaderMap::new();
        assert!(Trace::begin(&headers, Default::default, None).is_none(), "nobody asked, nobody is told");
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        headers.insert(TRACEPARENT, HeaderValue::from_static(given));
        let header = Trace::begin(&headers, Default::default, None).unwrap().header();
        let header = header.to_str().unwrap();
        assert_eq!(header[..36], given[..36]);
        assert_ne!(header[36..52], given[36..52]);
        assert!(header.ends_with("-00"), "who does not sample is not sampled");
    }
}
