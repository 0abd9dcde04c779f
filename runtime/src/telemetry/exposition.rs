//! The text that Prometheus scrapes, made when it does.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hob_gpu::{EngineStats, ModelState, ModelStatus, Moves};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::metrics::{Histogram, REFUSALS};
use super::serving::Told;
use super::{Metrics, Telemetry};
use crate::names::FunctionName;

/// How many requests of a function there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// In an instance.
    pub running: u64,
    /// Before the gate.
    pub queued: u64,
}

/// What the host as a whole is doing now.
#[derive(Clone, Debug)]
pub struct Gauges {
    /// Deployed functions.
    pub functions: usize,
    /// Models that are not absent.
    pub models: Vec<ModelStatus>,
    /// The inference engine.
    pub engine: EngineStats,
}

/// What the meter has counted.
#[derive(Clone, Debug, Default)]
pub struct UsageCounts {
    /// Prompt, cached and generated tokens, by function and model.
    pub tokens: BTreeMap<(String, String), [u64; 3]>,
    /// The number of the last record.
    pub records: u64,
    /// Records that were lost.
    pub lost: u64,
    /// Records that wait, because the disk takes none now.
    pub waiting: u64,
}

/// All numbers, in the OpenMetrics format. With `host` those of the whole host; without, the functions' that `sees`
/// lets through, and nothing of anybody else.
pub fn exposition(
    telemetry: &Telemetry,
    sees: impl Fn(&FunctionName) -> bool,
    loads: &HashMap<FunctionName, Load>,
    usage: UsageCounts,
    host: Option<Gauges>,
) -> String {
    let mut rest = Load::default();
    let mut functions = Vec::new();
    let named = telemetry.named();
    for watched in named.iter().filter(|watched| sees(&watched.function)) {
        let load = loads.get(&watched.function).copied().unwrap_or_default();
        functions.push((watched.function.to_string(), watched.metrics.clone(), load));
    }
    for (_, load) in loads.iter().filter(|(name, _)| !named.iter().any(|watched| watched.function == **name)) {
        rest.running += load.running;
        rest.queued += load.queued;
    }
    let mut lost = Vec::new();
    if host.is_some() {
        if telemetry.other.outcomes.seen().next().is_some() || rest != Load::default() {
            functions.push((OTHER.to_owned(), telemetry.other.clone(), rest));
        }
        lost.extend(telemetry.lost.seen());
    }
    let mut registry = Registry::with_prefix("hob");
    let told = host.as_ref().map(|host| {
        let (serving, engine, tokens) = (telemetry.serving.clone(), host.engine, usage.tokens.clone());
        Told { serving, engine, tokens }
    });
    registry.register_collector(Box::new(Scrape { functions, lost, usage, host }));
    let mut out = String::new();
    text::encode_registry(&mut out, &registry).expect("a string takes everything");
    told.into_iter().for_each(|told| told.write(&mut out));
    text::encode_eof(&mut out).expect("a string takes everything");
    out
}

/// Under which the functions beyond [`super::MAX_NAMED`] are counted. No function can have this name.
const OTHER: &str = "(other)";

/// The numbers of one scrape.
#[derive(Debug)]
struct Scrape {
    functions: Vec<(String, Arc<Metrics>, Load)>,
    lost: Vec<(&'static str, u64)>,
    usage: UsageCounts,
    host: Option<Gauges>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.functions(&mut out)?;
        self.usage(&mut out)?;
        match &self.host {
            Some(host) => gauges(&mut out, host),
            None => Ok(()),
        }
    }
}

impl Scrape {
    fn usage(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let help = "Tokens that were billed, by the model that they are of";
        let mut tokens = out.family("model_tokens", help, MetricType::Counter)?;
        for ((function, model), counts) in &self.usage.tokens {
            for (kind, count) in ["prompt", "cached", "generated"].into_iter().zip(counts) {
                let labels = [("function", function.as_str()), ("model", model.as_str()), ("kind", kind)];
                counter(&mut tokens, &labels, *count)?;
            }
        }
        if self.host.is_some() {
            out.counter("usage_records", "Number of the last usage record that is durable", self.usage.records)?;
            out.counter("usage_records_lost", "Usage records that the disk did not take", self.usage.lost)?;
            out.gauge("usage_records_waiting", "Usage records that the disk does not take now", self.usage.waiting)?;
        }
        Ok(())
    }

    fn functions(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let mut requests = out.family("requests", "Invocations that ended, by how", MetricType::Counter)?;
        for (function, metrics, _) in &self.functions {
            for (outcome, count) in metrics.outcomes.seen() {
                counter(&mut requests, &[("function", function.as_str()), ("outcome", outcome)], count)?;
            }
        }
        let mut responses =
            out.family("responses", "Answers begun, by the class of their status", MetricType::Counter)?;
        for (function, metrics, _) in &self.functions {
            for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(&metrics.statuses) {
                let count = count.load(Relaxed);
                if count > 0 {
                    counter(&mut responses, &[("function", function.as_str()), ("status", class)], count)?;
                }
            }
        }
        let help = "Requests that no guest saw, by reason; without a function where none was found";
        let mut refusals = out.family("refusals", help, MetricType::Counter)?;
        for (function, metrics, _) in &self.functions {
            for (reason, count) in metrics.outcomes.seen().filter(|(code, _)| REFUSALS.contains(code)) {
                counter(&mut refusals, &[("function", function.as_str()), ("reason", reason)], count)?;
            }
        }
        for (reason, count) in &self.lost {
            counter(&mut refusals, &[("function", ""), ("reason", reason)], *count)?;
        }
        let mut tokens = out.family("function_tokens", "Tokens that functions used", MetricType::Counter)?;
        for (function, metrics, _) in &self.functions {
            for (kind, count) in ["prompt", "generated"].into_iter().zip(&metrics.tokens) {
                let count = count.load(Relaxed);
                if count > 0 {
                    counter(&mut tokens, &[("function", function.as_str()), ("kind", kind)], count)?;
                }
            }
        }
        self.loads(out)?;
        self.histograms(out)
    }

