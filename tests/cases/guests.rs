//! One case for each program in `guests/`, under its name.

use std::time::{Duration, Instant};

use hob_tests::{Connection, Hob, ServeOptions, get, post};
use serde_json::Value;

// Those that have a file of their own.
pub use crate::egress::{fetch, fetch_three};
pub use crate::embed::plugin;
pub use crate::hostile::hostile;
pub use crate::middleware::middleware;
pub use crate::otel::otel;
pub use crate::serve::about;
pub use crate::sockets::{sockets, sockets_three};
pub use crate::worlds::{command, interfaces, module, three};

fn json(url: &str) -> (u16, Value) {
    let (status, body) = get(url);
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("not JSON: {body}")))
}

#[test]
pub fn allocate() {
    let hob = Hob::start();
    hob.deploy("guest-allocate", &["--memory", "16"]);
    let (status, body) = get(&hob.url("/guest-allocate"));
    assert_eq!(status, 200, "{body}");
    let mib: u32 = body.trim_end_matches(" MiB\n").parse().unwrap();
    assert!((8..16).contains(&mib), "a limit of 16 MiB left {mib} MiB to the guest");
}

#[test]
pub fn big_body() {
    let hob = Hob::start();
    hob.deploy("guest-big-body", &[]);
    let mut connection = Connection::open(hob.address());
    connection.get("/guest-big-body");
    assert_eq!(connection.head().status, 200);
    let mut bytes = 0;
    while let Some(chunk) = connection.chunk() {
        assert_eq!(chunk.as_bytes()[0] as usize, bytes >> 20, "in order");
        bytes += chunk.len();
    }
    assert_eq!(bytes, 64 << 20);
}

#[test]
pub fn echo() {
    let hob = Hob::start();
    hob.deploy("guest-echo", &[]);
    let mut connection = Connection::open(hob.address());
    let body = "over and out ".repeat(100_000);
    // Twice, on one connection.
    for path in ["/guest-echo", "/guest-echo/deeper?q=1"] {
        connection.post(path, &body);
        let head = connection.head();
        assert_eq!((head.status, head.header("x-method"), head.header("x-path")), (200, Some("POST"), Some(path)));
        assert_eq!(connection.body(), body);
    }
}

#[test]
pub fn infer() {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-infer");
    let ask = |query: &str| json(&hob.url(&format!("/guest-infer?{query}")));

    let (status, info) = ask("do=open");
    assert_eq!(
        (status, &info["name"], &info["context_tokens"], &info["chat"]),
        (200, &"smollm2:135m".into(), &8192.into(), &true.into())
    );
    assert_eq!(ask("do=tokenize&text=Hello").1["tokens"], serde_json::json!([19556]));

    let (status, raw) = ask("do=raw&max_tokens=8");
    assert_eq!(status, 200, "{raw}");
    assert!(raw["text"].as_str().unwrap().contains("Paris"), "{raw}");
    assert_eq!(raw["usage"]["generated_tokens"], 8);
    assert_eq!(raw["finish"], "length");

    let (_, stopped) = ask("do=raw&max_tokens=32&stop=Paris");
    assert_eq!(stopped["finish"], "stop");
    assert!(!stopped["text"].as_str().unwrap().contains("Paris"), "{stopped}");

    let sampled = || ask("do=chat&text=Tell%20me%20a%20story&temperature=1&seed=7&max_tokens=12").1["text"].clone();
    assert_eq!(sampled(), sampled(), "the same seed gives the same text");

    assert_eq!(ask("do=cancel&max_tokens=3").1["pieces"].as_array().unwrap().len(), 3);

    for (query, status, code) in [
        ("model=no-such-model", 404, "not-found"),
        ("do=too-long", 413, "too-long"),
        ("do=empty", 400, "invalid"),
        ("do=raw&temperature=-1", 400, "invalid"),
        ("do=raw&max_tokens=0", 400, "invalid"),
    ] {
        let (got, body) = ask(query);
        assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{query}: {body}");
    }
    let (_, too_long) = ask("do=too-long");
    let message = too_long["error"]["message"].as_str().unwrap();
    assert!(message.contains("8192") && message.contains("100"), "both numbers are told: {message}");
}

#[test]
pub fn nn() {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-nn");
    let ask = |query: &str| json(&hob.url(&format!("/guest-nn?{query}"))).1;
    for model in ["smollm2:135m", "default"] {
        let answer = ask(&format!("do=ok&model={model}"));
        assert!(answer["outputs"]["0"].as_str().unwrap().contains("Paris"), "{answer}");
        let metadata: Value = serde_json::from_str(answer["outputs"]["1"].as_str().unwrap()).unwrap();
        assert_eq!((&metadata["output_tokens"], &metadata["finish_reason"]), (&16.into(), &"length".into()));
    }
    for (query, code, why) in [
        ("do=missing-tensor", "InvalidArgument", "tensor `0`"),
        ("do=wrong-type", "InvalidArgument", "U8"),
        ("do=wrong-options", "InvalidArgument", "JSON"),
        ("do=load-bytes", "UnsupportedOperation", "load-by-name"),
        ("do=unknown-model", "NotFound", "no-such-model"),
        ("do=ok&text=", "InvalidArgument", "empty"),
    ] {
        let answer = ask(query);
        assert!(answer["code"].as_str().is_some_and(|got| got.contains(code)), "{query}: {answer}");
        assert!(answer["data"].as_str().unwrap().contains(why), "{query}: {answer}");
    }
}

