//! Whoever gives up a generation - its client, its guest, its guest's end, its deadline, its budget - and wherever it is by then - in
//! the queue, in its prompt, in its answer - it is gone with the engine's next step, and its pages are free.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hob::config::{Budget, FunctionConfig, Limits, RouteConfig};
use hob::digest::Digest;
use hob::function_host::{DeployRequest, Host, HostConfig};
use hob::names::Tenant;
use hob_gpu::{EngineConfig, EngineStats};
use hob_tests::{MODEL, component, lend_model};
use http_body_util::{BodyExt as _, Empty};
use tempfile::TempDir;

/// A prompt that the model goes on with for as long as it may.
const ENDLESS: &str = "1,%202,%203,%204,%205,%206,%207,%208,%209,";
/// Steps from when a sequence was given up to when nothing of it is left: the one that ran, and those that begin before the host's
/// threads had a core to tell the engine. (`host-gpu/tests/cancel.rs` has what the engine makes of it once it is told.)
const STEPS: u64 = 4;

/// Where a sequence is when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queue,
    Prompt,
    Answer,
}

/// A host in this process whose engine takes one sequence at a time, and few tokens of a prompt in a step.
struct Bench {
    _home: TempDir,
    host: Arc<Host>,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        lend_model(home.path());
        let engine =
            EngineConfig { max_running: 1, prefill_tokens: 16, kv_bytes: 256 << 20, ..EngineConfig::default() };
        let config = HostConfig { engine, ..HostConfig::default() };
        let host = Host::open(hob::DataDir::open(Some(home.path())).unwrap(), config).unwrap();
        let bench = Self { _home: home, host };
        bench.deploy("free", Limits::default(), Budget::default());
        bench
    }

    fn deploy(&self, name: &str, limits: Limits, budget: Budget) {
        let bytes = std::fs::read(component("guest-infer")).unwrap();
        let digest = Digest::of(&bytes);
        self.host.upload(digest, &bytes).unwrap();
        let routes = vec![RouteConfig::path(format!("/{name}").parse().unwrap())];
        let models = vec![MODEL.parse().unwrap()];
        let config = FunctionConfig { routes, models, limits, budget, ..FunctionConfig::default() };
        self.host.deploy(&Tenant::default(), name.parse().unwrap(), DeployRequest::new(digest, config)).unwrap();
    }

    fn stats(&self) -> EngineStats {
        self.host.library().engines().stats()
    }

    /// The answer to a request, once its head is there.
    fn ask(&self, path: &str) -> impl Future<Output = http::Response<hob::request::Body>> + Send + 'static {
        let (host, request) = (self.host.clone(), http::Request::get(format!("http://x{path}")));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        async move { host.handle(request).await }
    }

    /// Waits until the engine says so; gives what it said.
    async fn until(&self, what: &str, look: impl Fn(&EngineStats) -> bool) -> EngineStats {
        let started = Instant::now();
        loop {
            let stats = self.stats();
            if look(&stats) {
                return stats;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "waited in vain until {what}: {stats:?}");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }

    /// Nothing is left of any sequence; `before` is what the engine said when the last one was given up.
    async fn gone_since(&self, before: EngineStats, what: &str) {
        let idle = |s: &EngineStats| s.running == 0 && s.waiting == 0 && s.free_pages == s.total_pages;
        let after = self.until(&format!("all is gone: {what}"), idle).await;
        assert!(after.steps <= before.steps + STEPS, "{what}: {} steps", after.steps - before.steps);
    }
}

/// What is asked of a function, so that its sequence is long where it is to be given up.
fn question(place: Place, how: &str) -> String {
    let text = if place == Place::Prompt { "word%20".repeat(3000) } else { ENDLESS.to_owned() };
    format!("do={how}&max_tokens=4000&text={text}")
}

/// Begins a request at a place, and gives what the engine says once it is there. In the queue it waits behind another, which is given too.
async fn begin<T: Send + 'static>(
    bench: &Bench,
    place: Place,
    asked: impl Future<Output = T> + Send + 'static,
) -> (tokio::task::JoinHandle<T>, Option<http::Response<hob::request::Body>>) {
    let first = match place {
        Place::Queue => {
            let first = bench.ask(&format!("/free?{}", question(Place::Answer, "stream"))).await;
            bench.until("the first runs", |stats| stats.running == 1).await;
            Some(first)
        }
        _ => None,
    };
    let start = bench.stats();
    let asked = tokio::spawn(asked);
    bench
        .until(&format!("it is at {place:?}"), |stats| match place {
            Place::Queue => stats.waiting == 1,
            Place::Prompt => stats.running == 1 && stats.prefilled_tokens > start.prefilled_tokens,
            Place::Answer => stats.running == 1 && stats.generated_tokens > start.generated_tokens,
        })
        .await;
    (asked, first)
}

fn run(test: impl AsyncFn(&Bench)) {
    let bench = Bench::new();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all();
    let runtime = runtime.on_thread_start(hob_gpu::short_turns).build().unwrap();
    runtime.block_on(async {
        // The model is there.
        let answer = bench.ask("/free?do=raw&max_tokens=1").await;
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
        test(&bench).await;
    });
}