    fn loads(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        for (name, help, value) in [
            ("requests_running", "Requests in an instance now", (|load| load.running) as fn(&Load) -> u64),
            ("requests_queued", "Requests that wait for others of their function now", |load| load.queued),
        ] {
            let mut family = out.family(name, help, MetricType::Gauge)?;
            for (function, _, load) in &self.functions {
                family.encode_family(&[("function", function.as_str())])?.encode_gauge(&value(load))?;
            }
        }
        Ok(())
    }

    fn histograms(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        const US: f64 = 1e-6;
        for (name, help, unit, of) in [
            (
                "request_duration_seconds",
                "From the request to the end of the instance",
                US,
                (|metrics| &metrics.duration) as fn(&Metrics) -> &Histogram,
            ),
            ("queue_wait_seconds", "From the request until it may run", US, |metrics| &metrics.queue),
            ("instance_start_seconds", "Making an instance and its store", US, |metrics| &metrics.start),
            ("guest_cpu_seconds", "Time for which the guest computed", US, |metrics| &metrics.cpu),
            ("guest_memory_peak_bytes", "Linear memory at its most", 1.0, |metrics| &metrics.memory),
        ] {
            let mut family = out.family(name, help, MetricType::Histogram)?;
            for (function, metrics, _) in &self.functions {
                let (sum, buckets) = of(metrics).read(unit);
                let count = buckets.iter().map(|(_, count)| count).sum();
                let labels = [("function", function.as_str())];
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

fn gauges(out: &mut Out<'_, '_>, host: &Gauges) -> fmt::Result {
    out.gauge("functions", "Deployed functions", host.functions as u64)?;
    let resident: Vec<_> = host.models.iter().filter(|model| model.state == ModelState::Resident).collect();
    let mut bytes = out.family("model_resident_bytes", "Weights in memory", MetricType::Gauge)?;
    for model in &resident {
        bytes.encode_family(&[("model", model.name.as_str())])?.encode_gauge(&model.bytes)?;
    }
    let mut leases = out.family("model_leases", "Who holds a model that is in memory", MetricType::Gauge)?;
    for model in &resident {
        leases.encode_family(&[("model", model.name.as_str())])?.encode_gauge(&model.leases)?;
    }
    moves(out, &host.models)?;
    let engine = &host.engine;
    out.gauge("models_resident", "Models in memory", resident.len() as u64)?;
    out.gauge("engine_sequences_running", "Sequences in the batch", engine.running as u64)?;
    out.gauge("engine_sequences_waiting", "Sequences that wait for it", engine.waiting as u64)?;
    out.gauge("engine_kv_pages", "All KV pages", engine.total_pages as u64)?;
    out.gauge("engine_kv_pages_free", "KV pages that no sequence holds", engine.free_pages as u64)?;
    out.gauge("engine_kv_pages_cached", "Free KV pages that keep a prefix", engine.cached_pages as u64)?;
    out.counter("engine_steps", "Steps of the engine", engine.steps)?;
    out.counter("engine_tokens_generated", "Tokens generated", engine.generated_tokens)?;
    out.counter("engine_tokens_prefilled", "Prompt tokens processed", engine.prefilled_tokens)?;
    out.counter("engine_tokens_cached", "Prompt tokens found in the KV pages", engine.cached_tokens)?;
    out.counter("engine_preemptions", "Sequences that gave their KV pages to an older one", engine.preemptions)
}

/// How models came and went. One that is absent is not told of: its name is not known here.
fn moves(out: &mut Out<'_, '_>, models: &[ModelStatus]) -> fmt::Result {
    for (name, help, count) in [
        ("model_loads", "How often a model was brought into memory", (|moves| moves.loads) as fn(&Moves) -> u64),
        ("model_evictions", "How often its memory was given back", |moves| moves.evictions),
    ] {
        let mut family = out.family(name, help, MetricType::Counter)?;
        for model in models {
            counter(&mut family, &[("model", model.name.as_str())], count(&model.moves))?;
        }
    }
    for (name, help, time) in [
        (
            "model_last_load_seconds",
            "How long that took the last time",
            (|moves| moves.last_load) as fn(&Moves) -> Option<Duration>,
        ),
        ("model_last_eviction_seconds", "How long that took the last time", |moves| moves.last_eviction),
    ] {
        let mut family = out.family(name, help, MetricType::Gauge)?;
        for (model, time) in models.iter().filter_map(|model| Some((model, time(&model.moves)?))) {
            family.encode_family(&[("model", model.name.as_str())])?.encode_gauge(&time.as_secs_f64())?;
        }
    }
    Ok(())
}

fn counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, count: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

struct Out<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    fn family<'s>(&'s mut self, name: &'s str, help: &str, kind: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }
}
