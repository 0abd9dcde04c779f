//! What is billed: as much as was used, once, however invocations and hosts end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hob::client::Client;
use hob::config::{Concurrency, FunctionConfig, Limits};
use hob::usage::{NumberedRecord, Totals};
use hob_tests::{Connection, Hob, MODEL, ServeOptions, get, post};
use serde_json::Value;

/// A prompt that the model goes on with for as long as it may.
const ENDLESS: &str = "1,%202,%203,%204,%205,%206,%207,%208,%209,";

fn with_model(limits: Limits) -> FunctionConfig {
    FunctionConfig { models: vec![MODEL.parse().expect("it is a name")], limits, ..FunctionConfig::default() }
}

fn records(hob: &Hob) -> Vec<NumberedRecord> {
    let text = hob.client().usage_records(&[]).expect("the server runs");
    text.lines().map(|line| serde_json::from_str(line).expect("it is a record")).collect()
}

/// The records, once there are so many.
fn records_until(hob: &Hob, count: usize) -> Vec<NumberedRecord> {
    hob.until(&format!("there are {count} records"), || Some(records(hob)).filter(|records| records.len() >= count))
}

fn sums(client: &Client, query: &[(&str, &str)]) -> BTreeMap<(String, Option<String>), Totals> {
    let rows = client.usage(query).expect("the server runs").rows;
    rows.into_iter().map(|row| ((row.function, row.model), row.totals)).collect()
}

/// Asks on a connection of its own; the invocation's id, status and body.
fn ask(hob: &Hob, path: &str) -> (String, u16, String) {
    let mut connection = Connection::open(hob.address());
    connection.get(path);
    let head = connection.head();
    let id = head.header("x-hob-invocation").expect("it has an id").to_owned();
    (id, head.status, connection.body())
}

fn engine_counter(hob: &Hob, name: &str) -> u64 {
    let metrics = hob.client().metrics().expect("the server runs");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("it is there").parse().expect("it is a number")
}

