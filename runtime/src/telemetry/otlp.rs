//! Spans on their way to a collector: OTLP over HTTP, as JSON, in batches from a thread of its own.
//!
//! A request only puts its spans into a bounded queue. When the collector is slow or away, what does not fit is lost;
//! nobody waits, and the log says when it is away.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Uri};
use serde_json::{Value, json};
use ureq::Agent;

use super::collector::Collector;
use super::trace::Span;

/// Spans that wait to be sent.
const QUEUED: usize = 8192;
/// Spans that are sent together.
const BATCH: usize = 512;
/// How long a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the log says that the collector is away.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The address.
    #[error(
        "traces cannot go to `{0}`: write the base of a collector that takes OTLP over HTTP, as in http://localhost:4318"
    )]
    Endpoint(String),
    /// No thread.
    #[error("no thread can be started for traces: {0}")]
    Thread(#[from] std::io::Error),
}

/// The way to a collector. When it is dropped, what waits is still sent.
#[derive(Debug)]
pub struct Exporter {
    queue: Option<SyncSender<Span>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Starts the thread.
    ///
    /// # Errors
    /// See [`ExporterError`].
    pub fn start(collector: &Collector) -> Result<Self, ExporterError> {
        let bad = || ExporterError::Endpoint(collector.endpoint.clone());
        let url = collector.url();
        let parsed: Uri = url.parse().map_err(|_| bad())?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none() {
            return Err(bad());
        }
        let (queue, spans) = mpsc::sync_channel(QUEUED);
        let agent = Agent::config_builder().timeout_global(Some(TIMEOUT)).proxy(None).build().into();
        let (headers, resource) = (collector.headers.clone(), resource(collector));
        let mut sender = Sender { url, headers, agent, resource, complained: None };
        let work = move || sender.run(&spans);
        let thread = std::thread::Builder::new().name("hob-traces".into()).spawn(work)?;
        Ok(Self { queue: Some(queue), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn take(&self, span: Span) {
        if let Some(queue) = &self.queue {
            // A full queue loses spans, not time.
            let _ = queue.try_send(span);
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

struct Sender {
    url: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    agent: Agent,
    resource: Value,
    complained: Option<Instant>,
}

impl Sender {
    fn run(&mut self, spans: &Receiver<Span>) {
        while let Ok(first) = spans.recv() {
            let mut batch = vec![first];
            let until = Instant::now() + DELAY;
            let mut open = true;
            while batch.len() < BATCH && open {
                match spans.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(span) => batch.push(span),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => open = false,
                }
            }
            let text = document(&self.resource, &batch).to_string();
            // Some collectors take the type to the letter, so it is not ureq's, which has more behind it.
            let mut call = self.agent.post(&self.url).header("content-type", "application/json");
            for (name, value) in &self.headers {
                call = call.header(name, value);
            }
            if let Err(error) = call.send(&text) {
                self.complain(&error);
            }
        }
    }

    fn complain(&mut self, error: &ureq::Error) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            tracing::warn!(url = self.url, %error, "the collector does not take traces; they are lost");
            self.complained = Some(Instant::now());
        }
    }
}

/// Who sends.
fn resource(collector: &Collector) -> Value {
    let own = [text("service.name", &collector.service)];
    let given = collector.attributes.iter().map(|(key, value)| text(key, value));
    json!({ "attributes": own.into_iter().chain(given).collect::<Vec<_>>() })
}

fn document(resource: &Value, spans: &[Span]) -> Value {
    json!({ "resourceSpans": [{
        "resource": resource,
        "scopeSpans": [{
            "scope": { "name": "hob", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }] })
}

fn span(span: &Span) -> Value {
    const INTERNAL: u8 = 1;
    const SERVER: u8 = 2;
    let mut value = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.span),
        "name": span.name,
        "kind": if span.ended.is_some() { SERVER } else { INTERNAL },
        "startTimeUnixNano": span.from_ns.to_string(),
        "endTimeUnixNano": span.to_ns.to_string(),
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let (Some(Value::Object(more)), Some(value)) = (&span.more, value.as_object_mut()) {
        value.extend(more.clone());
    }
    if let Some(ended) = &span.ended {
        let number = |key, number: u32| json!({ "key": key, "value": { "intValue": number.to_string() } });
        value["attributes"] = json!([
            text("faas.name", &ended.function),
            text("faas.invocation_id", &ended.id),
            text("url.path", &ended.path),
            text("hob.outcome", ended.outcome),
            number("hob.prompt_tokens", ended.tokens.0),
            number("hob.generated_tokens", ended.tokens.1),
        ]);
        if !matches!(ended.outcome, "ok" | "client-left") {
            value["status"] = json!({ "code": 2, "message": ended.outcome });
        }
    }
    value
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_must_be_one() {
        for endpoint in ["localhost:4318", "ftp://x", "http://", "not an address"] {
            let collector = Collector::at(endpoint);
            assert!(Exporter::start(&collector).is_err(), "{endpoint}");
        }
    }
}
