//! What a host shows while it runs: metrics, logs, where an answer's time went.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hob::client::Client;
use hob::config::{Concurrency, FunctionConfig, Limits};
use hob::keys::Scope;
use hob_tests::{Collector, Connection, Head, Hob, ServeOptions, get, hob_binary};
use serde_json::Value;

/// The value of a metric: a line's last part, the line's beginning being given.
fn value(metrics: &str, line: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
    Some(line.parse().expect("a metric is a number"))
}

/// A request on a connection of its own: its head, and the body.
fn ask(hob: &Hob, path: &str) -> (Head, String) {
    let mut connection = Connection::open(hob.address());
    connection.get(path);
    let head = connection.head();
    let body = connection.body();
    (head, body)
}

fn metrics_until(hob: &Hob, line: &str, wanted: f64) -> String {
    hob.until(&format!("{line} is {wanted}"), || {
        let metrics = hob.client().metrics().expect("the server runs");
        (value(&metrics, line) == Some(wanted)).then_some(metrics)
    })
}

#[test]
fn metrics_count_what_happened() {
    let hob = Hob::start();
    hob.deploy("hello", &[]);
    hob.deploy("guest-trap", &[]);
    for _ in 0..20 {
        assert_eq!(get(&hob.url("/hello")).0, 200);
    }
    assert_eq!(get(&hob.url("/guest-trap")).0, 500);
    assert_eq!(get(&hob.url("/nowhere")).0, 404);
    let metrics = metrics_until(&hob, "hob_requests_total{function=\"hello\",outcome=\"ok\"}", 20.0);
    let is = |line: &str, wanted: f64| assert_eq!(value(&metrics, line), Some(wanted), "{line} in\n{metrics}");
    is("hob_requests_total{function=\"guest-trap\",outcome=\"failed\"}", 1.0);
    is("hob_responses_total{function=\"hello\",status=\"2xx\"}", 20.0);
    is("hob_responses_total{function=\"guest-trap\",status=\"5xx\"}", 1.0);
    is("hob_refusals_total{function=\"\",reason=\"no-route\"}", 1.0);
    is("hob_functions", 2.0);
    is("hob_models_resident", 0.0);
    for histogram in [
        "request_duration_seconds",
        "queue_wait_seconds",
        "instance_start_seconds",
        "guest_cpu_seconds",
        "guest_memory_peak_bytes",
    ] {
        is(&format!("hob_{histogram}_count{{function=\"hello\"}}"), 20.0);
        let sum = value(&metrics, &format!("hob_{histogram}_sum{{function=\"hello\"}}")).expect("it is there");
        assert!(sum > 0.0, "{histogram} in\n{metrics}");
        is(&format!("hob_{histogram}_bucket{{le=\"+Inf\",function=\"hello\"}}"), 20.0);
    }
    let peak = value(&metrics, "hob_guest_memory_peak_bytes_sum{function=\"hello\"}").expect("it is there") / 20.0;
    assert!((65_536.0..16e6).contains(&peak), "a hello has {peak} bytes");
    assert!(metrics.ends_with("# EOF\n"));
    hob.ok(&["rm", "hello"]);
    assert!(!hob.client().metrics().expect("the server runs").contains("\"hello\""), "what is removed is gone");
}

#[test]
fn metrics_say_who_runs_who_waits_and_who_was_refused() {
    let hob = Hob::start();
    let concurrency = Concurrency { running: 1, queued: 1, queue_wait_ms: 60_000 };
    hob.deploy_with("guest-sleep", FunctionConfig { concurrency, ..FunctionConfig::default() });
    let [mut first, mut second] = [(); 2].map(|()| Connection::open(hob.address()));
    first.get("/guest-sleep");
    metrics_until(&hob, "hob_requests_running{function=\"guest-sleep\"}", 1.0);
    second.get("/guest-sleep");
    metrics_until(&hob, "hob_requests_queued{function=\"guest-sleep\"}", 1.0);
    let (head, _) = ask(&hob, "/guest-sleep");
    assert_eq!(head.status, 429);
    let metrics = metrics_until(&hob, "hob_refusals_total{function=\"guest-sleep\",reason=\"too-many\"}", 1.0);
    let count = value(&metrics, "hob_guest_cpu_seconds_count{function=\"guest-sleep\"}");
    assert_eq!(count, Some(0.0), "a refusal is no run");
    drop((first, second));
    metrics_until(&hob, "hob_requests_total{function=\"guest-sleep\",outcome=\"client-left\"}", 2.0);
    metrics_until(&hob, "hob_requests_running{function=\"guest-sleep\"}", 0.0);
}

