//! `wasi:otel` 0.2.0-rc.2: spans that a guest makes within its invocation's, and log records. Metrics are not offered.
//!
//! A guest asks for the span it runs in, and makes its own below that. Those of other traces are dropped: a guest tells
//! of nothing but its own invocation. Where traces are not exported, or this one is not sampled, nothing is kept.

use serde_json::{Map, Value, json};
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker};

use super::State;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/wasi-otel",
        world: "imports",
        with: { "wasi:clocks/wall-clock": wasmtime_wasi::p2::bindings::clocks::wall_clock },
        imports: { default: trappable },
    });
}
use bindings::wasi::otel::{logs, tracing as wit, types};
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wit::{SpanContext, SpanKind, Status, TraceFlags};

/// Most spans of one invocation.
const MAX_SPANS: u32 = 256;
/// Most bytes of text that one span holds; what is beyond is left out, and said to be.
const MAX_BYTES: usize = 32 << 10;

/// The spans of one invocation.
#[derive(Default)]
pub struct Spans {
    /// Those that have begun and not ended, the latest last.
    open: Vec<SpanContext>,
    told: u32,
}

/// Links it.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    types::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    wit::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    logs::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

impl types::Host for State {}

impl wit::Host for State {
    fn on_start(&mut self, context: SpanContext) -> Result<()> {
        if self.spans.open.len() < MAX_SPANS as usize {
            self.spans.open.push(SpanContext { trace_state: Vec::new(), ..context });
        }
        Ok(())
    }

    fn on_end(&mut self, span: wit::SpanData) -> Result<()> {
        self.spans.open.retain(|open| open.span_id != span.span_context.span_id);
        let Some(trace) = self.invocation.trace.as_ref().filter(|trace| trace.is_exported()) else { return Ok(()) };
        let (trace_id, ..) = trace.ids();
        let context = &span.span_context;
        let own = hexadecimal(&context.trace_id, 32) == Some(trace_id);
        let ids = hexadecimal(&context.span_id, 16).zip(hexadecimal(&span.parent_span_id, 16));
        let (true, Some((id, parent))) = (own && self.spans.told < MAX_SPANS, ids) else { return Ok(()) };
        self.spans.told += 1;
        let times = (nanoseconds(span.start_time), nanoseconds(span.end_time));
        let mut room = Room(MAX_BYTES);
        let name = room.text(&span.name);
        let mut more = more(&span, &mut room);
        let function = json!({ "key": "faas.name", "value": { "stringValue": self.invocation.function.as_str() } });
        if let Some(Value::Array(attributes)) = more.get_mut("attributes") {
            attributes.push(function);
        }
        trace.tell((id as u64, parent as u64), name, times, Value::Object(more));
        Ok(())
    }

    fn outer_span_context(&mut self) -> Result<SpanContext> {
        let (trace, span, sampled) = self.invocation.trace.as_ref().map_or((0, 0, false), |trace| trace.ids());
        Ok(SpanContext {
            trace_id: format!("{trace:032x}"),
            span_id: format!("{span:016x}"),
            trace_flags: if sampled { TraceFlags::SAMPLED } else { TraceFlags::empty() },
            is_remote: true,
            trace_state: Vec::new(),
        })
    }

    fn current_span_context(&mut self) -> Result<SpanContext> {
        match self.spans.open.last() {
            Some(context) => Ok(context.clone()),
            None => self.outer_span_context(),
        }
    }
}

impl logs::Host for State {
    /// To where `wasi:logging` goes.
    fn on_emit(&mut self, record: logs::LogRecord) -> Result<()> {
        let body = record.body.map(|body| match serde_json::from_str(&body) {
            Ok(Value::String(text)) => text,
            _ => body,
        });
        let Some(message) = self.printing.admit(body.unwrap_or_default()) else { return Ok(()) };
        let level: String =
            record.severity_text.unwrap_or_else(|| "info".into()).to_lowercase().chars().take(16).collect();
        let (function, id) = (&self.invocation.function, &self.invocation.id);
        tracing::info!(target: "hob::guest", %function, %id, stream = "log", level, "{message}");
        self.invocation.print("log", format!("{level}: {message}").replace('\n', " "));
        Ok(())
    }
}

/// What a span may still hold.
struct Room(usize);

impl Room {
    /// As much of `text` as there is room for.
    fn text(&mut self, text: &str) -> String {
        let text = &text[..text.floor_char_boundary(self.0)];
        self.0 -= text.len();
        text.to_owned()
    }

