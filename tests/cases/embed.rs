//! hob as a library: a host in this process, its functions called as services, and plugins with typed arguments.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hob::config::{Concurrency, FunctionConfig, Limits, Reuse, RouteConfig};
use hob::digest::Digest;
use hob::function_host::{DeployError, DeployRequest};
use hob::names::Tenant;
use hob::request::RequestError;
use hob::wasmtime::{Result, Trap};
use hob::{CallError, FunctionService, Host, Plugin, State};
use hob_tests::distinct;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tower_service::Service;

/// The host's side of the test plugin's world.
mod bindings {
    hob::wasmtime::component::bindgen!({
        path: "guests/plugin/wit",
        world: "plugin",
        exports: { default: async },
        wasmtime_crate: hob::wasmtime,
    });
}
use bindings::PluginPre;
use bindings::exports::test::plugin::work::Guest as Work;

type Worker = Plugin<PluginPre<State>>;

/// Calls something that the test plugin exports.
macro_rules! work {
    ($plugin:expr, $function:ident $(, $argument:expr)*) => {
        $plugin.call(async |store, world: &PluginPre<State>| {
            let plugin = world.instantiate_async(&mut *store).await?;
            let work: &Work = plugin.test_plugin_work();
            work.$function(store $(, $argument)*).await
        })
    };
}

fn host() -> (tempfile::TempDir, Arc<Host>) {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let host = Host::builder().data(home.path()).instances(100).build().expect("it starts");
    (home, host)
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are threads").block_on(future)
}

fn component(package: &str) -> Vec<u8> {
    std::fs::read(hob_tests::component(package)).expect("it was built")
}

fn worker(host: &Arc<Host>, component: &[u8], config: FunctionConfig) -> Result<Worker, DeployError> {
    host.plugin("worker".parse().expect("it is a name"), component, config, PluginPre::new)
}

fn deploy(host: &Host, package: &str, name: &str) {
    deploy_bytes(host, &component(package), name);
}

fn deploy_bytes(host: &Host, bytes: &[u8], name: &str) {
    let digest = Digest::of(bytes);
    host.upload(digest, bytes).expect("it is a component");
    let route = RouteConfig::path(format!("/{name}").parse().expect("a name makes a route"));
    let config = FunctionConfig { routes: vec![route], ..FunctionConfig::default() };
    host.deploy(&Tenant::default(), name.parse().expect("it is a name"), DeployRequest::new(digest, config))
        .expect("it can be deployed");
}