#[test]
fn metrics_need_a_key_and_show_a_tenant_its_own() {
    let hob = Hob::start();
    hob.deploy("hello", &[]);
    assert_eq!(get(&hob.url("/hello")).0, 200);
    assert_eq!(get(&hob.url("/metrics")).0, 404, "the data listener does not have them");
    let file = std::fs::read(hob.home.path().join("control.json")).expect("the server wrote it");
    let file: hob::api::ControlFile = serde_json::from_slice(&file).expect("it is JSON");
    assert_eq!(get(&format!("http://{}/metrics", file.address)).0, 401);
    metrics_until(&hob, "hob_requests_total{function=\"hello\",outcome=\"ok\"}", 1.0);
    for (tenant, sees) in [("default", true), ("other", false)] {
        let new = hob::api::NewKey {
            name: "scraper".into(),
            tenant: tenant.parse().expect("it is a name"),
            scope: Scope::Read,
        };
        let key = hob.client().create_key(&new).expect("it can be made").key.expect("it is shown once");
        let client = Client::at(&format!("http://{}", file.address), key);
        let metrics = client.metrics().expect("it may read");
        assert_eq!(metrics.contains("function=\"hello\""), sees, "{metrics}");
        assert!(!metrics.contains("hob_engine"), "the host is an administrator's business");
        let name = "hello".parse().expect("it is a name");
        assert_eq!(client.logs(&name, false, None, None).is_ok(), sees);
    }
}

#[test]
fn an_answer_says_where_its_time_went() {
    let hob = Hob::start();
    hob.deploy("hello", &[]);
    hob.deploy_with(
        "guest-sleep",
        FunctionConfig { limits: Limits { wall_ms: 100, ..Limits::default() }, ..FunctionConfig::default() },
    );
    let parts = |head: &Head| -> Vec<(String, f64)> {
        let header = head.header("server-timing").expect("it is there");
        let part = |part: &str| part.split_once(";dur=").map(|(name, ms)| (name.into(), ms.parse().expect("a number")));
        header.split(", ").map(|text| part(text).expect("name;dur=ms")).collect()
    };
    for (path, status, least, most) in [("/hello", 200, 0.01, 20_000.0), ("/guest-sleep", 504, 90.0, 20_000.0)] {
        let (head, _) = ask(&hob, path);
        assert_eq!(head.status, status);
        let parts = parts(&head);
        let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["queue", "start", "guest", "total"]);
        let sum: f64 = parts[..3].iter().map(|(_, ms)| ms).sum();
        assert!((sum - parts[3].1).abs() < 0.01, "the parts are the whole: {parts:?}");
        assert!((least..most).contains(&parts[2].1), "{parts:?}");
        assert!(parts[1].1 > 0.0, "an instance was made: {parts:?}");
    }
    let silent = Hob::with(ServeOptions { args: vec!["--no-server-timing".into()], ..ServeOptions::default() });
    silent.deploy("hello", &[]);
    assert_eq!(ask(&silent, "/hello").0.header("server-timing"), None);
    // A function that says how it wants it has it so.
    for (server, wanted) in [(&hob, false), (&silent, true)] {
        server.deploy_as("hello", "own", FunctionConfig { server_timing: Some(wanted), ..FunctionConfig::default() });
        assert_eq!(ask(server, "/own").0.header("server-timing").is_some(), wanted);
    }
}

