//! Makes a span within the one it runs in, and one that is none of its own; gives the contexts it was told, as JSON.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-otel", world: "imports", generate_all });
}

use std::collections::BTreeMap;

use bindings::wasi::clocks::wall_clock::Datetime;
use bindings::wasi::otel::logs::{self, LogRecord};
use bindings::wasi::otel::tracing::{
    Event, Link, SpanContext, SpanData, SpanKind, Status, TraceFlags, current_span_context, on_end, on_start,
    outer_span_context,
};
use bindings::wasi::otel::types::{InstrumentationScope, KeyValue};
use hob_sdk::json::{Value, json};
use hob_sdk::{Json, Query, handler};

#[handler]
async fn otel(Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let outer = outer_span_context();
    let own = context(&outer.trace_id, "00000000000000aa");
    on_start(&own);
    let current = current_span_context();
    let inner = context(&outer.trace_id, "00000000000000bb");
    on_start(&inner);
    let innermost = current_span_context();
    on_end(&span(&inner, &own.span_id, "query", Status::Error("no such table".into())));
    on_end(&span(&own, &outer.span_id, "work", Status::Ok));
    // Of a trace that this is no part of, and without ids.
    on_end(&span(
        &context("4bf92f3577b34da6a3ce929d0e0e4737", "00000000000000cc"),
        &own.span_id,
        "forged",
        Status::Unset,
    ));
    on_end(&span(&context(&outer.trace_id, "nothing"), "", "nameless", Status::Unset));
    for n in 0..query.get("more").and_then(|n| n.parse().ok()).unwrap_or(0_u64) {
        on_end(&span(&context(&outer.trace_id, &format!("{:016x}", 0x1000 + n)), &own.span_id, "more", Status::Unset));
    }
    logs::on_emit(&record("\"a log record\""));
    let shown = |context: SpanContext| json!([context.trace_id, context.span_id, context.trace_flags.bits()]);
    Json(json!({ "outer": shown(outer), "current": shown(current), "innermost": shown(innermost),
        "after": shown(current_span_context()) }))
}

fn context(trace_id: &str, span_id: &str) -> SpanContext {
    SpanContext {
        trace_id: trace_id.into(),
        span_id: span_id.into(),
        trace_flags: TraceFlags::SAMPLED,
        is_remote: false,
        trace_state: vec![],
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn span(context: &SpanContext, parent: &str, name: &str, status: Status) -> SpanData {
    let time = |seconds| Datetime { seconds, nanoseconds: 5 };
    SpanData {
        span_context: context.clone(),
        parent_span_id: parent.into(),
        span_kind: SpanKind::Client,
        name: name.into(),
        start_time: time(1_700_000_000),
        end_time: time(1_700_000_001),
        attributes: vec![pair("db.rows", "7"), pair("db.name", "\"shop\""), pair("odd", "not JSON")],
        events: vec![Event { name: "retry".into(), time: time(1_700_000_000), attributes: vec![] }],
        links: vec![Link { span_context: context.clone(), attributes: vec![] }],
        status,
        instrumentation_scope: scope(),
        dropped_attributes: 3,
        dropped_events: 0,
        dropped_links: 0,
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "guest".into(), version: None, schema_url: None, attributes: vec![] }
}

fn record(body: &str) -> LogRecord {
    LogRecord {
        timestamp: None,
        observed_timestamp: None,
        severity_text: Some("WARN".into()),
        severity_number: Some(13),
        body: Some(body.into()),
        attributes: None,
        event_name: None,
        resource: None,
        instrumentation_scope: Some(scope()),
        trace_id: None,
        span_id: None,
        trace_flags: None,
    }
}
