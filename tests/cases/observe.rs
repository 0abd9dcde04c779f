//! What a host shows while it runs: metrics, logs, where an answer's time went.

use std::io::BufRead as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hob::client::Client;
use hob::config::{Concurrency, FunctionConfig, Limits};
use hob::keys::Scope;
use hob_tests::{Connection, Head, Hob, ServeOptions, get, hob_binary};
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
    let out = std::io::BufReader::new(follower.stdout.take().expect("it is piped"));
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