fn post(path: &str, body: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://embedder{path}")).body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

/// As a router or a layer would call it.
async fn call<S>(service: &mut S, request: Request<Full<Bytes>>) -> (u16, String)
where
    S: Service<Request<Full<Bytes>>, Response = http::Response<hob::request::Body>, Error = std::convert::Infallible>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let answer = service.call(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("the body is whole").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn an_instance_that_went_with_its_runtime_is_not_asked_again() {
    let (_home, host) = host();
    let bytes = component("guest-three");
    let digest = Digest::of(&bytes);
    host.upload(digest, &bytes).expect("it is a component");
    let reuse = Reuse { requests: 100, concurrent: 8, idle_ms: 60_000 };
    let routes = vec![RouteConfig::path("/shared".parse().expect("it is a route"))];
    let config = FunctionConfig { reuse, routes, ..FunctionConfig::default() };
    let request = DeployRequest::new(digest, config);
    host.deploy(&Tenant::default(), "shared".parse().expect("it is a name"), request).expect("it can be deployed");
    let mut shared = host.function("shared").expect("it was deployed");
    // Both on this thread.
    for _ in 0..2 {
        block_on(async {
            assert_eq!(call(&mut shared, post("/count", "")).await, (200, "1".into()));
            assert_eq!(call(&mut shared, post("/count", "")).await, (200, "2".into()));
        });
    }
}

#[test]
fn a_function_is_a_service() {
    let (_home, host) = host();
    assert!(host.function("plugin").is_none() && host.function("no name").is_none());
    deploy(&host, "guest-echo", "plugin");
    let mut plugin: FunctionService = host.function("plugin").expect("it was deployed");
    block_on(async {
        // Whatever the path is: the embedder has routes of its own.
        assert_eq!(call(&mut plugin, post("/elsewhere", "over and out")).await, (200, "over and out".into()));
        // A deployment takes effect at once.
        deploy(&host, "hello", "plugin");
        let again = call(&mut plugin.clone(), post("/", "")).await;
        assert_eq!(again, (200, "hello from hob\n".into()));
        let mut first = post("/", "as before");
        first.headers_mut().insert("hob-revision", "r1".parse().unwrap());
        assert_eq!(call(&mut plugin, first).await, (200, "as before".into()));
        host.remove(&Tenant::default(), &"plugin".parse().unwrap()).expect("it is there");
        let (status, body) = call(&mut plugin, post("/", "")).await;
        assert!(status == 404 && body.contains("no function is called `plugin`"), "{body}");
        assert!(host.metrics(None).contains("reason=\"no-function\""));
    });
}

#[test]
pub fn plugin() {
    let (_home, host) = host();
    let worker = worker(&host, &component("guest-plugin"), FunctionConfig::default()).expect("it is of this world");
    block_on(async {
        assert_eq!(work!(worker, call_shout, "over and out").await.unwrap(), "OVER AND OUT");
        // Each call finds a fresh instance.
        for _ in 0..3 {
            assert_eq!(work!(worker.clone(), call_count).await.unwrap(), 1);
        }
        // A plugin that traps fails its own call alone, and its caller is told why.
        let error: CallError = work!(worker, call_fail, "on purpose").await.unwrap_err();
        assert!(matches!(error.why, RequestError::Failed), "{error}");
        let trap = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<Trap>());
        assert_eq!(trap, Some(&Trap::UnreachableCodeReached), "{error}");
        assert_eq!(error.response().status(), 500);
        assert_eq!(work!(worker, call_shout, "again").await.unwrap(), "AGAIN");
        // What the embedder's own part of a call fails with comes back as it is.
        let own = worker.call(async |_, _| Err::<(), _>(hob::wasmtime::Error::msg("no time"))).await.unwrap_err();
        assert!(own.to_string().contains("no time"), "{own}");

        // What it printed is on its way for a turn or two.
        let listed = async {
            loop {
                match host.recent().into_iter().find(|summary| summary.id == error.id) {
                    Some(summary) => return summary,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let summary = tokio::time::timeout(Duration::from_secs(10), listed).await.expect("it is an invocation");
        assert_eq!((summary.function.as_str(), summary.outcome.as_str()), ("worker", "failed"));
        let metrics = host.metrics(None);
        let count = |outcome: &str| format!("hob_requests_total{{function=\"worker\",outcome=\"{outcome}\"}}");
        let counted =
            |outcome: &str| metrics.lines().find_map(|line| line.strip_prefix(&count(outcome))).map(str::trim);
        assert_eq!((counted("ok"), counted("failed")), (Some("5"), Some("2")), "{metrics}");
    });
}

#[test]
fn a_plugin_is_held_to_its_limits() {
    let (_home, host) = host();
    let limits = Limits { wall_ms: 2000, cpu_ms: 100, memory_mib: 16, hostcall_bytes: 1 << 20, ..Limits::default() };
    let concurrency = Concurrency { running: 1, queued: 1, queue_wait_ms: 10 };
    let config = FunctionConfig { limits, ..FunctionConfig::default() };
    let guest = component("guest-plugin");
    let bounded = worker(&host, &guest, config.clone()).unwrap();
    let one = worker(&host, &guest, FunctionConfig { concurrency, ..config.clone() }).unwrap();
    let limits = Limits { wall_ms: 100, cpu_ms: 60_000, ..limits };
    let short = worker(&host, &guest, FunctionConfig { limits, ..config }).unwrap();
    block_on(async {
        // It spins on the only thread there is, and others are served beside it.
        let started = Instant::now();
        let beside = async {
            for _ in 0..10 {
                assert_eq!(work!(bounded, call_shout, "still here").await.unwrap(), "STILL HERE");
            }
            started.elapsed()
        };
        let (spun, beside) = tokio::join!(async { work!(bounded, call_spin).await }, beside);
        let ended = started.elapsed();
        assert!(matches!(spun.unwrap_err().why, RequestError::Cpu(_)));
        assert!(beside < ended && ended < Duration::from_secs(1), "{beside:?} of {ended:?}");

        let started = Instant::now();
        let spun = work!(short, call_spin).await.unwrap_err();
        assert!(matches!(spun.why, RequestError::Deadline(_)), "{spun}");
        // A plugin that waits for something of the embedder's has no more time than one that computes.
        let waited = short
            .call(async |_, _| {
                std::future::pending::<()>().await;
                Ok(())
            })
            .await
            .unwrap_err();
        assert!(matches!(waited.why, RequestError::Deadline(_)), "{waited}");
        assert!(started.elapsed() < Duration::from_secs(1));

        assert!(work!(bounded, call_hold, 8).await.unwrap() && !work!(bounded, call_hold, 17).await.unwrap());
        let peak = host.recent().iter().map(|summary| summary.memory_peak_bytes).max();
        assert!(peak.is_some_and(|peak| (8 << 20..=16 << 20).contains(&peak)), "{peak:?}");
        let large = "x".repeat(2 << 20);
        assert!(work!(bounded, call_shout, &large).await.is_err(), "its answer is more than may cross at once");

        let (first, second) =
            tokio::join!(async { work!(one, call_spin).await }, async { work!(one, call_count).await });
        assert!(matches!(first.unwrap_err().why, RequestError::Cpu(_)));
        assert!(matches!(second.unwrap_err().why, RequestError::TooMany { .. }));

        // A call that is given up leaves nothing behind.
        let given_up = tokio::time::timeout(Duration::from_millis(20), async { work!(one, call_spin).await }).await;
        assert!(given_up.is_err());
        assert_eq!(work!(one, call_count).await.unwrap(), 1);
    });
}

#[test]
fn what_is_no_plugin_of_this_world_is_refused() {
    let (_home, host) = host();
    let refusal = |component: &[u8], config| worker(&host, component, config).err().expect("it is refused").to_string();
    let hello = refusal(&component("hello"), FunctionConfig::default());
    assert!(hello.contains("not of the world") && hello.contains("test:plugin/work"), "{hello}");
    let chat = refusal(&component("chat"), FunctionConfig::default());
    assert!(chat.contains("hob:infer/models") && chat.contains("no model"), "{chat}");
    assert!(refusal(b"half a file", FunctionConfig::default()).contains("not WebAssembly"));
    let guest = component("guest-plugin");
    let cut = refusal(&guest[..guest.len() / 2], FunctionConfig::default());
    assert!(cut.contains("does not compile"), "{cut}");
    let route = RouteConfig::path("/worker".parse().unwrap());
    let config = FunctionConfig {
        routes: vec![route],
        models: vec!["nobody-has:this".parse().unwrap()],
        ..FunctionConfig::default()
    };
    assert!(refusal(&guest, config.clone()).contains("no routes"));
    assert!(refusal(&guest, FunctionConfig { routes: Vec::new(), ..config }).contains("nobody-has:this"));
}

/// Clients ask all the time while new versions come, ten of each kind: nobody is refused or cut off, and each answer is that
/// of one version as a whole.
#[test]
fn new_versions_come_under_load() {
    let (_home, host) = host();
    let (guest, hello) = (component("guest-plugin"), component("hello"));
    let worker = |n: u8| worker(&host, &distinct(&guest, &[n]), FunctionConfig::default()).unwrap();
    deploy(&host, "hello", "http");
    let current = Mutex::new(worker(0));
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut http = host.function("http").unwrap();
                block_on(async {
                    while !stop.load(Ordering::Relaxed) {
                        let plugin = current.lock().unwrap().clone();
                        let typed = async { work!(plugin, call_shout, "here").await };
                        let (typed, answer) = tokio::join!(typed, call(&mut http, post("/", "")));
                        assert_eq!(typed.unwrap(), "HERE");
                        assert_eq!(answer, (200, "hello from hob\n".into()));
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        for n in 1..=10 {
            let before = calls.load(Ordering::Relaxed);
            *current.lock().unwrap() = worker(n);
            deploy_bytes(&host, &distinct(&hello, &[n]), "http");
            let started = Instant::now();
            while calls.load(Ordering::Relaxed) < before + 10 {
                assert!(started.elapsed() < Duration::from_secs(60), "the clients go on");
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