#[test]
fn sums_are_what_the_answers_say() {
    let mut hob = Hob::with_model();
    for name in ["one", "two"] {
        hob.deploy_as("guest-infer", name, with_model(Limits::default()));
    }
    hob.deploy("guest-echo", &[]);
    let mut said: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (n, name) in ["one", "two", "one", "one", "two"].into_iter().enumerate() {
        let (id, status, body) = ask(&hob, &format!("/{name}?do=raw&max_tokens={}", 3 + 4 * n));
        assert_eq!(status, 200, "{body}");
        let usage = serde_json::from_str::<Value>(&body).expect("it is JSON")["usage"].clone();
        let of = said.entry(name).or_default();
        of.0 += usage["prompt_tokens"].as_u64().expect("it is a number");
        of.1 += usage["generated_tokens"].as_u64().expect("it is a number");
        of.2 += body.len() as u64;
        assert!(ids.insert(id), "an id is one invocation's");
    }
    assert_eq!(post(&hob.url("/guest-echo"), "0123456789"), (200, "0123456789".into()));
    records_until(&hob, 6);

    let model = Some(MODEL.to_owned());
    for restart in [false, true] {
        if restart {
            assert!(hob.terminate());
            hob.restart();
        }
        let sums = sums(&hob.client(), &[]);
        for (name, (prompt, generated, bytes)) in &said {
            let of = sums[&((*name).to_owned(), model.clone())];
            assert_eq!((of.prompt_tokens, of.generated_tokens), (*prompt, *generated), "{name}");
            assert!(of.device_us > 0 && of.device_us <= of.prefill_us + of.decode_us, "{of:?}");
            assert!(of.kv_byte_seconds > 0 && of.invocations == 0, "{of:?}");
            let own = sums[&((*name).to_owned(), None)];
            assert_eq!((own.bytes_out, own.generated_tokens), (*bytes, 0));
            assert!(own.wall_us >= of.prefill_us + of.decode_us && own.cpu_us > 0, "{own:?}");
            assert!(own.memory_peak_bytes >= 65_536, "{own:?}");
        }
        let echo = sums[&("guest-echo".into(), None)];
        assert_eq!((echo.invocations, echo.bytes_in, echo.bytes_out), (1, 10, 10));
        assert_eq!((sums[&("one".into(), None)].invocations, sums[&("two".into(), None)].invocations), (3, 2));
    }
    let found = records(&hob);
    assert_eq!(found.iter().map(|record| record.record).collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
    let found: BTreeSet<_> = found.into_iter().map(|record| record.of.id).collect();
    assert!(ids.is_subset(&found), "each answer's id has its record");

    // The same for people and programs.
    let csv = hob.ok(&["usage", "--function", "one", "--format", "csv"]);
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let column = lines[0].iter().position(|name| *name == "generated_tokens").expect("it is a column");
    let row = lines.iter().find(|line| line[3] == MODEL).expect("the model has a row");
    assert_eq!((row[1], row[2], row[column]), ("default", "one", said["one"].1.to_string().as_str()));
    let jsonl = hob.ok(&["usage", "--model", MODEL, "--by", "hour", "--format", "jsonl", "--since", "1h"]);
    let generated = jsonl.lines().map(|line| {
        let row: Value = serde_json::from_str(line).expect("it is JSON");
        assert!(row["from"].as_str().is_some_and(|from| from.ends_with(":00:00Z")), "{row}");
        row["generated_tokens"].as_u64().expect("it is a number")
    });
    assert_eq!(generated.sum::<u64>(), said["one"].1 + said["two"].1);
    assert!(hob.ok(&["usage", "--by", "day"]).contains("guest-echo"));
    assert_eq!(hob.ok(&["usage", "--until", "2026-01-01"]), "nothing was used\n");
    assert_eq!(hob.ok(&["usage", "--records", "--after", "5"]).lines().count(), 1);
    assert!(hob.refused(&["usage", "--since", "yesterday"]).contains("2026-11-25"));
}

#[test]
fn every_end_is_billed_for_what_was_used() {
    let hob = Hob::with_model();
    hob.deploy_as("guest-infer", "infer", with_model(Limits { wall_ms: 4000, memory_mib: 32, ..Limits::default() }));
    assert_eq!(get(&hob.url("/infer?do=raw&max_tokens=1")).0, 200);
    // A client that leaves in the middle.
    let mut client = Connection::open(hob.address());
    client.get(&format!("/infer?do=stream&max_tokens=4000&text={ENDLESS}"));
    assert_eq!(client.head().status, 200);
    let pieces = (0..10).filter_map(|_| client.chunk()).count();
    drop(client);
    let mut expected = vec![("ok", 1), ("client-left", pieces as u64)];
    for (how, status, outcome) in [("trap", 500, "failed"), ("memory", 500, "failed"), ("hang", 504, "deadline")] {
        assert_eq!(get(&hob.url(&format!("/infer?do={how}&max_tokens=5"))).0, status, "{how}");
        expected.push((outcome, 5));
    }
    // A generation that is cut by the deadline, and one that its guest lets go of.
    let (_, status, _) = ask(&hob, &format!("/infer?do=raw&max_tokens=8000&text={ENDLESS}"));
    assert_eq!(status, 504);
    expected.push(("deadline", 20));
    assert_eq!(ask(&hob, "/infer?do=cancel&max_tokens=3").1, 200);
    expected.push(("ok", 4));
    let mut records = records_until(&hob, expected.len());
    assert_eq!(records.len(), expected.len());
    // Their numbers say in which order they were complete.
    records.sort_by_key(|record| record.of.started_ms);
    for (record, (outcome, least)) in records.iter().zip(&expected) {
        let record = &record.of;
        assert_eq!(record.outcome, *outcome, "{record:?}");
        let [of] = record.models.as_slice() else { panic!("{record:?}") };
        assert!(of.generated_tokens >= *least && of.prompt_tokens > 0, "{record:?}");
        assert!(of.device_us > 0 && record.wall_us > 0 && record.cpu_us > 0, "{record:?}");
    }
    assert!(records[4].of.wall_us >= 4_000_000 && records[5].of.wall_us >= 4_000_000);
    assert!(records[3].of.memory_peak_bytes > 20 << 20, "{:?}", records[3]);
    // Not a token was made that nobody is billed for.
    let billed: u64 = records.iter().flat_map(|record| &record.of.models).map(|of| of.generated_tokens).sum();
    assert_eq!(billed, engine_counter(&hob, "hob_engine_tokens_generated_total"));
    let labels = format!("hob_model_tokens_total{{function=\"infer\",model=\"{MODEL}\",kind=\"generated\"}}");
    assert_eq!(billed, engine_counter(&hob, &labels));
    assert_eq!(engine_counter(&hob, "hob_usage_records_total"), expected.len() as u64);
}

#[test]
fn an_end_of_each_kind_leaves_one_record() {
    let hob = Hob::start();
    let deploy = |guest: &str, limits: Limits| {
        let concurrency = Concurrency { running: 1, queued: 0, ..Concurrency::default() };
        hob.deploy_with(guest, FunctionConfig { limits, concurrency, ..FunctionConfig::default() });
    };
    deploy("hello", Limits::default());
    deploy("guest-echo", Limits { request_bytes: 100, header_bytes: 2000, ..Limits::default() });
    deploy("guest-spin", Limits { cpu_ms: 50, ..Limits::default() });
    deploy("guest-sleep", Limits { wall_ms: 1500, ..Limits::default() });
    deploy("guest-trap", Limits::default());
    deploy("guest-no-response", Limits::default());
    deploy("guest-big-body", Limits { response_bytes: 1 << 20, ..Limits::default() });
    let mut expected = Vec::new();
    let mut ends = |path: &str, method: &str, header: &str, body: &str, outcome: &str| {
        let mut connection = Connection::open(hob.address());
        connection.request(method, path, &[("x-header", header)], body.as_bytes());
        let head = connection.head();
        let id = head.header("x-hob-invocation").unwrap_or_else(|| panic!("{path}: {head:?}")).to_owned();
        // An answer that is cut has no end.
        let _ = connection.try_body();
        expected.push((id, outcome.to_owned()));
    };
    ends("/hello", "GET", "", "", "ok");
    ends("/guest-echo", "POST", "", &"x".repeat(101), "too-large");
    ends("/guest-echo", "POST", &"x".repeat(2001), "", "headers-too-large");
    ends("/guest-spin", "GET", "", "", "cpu");
    ends("/guest-trap", "GET", "", "", "failed");
    ends("/guest-no-response", "GET", "", "", "no-answer");
    ends("/guest-big-body", "GET", "", "", "answer-too-large");
    // One runs, another finds no place, and a third leaves before its answer.
    let mut sleeper = Connection::open(hob.address());
    sleeper.get("/guest-sleep");
    hob.until("it runs", || (metric(&hob, "hob_requests_running{function=\"guest-sleep\"}") == Some(1)).then_some(()));
    ends("/guest-sleep", "GET", "", "", "too-many");
    let head = sleeper.head();
    expected.push((head.header("x-hob-invocation").expect("it has an id").to_owned(), "deadline".into()));
    let mut leaver = Connection::open(hob.address());
    leaver.get("/guest-sleep");
    hob.until("it runs", || (metric(&hob, "hob_requests_running{function=\"guest-sleep\"}") == Some(1)).then_some(()));
    drop(leaver);
    let records = records_until(&hob, expected.len() + 1);
    let found: BTreeMap<String, String> =
        records.iter().map(|record| (record.of.id.clone(), record.of.outcome.clone())).collect();
    assert_eq!(found.len(), records.len(), "one each");
    for (id, outcome) in &expected {
        assert_eq!(found.get(id), Some(outcome), "{id} of {found:?}");
    }
    let others: Vec<_> = found.iter().filter(|(id, _)| !expected.iter().any(|(known, _)| known == *id)).collect();
    assert_eq!(others.iter().map(|(_, outcome)| outcome.as_str()).collect::<Vec<_>>(), ["client-left"]);
    // What came is counted, however little that was.
    let of = |outcome: &str| &records.iter().find(|record| record.of.outcome == outcome).expect("it is there").of;
    assert!(of("cpu").cpu_us >= 50_000 && of("deadline").wall_us >= 1_500_000);
    assert!(of("answer-too-large").bytes_out <= 2 << 20);
}

/// A number of the host's metrics, if it is there.
fn metric(hob: &Hob, name: &str) -> Option<u64> {
    let metrics = hob.client().metrics().expect("the server runs");
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn a_tenant_sees_its_own_usage() {
    let hob = Hob::start();
    hob.deploy("hello", &[]);
    let file = std::fs::read(hob.home.path().join("control.json")).expect("the server wrote it");
    let file: hob::api::ControlFile = serde_json::from_slice(&file).expect("it is JSON");
    let client = |tenant: &str, scope: &str| {
        let key = hob.ok(&["keys", "create", "k", "--scope", scope, "--tenant", tenant]);
        Client::at(&format!("http://{}", file.address), key.trim().to_owned())
    };
    let acme = client("acme", "deploy");
    let bytes = std::fs::read(hob_tests::component("hello")).expect("it was built");
    let component = acme.upload(&bytes).expect("it may");
    let config =
        FunctionConfig { routes: vec![hob::config::RouteConfig::path("/acme".parse().unwrap())], ..Default::default() };
    let request = hob::function_host::DeployRequest::new(component, config);
    acme.deploy(&"acme".parse().unwrap(), &request).expect("it may");
    for path in ["/hello", "/acme", "/acme"] {
        assert_eq!(get(&hob.url(path)).0, 200);
    }
    records_until(&hob, 3);
    let calls = |client: &Client| -> BTreeMap<String, u64> {
        sums(client, &[]).into_iter().map(|((function, _), totals)| (function, totals.invocations)).collect()
    };
    assert_eq!(calls(&hob.client()), [("acme".into(), 2), ("hello".into(), 1)].into());
    assert_eq!(calls(&acme), [("acme".into(), 2)].into());
    assert_eq!(calls(&client("globex", "read")), BTreeMap::new());
    assert_eq!(acme.usage_records(&[]).expect("it may").lines().count(), 2);
    let refused = acme.usage(&[("tenant", "default")]).expect_err("it may not").to_string();
    assert!(refused.contains("an administrator's to see"), "{refused}");
}

#[test]
fn a_host_that_is_killed_loses_a_second_at_most_and_bills_nothing_twice() {
    let mut hob = Hob::with_model();
    hob.deploy_as("guest-infer", "infer", with_model(Limits::default()));
    hob.deploy("hello", &[]);
    assert_eq!(get(&hob.url("/infer?do=raw&max_tokens=1")).0, 200);
    let mut long_ago = BTreeSet::new();
    for round in 0..12_u64 {
        let mut streamer = Connection::open(hob.address());
        streamer.get(&format!("/infer?do=stream&max_tokens=8000&text={ENDLESS}"));
        let head = streamer.head();
        let streamed = head.header("x-hob-invocation").expect("it has an id").to_owned();
        let (mut answered, mut pieces) = (Vec::new(), Vec::new());
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1100 + 37 * round) {
            answered.push((ask(&hob, "/hello").0, Instant::now()));
            if streamer.chunk().is_some() {
                pieces.push(Instant::now());
            }
        }
        let billed = hob.client().usage(&[]).expect("it runs").billed_through.record;
        let killed = Instant::now();
        hob.kill();
        drop(streamer);
        hob.restart();
        let found = records(&hob);
        let ids: BTreeSet<_> = found.iter().map(|record| record.of.id.clone()).collect();
        assert_eq!(ids.len(), found.len(), "none is there twice");
        let numbers: BTreeSet<_> = found.iter().map(|record| record.record).collect();
        assert!((1..=billed).all(|number| numbers.contains(&number)), "what was said to be billed is");
        let second = |at: &Instant| killed.duration_since(*at) > Duration::from_secs(1);
        long_ago.extend(answered.into_iter().filter(|(_, at)| second(at)).map(|(id, _)| id));
        assert!(long_ago.is_subset(&ids), "round {round}: {:?} are lost", long_ago.difference(&ids));
        // The stream was cut by the kill; what it had a second before is billed.
        let stream = found.iter().find(|record| record.of.id == streamed).expect("it ran for more than a second");
        assert_eq!(stream.of.outcome, "host-killed");
        let had = pieces.iter().filter(|at| second(at)).count() as u64;
        assert!(stream.of.models[0].generated_tokens >= had, "{had} of {stream:?}");
        // Sums are those of the records.
        let mut sum = Totals::default();
        sums(&hob.client(), &[]).values().for_each(|totals| sum.add(totals));
        let tokens: u64 = found.iter().flat_map(|record| &record.of.models).map(|of| of.generated_tokens).sum();
        assert_eq!((sum.invocations, sum.generated_tokens), (found.len() as u64, tokens));
    }
    assert!(long_ago.len() > 50, "{} requests were long enough ago", long_ago.len());
}

#[test]
fn a_host_that_stops_lets_generations_end_and_refuses_new_work() {
    let mut hob = Hob::with_model();
    hob.deploy_as("guest-infer", "infer", with_model(Limits::default()));
    hob.deploy("hello", &[]);
    assert_eq!(get(&hob.url("/infer?do=raw&max_tokens=1")).0, 200);
    let mut kept = Connection::open(hob.address());
    kept.get("/hello");
    assert_eq!((kept.head().status, kept.body().as_str()), (200, "hello from hob\n"));
    let mut stream = Connection::open(hob.address());
    stream.get(&format!("/infer?do=stream&max_tokens=200&text={ENDLESS}"));
    assert_eq!(stream.head().status, 200);
    assert!(stream.chunk().is_some(), "it runs");
    hob.ask_to_stop();
    hob.logged("stopping: new requests are refused");
    let refused = |connection: &mut Connection| {
        connection.get("/hello");
        let head = connection.head();
        let (retry, close) = (head.header("retry-after"), head.header("connection"));
        assert_eq!((head.status, retry, close), (503, Some("1"), Some("close")));
        assert!(connection.body().contains("\"stopping\""));
    };
    refused(&mut kept);
    refused(&mut Connection::open(hob.address()));
    let rest = stream.body();
    assert!(rest.contains("event: done"), "{rest}");
    assert!(hob.ended_well());
    let done: Value = rest
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .next_back()
        .map(|data| serde_json::from_str(data).expect("it is JSON"))
        .expect("it has data");
    hob.restart();
    let record = records(&hob).pop().expect("it was the last").of;
    assert_eq!(
        (record.outcome.as_str(), &done["usage"]["generated_tokens"]),
        ("ok", &record.models[0].generated_tokens.into())
    );
}

#[test]
fn what_does_not_end_in_time_is_cut_and_billed() {
    let args = vec!["--drain".into(), "1".into()];
    let mut hob = Hob::with(ServeOptions { model: true, args, ..ServeOptions::default() });
    hob.deploy_as("guest-infer", "infer", with_model(Limits::default()));
    let mut stream = Connection::open(hob.address());
    stream.get(&format!("/infer?do=stream&max_tokens=8000&text={ENDLESS}"));
    assert_eq!(stream.head().status, 200);
    let had = (0..5).filter_map(|_| stream.chunk()).count() as u64;
    let asked = Instant::now();
    assert!(hob.terminate());
    assert!((1.0..6.0).contains(&asked.elapsed().as_secs_f64()), "{:?}", asked.elapsed());
    hob.restart();
    let records = records(&hob);
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record.of.outcome, "shutdown");
    assert!(record.of.models[0].generated_tokens > had, "{record:?}");
}