const PLACES: [Place; 3] = [Place::Queue, Place::Prompt, Place::Answer];

#[test]
fn a_client_leaves() {
    run(async |bench| {
        for place in PLACES {
            let (asked, first) = begin(bench, place, bench.ask(&format!("/free?{}", question(place, "stream")))).await;
            let before = bench.stats();
            // Also before its answer has begun: then the request itself is dropped.
            asked.abort();
            drop(asked.await);
            if let Some(first) = first {
                bench.until("it waits no more", |stats| stats.waiting == 0).await;
                assert_eq!(bench.stats().running, 1, "the one before it goes on");
                let before = bench.stats();
                drop(first);
                bench.gone_since(before, "the one before it").await;
            } else {
                bench.gone_since(before, &format!("{place:?}")).await;
            }
        }
    });
}

/// A function's sequence goes, with its pages, that is given up by itself after some time.
async fn given_up_by_itself(bench: &Bench, place: Place, path: String, status: u16) {
    let made = bench.stats().generated_tokens;
    let (asked, first) = begin(bench, place, bench.ask(&path)).await;
    let gone = match place {
        Place::Queue => bench.until("it waits no more", |stats| stats.waiting == 0).await,
        _ => bench.until("it runs no more", |stats| stats.running == 0).await,
    };
    assert_eq!(gone.waiting, 0, "{path}");
    if let Some(first) = first {
        assert_eq!(gone.running, 1, "the one before it goes on");
        drop(first);
    }
    let free = |stats: &EngineStats| stats.running == 0 && stats.free_pages == stats.total_pages;
    let gone = bench.until("its pages are free", |stats| free(stats)).await;
    // Each may make 4,000.
    let made = gone.generated_tokens - made;
    assert!(made < 2000, "{path}: {made} tokens: it was not given up, it ended");
    let answer = asked.await.unwrap();
    assert_eq!(answer.status(), status, "{path}");
    let _ = answer.into_body().collect().await;
}

#[test]
fn a_guest_lets_go_or_dies_or_is_out_of_time() {
    run(async |bench| {
        let limits = Limits { wall_ms: 400, ..Limits::default() };
        bench.deploy("short", limits, Budget::default());
        for place in PLACES {
            // It answers half a second after it has let go: by then all has been gone for long.
            let left = format!("/free?n=300&{}", question(place, "leave"));
            given_up_by_itself(bench, place, left, 200).await;
            given_up_by_itself(bench, place, format!("/free?n=300&{}", question(place, "die")), 500).await;
            if place != Place::Queue {
                given_up_by_itself(bench, place, format!("/short?{}", question(place, "raw")), 504).await;
            }
        }
        // Who cannot be expected to begin before its deadline is refused before it.
        let first = bench.ask(&format!("/free?{}", question(Place::Answer, "stream"))).await;
        bench.until("the first runs", |stats| stats.running == 1).await;
        let second = tokio::spawn(bench.ask(&format!("/free?{}", question(Place::Answer, "stream"))));
        bench.until("the second waits", |stats| stats.waiting == 1).await;
        let answer = bench.ask(&format!("/short?{}", question(Place::Queue, "raw"))).await;
        assert!(matches!(answer.status().as_u16(), 503 | 504), "{}", answer.status());
        bench.until("it waits no more", |stats| stats.waiting <= 1).await;
        drop(second.await.unwrap());
        drop(first);
        bench.until("all is gone", |stats| stats.running + stats.waiting == 0).await;
    });
}

#[test]
fn a_guest_that_lets_go_is_seen_before_its_end() {
    run(async |bench| {
        for place in [Place::Prompt, Place::Answer] {
            let before = bench.stats();
            let asked = tokio::spawn(bench.ask(&format!("/free?n=250&{}", question(place, "leave"))));
            bench.until("it runs", |stats| stats.running == 1).await;
            let gone = bench.until("it runs no more", |stats| stats.running == 0).await;
            assert!(
                !asked.is_finished(),
                "{place:?}: it ran until the guest's end, and not until the guest let go of it"
            );
            assert!(gone.steps > before.steps && gone.free_pages == gone.total_pages, "{place:?}: {gone:?}");
            assert_eq!(asked.await.unwrap().status(), 200);
        }
    });
}

#[test]
fn a_budget_ends() {
    run(async |bench| {
        bench.deploy("poor", Limits::default(), Budget { request_tokens: 60, ..Budget::default() });
        // A page is a MiB: it has room for the prompt's beginning, and for no more of the answer.
        bench.deploy("small", Limits::default(), Budget { kv_bytes: 7 << 20, ..Budget::default() });
        for (name, least) in [("poor", 20), ("small", 200)] {
            let made = bench.stats().generated_tokens;
            let answer = bench.ask(&format!("/{name}?{}", question(Place::Answer, "raw"))).await;
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let before = bench.stats();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["finish"], "budget", "{body}");
            bench.gone_since(before, name).await;
            let made = bench.stats().generated_tokens - made;
            assert_eq!(body["usage"]["generated_tokens"], made, "not a token more was made than was told");
            assert!(made >= least, "{made}");
        }
    });
}