    /// Those of `items` for which there is room, and how many there was none for.
    fn list<T>(&mut self, items: &[T], value: impl Fn(&mut Self, &T) -> Value) -> (Value, u64) {
        let mut values = Vec::new();
        for item in items {
            // Something with little text has a size too.
            let Some(left) = self.0.checked_sub(64) else { break };
            self.0 = left;
            values.push(value(self, item));
        }
        let left_out = items.len() - values.len();
        (values.into(), left_out as u64)
    }
}

/// A span as OTLP has it, without what all spans have.
fn more(span: &wit::SpanData, room: &mut Room) -> Map<String, Value> {
    let (attributes, no_attributes) = room.list(&span.attributes, attribute);
    let (events, no_events) = room.list(&span.events, |room, event| {
        let (attributes, _) = room.list(&event.attributes, attribute);
        let (name, time) = (room.text(&event.name), nanoseconds(event.time).to_string());
        json!({ "name": name, "timeUnixNano": time, "attributes": attributes })
    });
    let (links, no_links) = room.list(&span.links, |room, link| {
        let (attributes, _) = room.list(&link.attributes, attribute);
        let id = |id: &str, digits| hexadecimal(id, digits).map(|_| id.to_lowercase()).unwrap_or_default();
        let context = &link.span_context;
        json!({ "traceId": id(&context.trace_id, 32), "spanId": id(&context.span_id, 16), "attributes": attributes })
    });
    // The numbers of OTLP.
    let kind = match span.span_kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    };
    let status = match &span.status {
        Status::Unset => json!({}),
        Status::Ok => json!({ "code": 1 }),
        Status::Error(why) => json!({ "code": 2, "message": room.text(why) }),
    };
    let more = json!({
        "kind": kind, "status": status, "attributes": attributes, "events": events, "links": links,
        "droppedAttributesCount": u64::from(span.dropped_attributes) + no_attributes,
        "droppedEventsCount": u64::from(span.dropped_events) + no_events,
        "droppedLinksCount": u64::from(span.dropped_links) + no_links,
    });
    match more {
        Value::Object(more) => more,
        _ => unreachable!("it is written above as an object"),
    }
}

/// A key, and a value that the guest wrote as JSON.
fn attribute(room: &mut Room, attribute: &types::KeyValue) -> Value {
    let (key, text) = (room.text(&attribute.key), room.text(&attribute.value));
    let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    json!({ "key": key, "value": any(value) })
}

/// A value in OTLP's clothes.
fn any(value: Value) -> Value {
    match value {
        Value::String(text) => json!({ "stringValue": text }),
        Value::Bool(truth) => json!({ "boolValue": truth }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::Array(values) => json!({ "arrayValue": { "values": values.into_iter().map(any).collect::<Vec<_>>() } }),
        Value::Object(_) | Value::Null => json!({ "stringValue": value.to_string() }),
    }
}

/// An id of so many digits; zero is none.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let is_id = text.len() == digits && text.bytes().all(|c| c.is_ascii_hexdigit());
    is_id.then(|| u128::from_str_radix(text, 16).ok()).flatten().filter(|id| *id != 0)
}

fn nanoseconds(time: Datetime) -> u64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(time.nanoseconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_they_say() {
        let value = |text: &str| any(serde_json::from_str(text).unwrap());
        assert_eq!(value("\"a\""), json!({ "stringValue": "a" }));
        assert_eq!(value("7"), json!({ "intValue": "7" }));
        assert_eq!(value("0.5"), json!({ "doubleValue": 0.5 }));
        assert_eq!(value("[true]"), json!({ "arrayValue": { "values": [{ "boolValue": true }] } }));
    }

    #[test]
    fn a_span_has_bounds() {
        let mut room = Room(200);
        let long = types::KeyValue { key: "k".repeat(100), value: "v".repeat(1000) };
        let (values, left_out) = room.list(&[long.clone(), long.clone(), long], attribute);
        assert_eq!((values.as_array().unwrap().len(), left_out), (1, 2));
        assert!(values.to_string().len() < 300, "{values}");
        assert_eq!(hexadecimal("00f067aa0ba902b7", 16), Some(0x00f0_67aa_0ba9_02b7));
        for bad in ["", "0000000000000000", "+0f067aa0ba902b7", "00f067aa0ba902b"] {
            assert_eq!(hexadecimal(bad, 16), None, "{bad}");
        }
    }
}