#[test]
fn a_model_that_was_not_granted_is_refused() {
    let hob = Hob::with_model();
    hob_tests::lend_model_as(hob.home.path(), "secret:1");
    hob.deploy_with_model("guest-infer");
    hob.deploy_with_model("guest-nn");
    let (status, body) = json(&hob.url("/guest-infer?model=secret:1"));
    assert_eq!((status, &body["error"]["code"]), (403, &"not-granted".into()), "{body}");
    let answer = json(&hob.url("/guest-nn?do=ok&model=secret:1")).1;
    assert!(answer["code"].as_str().unwrap().contains("Security"), "{answer}");
}

#[test]
fn tensors_are_counted_in_the_host() {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-nn");
    assert_eq!(json(&hob.url("/guest-nn?do=hoard")).0, 500);
    hob.logged("67108864 are allowed");
}

#[test]
pub fn no_response() {
    let hob = Hob::start();
    hob.deploy("guest-no-response", &[]);
    let (status, body) = json(&hob.url("/guest-no-response"));
    assert_eq!((status, &body["error"]["code"]), (500, &"no-answer".into()));
}

#[test]
pub fn outbound() {
    let hob = Hob::start();
    let file = hob_tests::component("guest-outbound");
    let error = hob.refused(&["deploy", file.to_str().unwrap(), "--name", "outbound"]);
    assert!(error.contains("`wasi:http/outgoing-handler@0.2") && error.contains("egress"), "{error}");
    assert!(hob.ok(&["list"]).contains("no function is deployed"), "a refused component leaves nothing");
}

#[test]
pub fn print() {
    let hob = Hob::start();
    hob.deploy("guest-print", &[]);
    let (status, body) = json(&hob.url("/guest-print"));
    assert_eq!(status, 200);
    assert_eq!(
        (&body["environment"], &body["arguments"]),
        (&serde_json::json!({}), &serde_json::json!([])),
        "nothing of the host's"
    );
    assert!(body["unix_seconds"].as_u64().unwrap() > 1_700_000_000 && body["monotonic"] == true);
    hob.logged("a line on stdout");
    hob.logged("a line on stderr");
}

#[test]
pub fn sleep() {
    let hob = Hob::start();
    hob.deploy("guest-sleep", &["--timeout", "1"]);
    let started = Instant::now();
    let (status, body) = json(&hob.url("/guest-sleep"));
    assert_eq!((status, &body["error"]["code"]), (504, &"deadline".into()));
    assert!((900..8000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[test]
pub fn spin() {
    // One worker: the guest and its neighbour share a thread.
    let hob = Hob::with(ServeOptions { args: ["--workers", "1"].map(str::to_owned).into(), ..ServeOptions::default() });
    hob.deploy("guest-spin", &["--timeout", "2"]);
    hob.deploy("hello", &[]);
    let started = Instant::now();
    let mut spinning = Connection::open(hob.address());
    spinning.get("/guest-spin");
    let ask = |_| {
        let asked = Instant::now();
        assert_eq!(get(&hob.url("/hello")), (200, "hello from hob\n".into()));
        asked.elapsed()
    };
    let mut waits: Vec<Duration> = (0..20).map(ask).collect();
    assert!(started.elapsed() < Duration::from_millis(1900), "the neighbour waited: {:?}", started.elapsed());
    waits.sort_unstable();
    // The machine may hold one up.
    assert!(waits[18] < Duration::from_millis(500), "the neighbour waited: {waits:?}");
    let head = spinning.head();
    assert_eq!(head.status, 504, "{}", spinning.body());
    assert!((1900..8000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[test]
pub fn stream_slow() {
    let hob = Hob::start();
    hob.deploy("guest-stream-slow", &[]);
    let mut connection = Connection::open(hob.address());
    connection.get("/guest-stream-slow?n=100");
    let started = Instant::now();
    assert_eq!(connection.head().status, 200);
    assert_eq!(connection.chunk().unwrap(), "1\n");
    assert!(started.elapsed() < Duration::from_millis(1500), "the first piece does not wait for the last");
    assert!(connection.body().ends_with("99\nend\n"));

    // A client that leaves takes its instance along.
    let mut connection = Connection::open(hob.address());
    connection.get("/guest-stream-slow?n=100000");
    let id = connection.head().header("x-hob-invocation").unwrap().to_owned();
    connection.chunk().unwrap();
    drop(connection);
    let left = Instant::now();
    let ended = hob.ended(|summary| summary.id == id);
    assert_eq!(ended.outcome, "client-left");
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
}

#[test]
pub fn trap() {
    let hob = Hob::start();
    hob.deploy("guest-trap", &[]);
    hob.deploy("hello", &[]);
    let (status, body) = json(&hob.url("/guest-trap"));
    assert_eq!((status, &body["error"]["code"]), (500, &"failed".into()));
    let id = body["error"]["id"].as_str().unwrap();
    hob.logged(id);
    hob.logged("this guest always traps");
    assert_eq!(get(&hob.url("/hello")).0, 200, "others do not notice");
    assert_eq!(post(&hob.url("/guest-trap"), "x").0, 500, "nor does the next request");
}
