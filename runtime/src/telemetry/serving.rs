//! What became of generations, whoever asked for them, under the names that vLLM has: gateways, scalers and dashboards made for
//! it work unchanged.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hob_gpu::{EngineStats, Finish, Timing, Usage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::metrics::{Histogram, TIMES};

/// Times of generations that have ended, and how they did.
#[derive(Debug)]
pub struct Serving {
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    ends: [AtomicU64; 3],
}

/// As vLLM calls them; a budget cuts an answer short like any other limit.
const ENDS: [&str; 3] = ["stop", "length", "abort"];

impl Default for Serving {
    fn default() -> Self {
        let new = || Histogram::new(&TIMES);
        let (first_token, between_tokens, whole) = (new(), new(), new());
        let (queue, prefill, decode, ends) = (new(), new(), new(), Default::default());
        Self { first_token, between_tokens, whole, queue, prefill, decode, ends }
    }
}

impl Serving {
    /// Counts a generation that is over; without an end its reader has left.
    pub fn see(&self, timing: Timing, usage: Usage, end: Option<Finish>) {
        let at = match end {
            Some(Finish::Stop) => 0,
            Some(_) => 1,
            None => 2,
        };
        self.ends[at].fetch_add(1, Relaxed);
        let Some(first) = timing.first_token else { return };
        self.first_token.see_time(first);
        self.queue.see_time(timing.queue);
        self.prefill.see_time(timing.prefill);
        self.decode.see_time(timing.decode);
        self.whole.see_time(first + timing.decode);
        if let Some(between) = usage.generated_tokens.checked_sub(1).filter(|between| *between > 0) {
            self.between_tokens.see_times(timing.decode / between, between.into());
        }
    }

    fn histograms(&self) -> [(&'static str, &'static str, &Histogram); 6] {
        [
            ("vllm:time_to_first_token_seconds", "From asking until the first token", &self.first_token),
            (
                "vllm:inter_token_latency_seconds",
                "Between two tokens, the mean of each generation",
                &self.between_tokens,
            ),
            ("vllm:e2e_request_latency_seconds", "From asking until the last token", &self.whole),
            ("vllm:request_queue_time_seconds", "In the engine's queue", &self.queue),
            ("vllm:request_prefill_time_seconds", "From admission until the prompt was processed", &self.prefill),
            ("vllm:request_decode_time_seconds", "From the first token until the last", &self.decode),
        ]
    }
}

/// All that is told under these names.
#[derive(Debug)]
pub(super) struct Told {
    pub serving: Arc<Serving>,
    pub engine: EngineStats,
    /// Prompt, cached and generated tokens, by function and model.
    pub tokens: BTreeMap<(String, String), [u64; 3]>,
}

impl Told {
    /// Appends it to `out`.
    pub fn write(self, out: &mut String) {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        text::encode_registry(out, &registry).expect("a string takes everything");
    }

    fn by_model(&self, n: usize) -> BTreeMap<&str, u64> {
        let mut sums = BTreeMap::new();
        for ((_, model), counts) in &self.tokens {
            *sums.entry(model.as_str()).or_default() += counts[n];
        }
        sums
    }
}

/// One engine runs all models, as one queue and one pool.
const ALL: [(&str, &str); 1] = [("model_name", "all")];

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let engine = &self.engine;
        let used = 1.0 - engine.free_pages as f64 / (engine.total_pages as f64).max(1.0);
        let gauges = [
            ("vllm:num_requests_running", "Sequences in the batch", engine.running as f64),
            ("vllm:num_requests_waiting", "Sequences that wait for it", engine.waiting as f64),
            ("vllm:kv_cache_usage_perc", "Share of the KV pages that sequences hold, 0 to 1", used),
        ];
        for (name, help, value) in gauges {
            family(&mut encoder, name, help, MetricType::Gauge)?.encode_family(&ALL)?.encode_gauge(&value)?;
        }
        let pages = engine.total_pages.to_string();
        let config = [("model_name", "all"), ("num_gpu_blocks", pages.as_str())];
        let help = "How the KV cache is laid out";
        family(&mut encoder, "vllm:cache_config_info", help, MetricType::Gauge)?
            .encode_family(&config)?
            .encode_gauge(&1u32)?;
        let counters = [
            ("vllm:prefix_cache_queries", "Prompt tokens", engine.prefilled_tokens + engine.cached_tokens),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the KV pages", engine.cached_tokens),
            ("vllm:num_preemptions", "Sequences that gave their KV pages to an older one", engine.preemptions),
        ];
        for (name, help, value) in counters {
            let mut one = family(&mut encoder, name, help, MetricType::Counter)?;
            one.encode_family(&ALL)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        for (name, help, n) in [
            ("vllm:prompt_tokens", "Prompt tokens, by model", 0),
            ("vllm:generation_tokens", "Generated tokens, by model", 2),
        ] {
            let mut one = family(&mut encoder, name, help, MetricType::Counter)?;
            for (model, sum) in self.by_model(n) {
                let labels = [("model_name", model)];
                one.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&sum, None)?;
            }
        }
        let mut ends =
            family(&mut encoder, "vllm:request_success", "Generations that ended, by how", MetricType::Counter)?;
        for (end, count) in ENDS.into_iter().zip(&self.serving.ends) {
            let labels = [("model_name", "all"), ("finished_reason", end)];
            ends.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count.load(Relaxed), None)?;
        }
        for (name, help, histogram) in self.serving.histograms() {
            let (sum, buckets) = histogram.read(1e-6);
            let count = buckets.iter().map(|(_, count)| count).sum();
            let mut one = family(&mut encoder, name, help, MetricType::Histogram)?;
            one.encode_family(&ALL)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

fn family<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn names_are_those_that_others_read() {
        let serving = Arc::new(Serving::default());
        let ms = Duration::from_millis;
        let timing = Timing { queue: ms(1), prefill: ms(2), first_token: Some(ms(4)), decode: ms(90) };
        let usage = Usage { prompt_tokens: 5, cached_tokens: 0, generated_tokens: 10 };
        serving.see(timing, usage, Some(Finish::Stop));
        serving.see(Timing::default(), Usage::default(), None);
        let mut engine = EngineStats::default();
        (engine.running, engine.waiting, engine.free_pages, engine.total_pages) = (3, 2, 75, 100);
        let tokens = [(("f".into(), "m".into()), [5, 0, 10]), (("g".into(), "m".into()), [1, 0, 1])].into();
        let mut out = String::new();
        Told { serving, engine, tokens }.write(&mut out);
        for line in [
            "vllm:num_requests_running{model_name=\"all\"} 3.0",
            "vllm:num_requests_waiting{model_name=\"all\"} 2.0",
            "vllm:kv_cache_usage_perc{model_name=\"all\"} 0.25",
            "vllm:prompt_tokens_total{model_name=\"m\"} 6",
            "vllm:generation_tokens_total{model_name=\"m\"} 11",
            "vllm:request_success_total{model_name=\"all\",finished_reason=\"abort\"} 1",
            "vllm:time_to_first_token_seconds_sum{model_name=\"all\"} 0.004",
            "vllm:inter_token_latency_seconds_count{model_name=\"all\"} 9",
        ] {
            assert!(out.contains(line), "{line} in\n{out}");
        }
    }
}