#[test]
fn logs_are_found_by_function_and_by_invocation() {
    let hob = Hob::start();
    hob.deploy("guest-print", &[]);
    hob.deploy("guest-trap", &[]);
    assert_eq!(hob.ok(&["logs", "guest-print"]), "");
    let ids = [(); 2].map(|()| {
        let (head, _) = ask(&hob, "/guest-print");
        head.header("x-hob-invocation").expect("it has an id").to_owned()
    });
    hob.until("both have printed", || (hob.ok(&["logs", "guest-print"]).lines().count() == 4).then_some(()));
    for id in &ids {
        let lines = hob.ok(&["logs", "guest-print", "--id", id]);
        let lines: Vec<_> = lines.lines().map(|line| line.split_once(' ').expect("a time comes first").1).collect();
        assert_eq!(lines, [format!("{id} stdout: a line on stdout"), format!("{id} stderr: a line on stderr")]);
    }
    let last = hob.ok(&["logs", "guest-print", "--last", "1", "--json"]);
    let last: Value = serde_json::from_str(&last).expect("it is JSON");
    assert_eq!((&last["n"], &last["stream"], &last["id"]), (&4.into(), &"stderr".into(), &ids[1].as_str().into()));

    // The id in an answer of the 500s finds the cause.
    let (head, body) = ask(&hob, "/guest-trap");
    let body: Value = serde_json::from_str(&body).expect("it is JSON");
    let id = body["error"]["id"].as_str().expect("it has an id");
    assert_eq!((head.status, head.header("x-hob-invocation")), (500, Some(id)));
    let lines = hob.ok(&["logs", "guest-trap", "--id", id]);
    assert!(lines.contains("stderr: ") && lines.contains("this guest always traps"), "{lines}");
    assert!(lines.contains("host: guest failed") && lines.contains("unreachable"), "{lines}");

    for (args, said) in [
        (&["logs", "nobody"][..], "no function is called `nobody`"),
        (&["logs", "guest-trap", "--id", "what is this"], "x-hob-invocation"),
    ] {
        let error = hob.refused(args);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn logs_can_be_followed() {
    let hob = Hob::start();
    hob.deploy("guest-print", &[]);
    assert_eq!(get(&hob.url("/guest-print")).0, 200);
    hob.until("it has printed", || (hob.ok(&["logs", "guest-print"]).lines().count() == 2).then_some(()));
    let mut follower = Command::new(hob_binary())
        .args(["logs", "-f", "guest-print", "--last", "1"])
        .env("HOB_DATA", hob.home.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hob is a command");
    let out = BufReader::new(follower.stdout.take().expect("it is piped"));
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let next = || lines.recv_timeout(Duration::from_secs(30)).expect("a line comes");
    assert!(next().ends_with("stderr: a line on stderr"), "the last of those there are");
    for _ in 0..3 {
        assert_eq!(get(&hob.url("/guest-print")).0, 200);
        assert!(next().ends_with("stdout: a line on stdout"));
        assert!(next().ends_with("stderr: a line on stderr"));
    }
    hob.ok(&["rm", "guest-print"]);
    assert!(follower.wait().expect("it is our child").success(), "a function that is removed has no more lines");
}

#[test]
fn a_guest_that_prints_without_end_fills_no_memory() {
    let hob = Hob::start();
    hob.deploy("guest-hostile", &[]);
    let before = hob.memory_mib();
    for _ in 0..4 {
        let (head, body) = ask(&hob, "/guest-hostile/print-flood");
        assert_eq!((head.status, body.as_str()), (200, "printed"));
    }
    let name = "guest-hostile".parse().expect("it is a name");
    let kept = hob.client().logs(&name, false, None, None).expect("it is deployed");
    let lines: Vec<Value> = kept.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    let bytes: usize = lines.iter().map(|line| line["text"].as_str().unwrap().len()).sum();
    assert!(!lines.is_empty() && bytes <= 256 << 10, "{bytes} bytes");
    let told = lines.iter().any(|line| line["stream"] == "host" && line["text"].as_str().unwrap().contains("dropped"));
    assert!(told, "it is said that lines are missing");
    assert!(hob.memory_mib() < before + 64);
}

/// A server that answers each request with its `traceparent` header; its port.
fn trace_mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let port = listener.local_addr().expect("it listens").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(stream.try_clone().expect("it is open")).lines().map_while(Result::ok);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let given = head.iter().find_map(|line| line.strip_prefix("traceparent: ")).unwrap_or("none");
            let length = given.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{given}");
        }
    });
    port
}

/// Asks through a guest that asks the mirror: the head, and the `traceparent` that came out.
fn through(hob: &Hob, port: u16, headers: &str) -> (Head, String) {
    let mut connection = Connection::open(hob.address());
    let url = format!("/guest-fetch?url=http://localhost:{port}/");
    connection.send(format!("GET {url} HTTP/1.1\r\nhost: test\r\n{headers}\r\n").as_bytes());
    let head = connection.head();
    let body: Value = serde_json::from_str(&connection.body()).expect("it is JSON");
    (head, body[0]["body"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned())
}

fn fetching(port: u16) -> FunctionConfig {
    let rule = format!("http://localhost:{port}").parse().expect("it is a rule");
    FunctionConfig { egress: vec![rule], ..FunctionConfig::default() }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[test]
fn traces_go_through_guests_and_to_a_collector() {
    let (collector, port) = (Collector::start(), trace_mirror());
    let args = vec!["--otlp-endpoint".into(), collector.endpoint.clone(), "--otlp-service".into(), "stove".into()];
    let mut hob = Hob::with(ServeOptions { args, ..ServeOptions::default() });
    hob.deploy_with("guest-fetch", fetching(port));
    hob.deploy("guest-trap", &[]);
    let span = |id: &str| {
        hob.until(&format!("the collector has span {id}"), || {
            collector.spans().into_iter().find(|span| span["spanId"] == id)
        })
    };
    let attribute = |span: &Value, key: &str| {
        let attributes = span["attributes"].as_array().expect("an invocation has some").clone();
        attributes.into_iter().find(|attribute| attribute["key"] == key).expect("it has that")["value"].clone()
    };

    let (head, sent) = through(&hob, port, &format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n"));
    let parts: Vec<_> = sent.split('-').collect();
    assert_eq!([parts[0], parts[1], parts[3]], ["00", TRACE, "01"]);
    let own = parts[2].to_owned();
    assert_ne!(own, PARENT);
    let whole = span(&own);
    assert_eq!([&whole["traceId"], &whole["parentSpanId"], &whole["name"]], [TRACE, PARENT, "GET guest-fetch"]);
    assert_eq!((&whole["kind"], &whole["status"]), (&2.into(), &Value::Null));
    let id = head.header("x-hob-invocation").expect("it has an id");
    assert_eq!(attribute(&whole, "faas.invocation_id")["stringValue"], id);
    assert_eq!(attribute(&whole, "url.path")["stringValue"], "/guest-fetch");
    let nanos = |span: &Value, key: &str| span[key].as_str().expect("it is text").parse::<u64>().expect("a number");
    let within = (nanos(&whole, "startTimeUnixNano"), nanos(&whole, "endTimeUnixNano"));
    let parts = hob.until("the parts of it come", || {
        let parts: Vec<_> = collector.spans().into_iter().filter(|span| span["parentSpanId"] == own.as_str()).collect();
        (parts.len() == 3).then_some(parts)
    });
    for (part, name) in parts.iter().zip(["queue", "start", "guest"]) {
        assert_eq!((&part["name"], &part["traceId"]), (&name.into(), &TRACE.into()));
        let (from, to) = (nanos(part, "startTimeUnixNano"), nanos(part, "endTimeUnixNano"));
        assert!(within.0 <= from && from <= to && to <= within.1, "{part} is within {whole}");
    }

    // One that nobody began begins here; one that is not sampled is not told; one that is none is none.
    let (_, sent) = through(&hob, port, "");
    assert!(sent.ends_with("-01") && !sent.contains(TRACE), "{sent}");
    assert_eq!(span(&sent[36..52])["parentSpanId"], Value::Null);
    let (_, unsampled) = through(&hob, port, &format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n"));
    assert!(unsampled.contains(TRACE) && unsampled.ends_with("-00"), "{unsampled}");
    assert!(!through(&hob, port, &format!("traceparent: 00-{TRACE}-nonsense-01\r\n")).1.contains(TRACE));

    assert_eq!(get(&hob.url("/guest-trap")).0, 500);
    assert!(hob.terminate(), "it ends well");
    let spans = collector.spans();
    let failed = spans.iter().find(|span| span["name"] == "GET guest-trap").expect("what waits is sent at the end");
    assert_eq!((&failed["status"]["code"], &failed["status"]["message"]), (&2.into(), &"failed".into()));
    assert!(!spans.iter().any(|span| span["spanId"] == unsampled[36..52]));
    assert!(collector.services().iter().all(|service| service == "stove"));
}

#[test]
fn the_collector_is_named_by_the_usual_variables() {
    let collector = Collector::start();
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let variables = vec![
        set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{}/v1/traces", collector.endpoint)),
        set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-team=stove"),
        set("OTEL_SERVICE_NAME", "kitchen"),
        set("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test"),
    ];
    let hob = Hob::with(ServeOptions { variables, ..ServeOptions::default() });
    hob.deploy("hello", &[]);
    assert_eq!(get(&hob.url("/hello")).0, 200);
    hob.until("the spans come", || (!collector.spans().is_empty()).then_some(()));
    assert!(collector.was_sent("authorization: bearer abc") && collector.was_sent("x-team: stove"));
    let said = serde_json::to_string(&collector.attributes()).expect("it is JSON");
    assert!(said.contains("kitchen") && said.contains("deployment.environment") && said.contains("test"), "{said}");
}

#[test]
fn a_collector_that_is_away_harms_nobody() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let error = hob_tests::refused(home.path(), &["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", "nowhere"]);
    assert!(error.contains("`nowhere`") && error.contains("http://localhost:4318"), "{error}");
    let port = trace_mirror();
    let args = vec!["--otlp-endpoint".into(), "http://127.0.0.1:1".into()];
    let hob = Hob::with(ServeOptions { args, ..ServeOptions::default() });
    hob.deploy_with("guest-fetch", fetching(port));
    assert_ne!(through(&hob, port, "").1, "none");
    hob.logged("the collector does not take traces");
    assert_ne!(through(&hob, port, "").1, "none");
    let silent = Hob::start();
    silent.deploy_with("guest-fetch", fetching(port));
    assert_eq!(through(&silent, port, "").1, "none", "without a collector no trace is begun");
    let given = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
    assert!(through(&silent, port, &given).1.contains(TRACE), "and those that come go on");
}
