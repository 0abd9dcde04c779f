//! Guests that misbehave in every way we could think of, beside a neighbour that must not notice.

use std::time::{Duration, Instant};

use hob::config::{Concurrency, FunctionConfig, Limits};
use hob_tests::{Hob, Neighbours, ServeOptions, get, post, whole};
use serde_json::Value;

/// 99 of 100 of a neighbour's answers come within three times what they take without the hostile guests, and this: two workers
/// on a machine that does other things too.
const NEIGHBOUR_MORE: Duration = Duration::from_millis(25);

fn limits() -> Limits {
    Limits {
        wall_ms: 1000,
        cpu_ms: 250,
        memory_mib: 32,
        handles: 200,
        header_bytes: 16 << 10,
        request_bytes: 1 << 20,
        response_bytes: 1 << 20,
        ..Limits::default()
    }
}

fn config(limits: Limits) -> FunctionConfig {
    FunctionConfig { limits, ..FunctionConfig::default() }
}

/// What must come of a request.
enum Expect {
    /// This status with this code, and an id that is in the log.
    Error(u16, &'static str),
    /// One of these statuses: what stops it first is a race.
    OneOf(&'static [u16]),
    /// An answer with this text.
    Text(&'static str),
    /// An answer that begins and does not come to its end.
    Cut,
}
use Expect::{Cut, Error, OneOf, Text};

#[test]
#[allow(clippy::print_stdout)] // the numbers, with `--nocapture`
pub fn hostile() {
    let hob = Hob::with(ServeOptions { args: ["--workers", "2"].map(str::to_owned).into(), ..ServeOptions::default() });
    hob.deploy("hello", &[]);
    hob.deploy_as("guest-hostile", "small", config(limits()));
    // Where memory is no obstacle, what crosses the boundary is.
    let large = Limits { memory_mib: 512, hostcall_bytes: 1 << 20, handles: 1000, cpu_ms: 900, ..limits() };
    hob.deploy_as("guest-hostile", "large", config(large));
    hob.deploy_as("guest-three", "three", config(limits()));
    hob.deploy_bytes(&wat::parse_str(TABLES).unwrap(), "tables", config(limits()));
    hob.deploy_bytes(&wat::parse_str(SPINS_AT_START).unwrap(), "start", config(limits()));
    hob.deploy_bytes(&wat::parse_str(NEEDS_MUCH).unwrap(), "much", config(limits()));

    let neighbours = || Neighbours::start(hob.address(), "/hello", "hello from hob\n", 4);
    let alone = neighbours();
    std::thread::sleep(Duration::from_secs(1));
    let (alone, _) = alone.stop();
    let neighbours = neighbours();
    let started = Instant::now();
    for (path, expect) in BEHAVIOURS {
        misbehave(&hob, path, expect, false);
    }
    // All at once, too.
    std::thread::scope(|scope| {
        for (path, expect) in BEHAVIOURS {
            let hob = &hob;
            scope.spawn(move || misbehave(hob, path, expect, true));
        }
    });
    let (p99, answers) = neighbours.stop();
    println!(
        "{} behaviours twice in {:?}; {answers} answers to neighbours, p99 {p99:?}, {alone:?} before",
        BEHAVIOURS.len(),
        started.elapsed()
    );
    assert!(p99 < alone * 3 + NEIGHBOUR_MORE, "a neighbour waited {p99:?}, {alone:?} before");
    assert!(hob.log().len() < 16 << 20, "the log is bounded");
    assert_eq!(get(&hob.url("/hello")).0, 200);
    assert!(hob.memory_mib() < 300, "{} MiB are left behind", hob.memory_mib());
}

const BEHAVIOURS: &[(&str, Expect)] = &[
    // Time.
    ("/small/spin", Error(504, "cpu")),
    ("/small/spin-in-calls", Error(504, "cpu")),
    ("/small/yield", Error(504, "cpu")),
    ("/small/endless-random", Error(504, "cpu")),
    ("/small/sleep", Error(504, "deadline")),
    ("/small/never-read", Error(504, "deadline")),
    ("/small/drip", Cut),
    ("/start", Error(504, "cpu")),
    ("/three/never", Error(504, "deadline")),
    ("/three/spin", Error(504, "cpu")),
    ("/three/drip", Cut),
    // Memory, tables, what crosses the boundary.
    ("/small/allocate", Text(" MiB")),
    ("/small/allocate-or-die", Error(500, "failed")),
    ("/small/recurse", Error(500, "failed")),
    ("/small/giant-random", Error(500, "failed")),
    ("/small/giant-string", Error(500, "failed")),
    ("/large/giant-string", Error(500, "failed")),
    ("/large/many-strings", Error(500, "failed")),
    ("/large/poll-many", OneOf(&[500, 504])),
    ("/large/print-line", OneOf(&[500, 504])),
    ("/tables", Error(500, "failed")),
    ("/much", Error(500, "failed")),
    // Handles and tasks.
    ("/small/fields", Error(500, "failed")),
    ("/small/pollables", Error(500, "failed")),
    ("/small/clones", Error(500, "failed")),
    ("/small/poll-none", Error(500, "failed")),
    ("/three/fork", Error(500, "failed")),
    ("/three/streams", Error(500, "failed")),
    // Answers.
    ("/small/big-header", Error(500, "failed")),
    ("/small/many-headers", Error(500, "failed")),
    ("/small/split-header", Text("refused: true")),
    ("/small/forbidden-header", Text("refused: true")),
    ("/small/odd-status", Text("refused: true")),
    ("/small/flood", Cut),
    ("/small/announce-much", Error(502, "answer-too-large")),
    ("/small/announce-more", Cut),
    ("/small/trap-in-body", Cut),
    ("/three/trap-in-body", Cut),
    ("/small/no-answer", Error(500, "no-answer")),
    ("/three/error", Error(500, "failed")),
    ("/small/print-flood", Text("printed")),
    // Ends.
    ("/small/trap", Error(500, "failed")),
    ("/small/exit", Error(500, "failed")),
    ("/small/exit-well", Error(500, "no-answer")),
    ("/small/panic-much", Error(500, "failed")),
    ("/three/trap", Error(500, "failed")),
    // What is not its own.
    ("/small/files", Text("opened: []")),
    ("/small/sockets", Text("tcp false udp false name false")),
];

/// Asks for it. In a crowd everybody is slower, and time may be over before anything else is.
fn misbehave(hob: &Hob, path: &str, expect: &Expect, crowd: bool) {
    let asked = Instant::now();
    match expect {
        Error(status, code) => {
            let (got, body) = post(&hob.url(path), &"x".repeat(100_000));
            let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {got} {body}"));
            let late = crowd && got == 504 && body["error"]["code"] == "deadline";
            let expected = (got, body["error"]["code"].as_str()) == (*status, Some(*code));
            assert!(expected || late, "{path} should give {status} {code}: {got} {body}");
            if *code != "no-answer" {
                hob.logged(body["error"]["id"].as_str().expect("it has an id"));
            }
        }
        OneOf(statuses) => {
            let (got, body) = get(&hob.url(path));
            assert!(statuses.contains(&got), "{path}: {got} {body}");
        }
        Text(text) => {
            let (got, body) = get(&hob.url(path));
            assert!(got == 200 && body.contains(text) || crowd && got == 504, "{path}: {got} {body}");
        }
        Cut => {
            let answer = whole(hob.address(), &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
            // What goes wrong at once goes wrong before the head has left.
            let begun = answer.is_empty() || answer.starts_with("HTTP/1.1 200");
            assert!(begun || crowd && answer.starts_with("HTTP/1.1 504"), "{path}: {answer:.300}");
            assert!(!begun || !answer.ends_with("0\r\n\r\n"), "{path} seems whole: {answer:.300}");
            assert!(answer.len() < 3 << 20, "{path}: {} bytes", answer.len());
        }
    }
    // Its second at most, and what a busy machine adds.
    assert!(asked.elapsed() < Duration::from_secs(8), "{path} took {:?}", asked.elapsed());
}

/// A component that handles HTTP with a core module's `handle`.
macro_rules! handler {
    ($module:literal) => {
        concat!(
            r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $request))
            (alias export $types "response-outparam" (type $out))
            (core module $m "#,
            $module,
            r#")
            (core instance $i (instantiate $m))
            (func $handle (param "request" (own $request)) (param "response-out" (own $out))
                (canon lift (core func $i "handle")))
            (instance $handler (export "handle" (func $handle)))
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
        )
    };
}

/// Grows its table until the host refuses.
const TABLES: &str = handler!(
    r#"(table $t 1 funcref)
    (func (export "handle") (param i32 i32)
        (loop $again (br_if $again (i32.ne (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1))))
        unreachable)"#
);
/// Never gets as far as being called.
const SPINS_AT_START: &str = handler!(
    r#"(func $spin (loop $again (br $again)))
    (start $spin)
    (func (export "handle") (param i32 i32))"#
);
/// Wants a GiB before it begins.
const NEEDS_MUCH: &str = handler!(
    r#"(memory 16384)
    (func (export "handle") (param i32 i32))"#
);

#[test]
fn a_function_has_so_many_places_and_a_queue() {
    let hob = Hob::start();
    let concurrency = Concurrency { running: 1, queued: 1, queue_wait_ms: 3000 };
    hob.deploy_as("guest-three", "one", FunctionConfig { concurrency, ..FunctionConfig::default() });
    let url = hob.url("/one/wait?600");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| get(&url))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status == 429).collect();
    assert_eq!(refused.len(), 1, "one runs, one waits, one is refused: {answers:?}");
    assert!(refused[0].1.contains("too-many"), "{answers:?}");
    // Patience has an end.
    let concurrency = Concurrency { running: 1, queued: 1, queue_wait_ms: 50 };
    hob.deploy_as("guest-three", "one", FunctionConfig { concurrency, ..FunctionConfig::default() });
    std::thread::scope(|scope| {
        let first = scope.spawn(|| get(&url));
        std::thread::sleep(Duration::from_millis(200));
        let head = whole(hob.address(), "GET /one/wait?1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 429") && head.contains("retry-after: 1"), "{head}");
        assert_eq!(first.join().unwrap().0, 200);
    });
    let waited = hob.ended(|summary| summary.outcome == "too-many");
    assert_eq!(waited.function.as_str(), "one");
}

#[test]
fn a_host_has_so_many_instances() {
    let hob =
        Hob::with(ServeOptions { args: ["--instances", "1"].map(str::to_owned).into(), ..ServeOptions::default() });
    hob.deploy_with("guest-sleep", config(Limits { wall_ms: 1500, ..Limits::default() }));
    hob.deploy("hello", &[]);
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| get(&hob.url("/guest-sleep")));
        std::thread::sleep(Duration::from_millis(500));
        let head = whole(hob.address(), "GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 1") && head.contains("busy"), "{head}");
        assert_eq!(sleeping.join().unwrap().0, 504);
    });
    assert_eq!(get(&hob.url("/hello")).0, 200);
}

#[test]
fn requests_that_are_too_large_are_refused() {
    let hob = Hob::start();
    let small = Limits { request_bytes: 1000, header_bytes: 1000, ..Limits::default() };
    hob.deploy_with("guest-echo", config(small));
    let url = hob.url("/guest-echo");
    assert_eq!(post(&url, &"x".repeat(1000)).0, 200);
    let (status, body) = post(&url, &"x".repeat(1001));
    assert!(status == 413 && body.contains("request_bytes"), "{status} {body}");
    let header = "x".repeat(1000);
    let head = whole(
        hob.address(),
        &format!("GET /guest-echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: {header}\r\n\r\n"),
    );
    assert!(head.starts_with("HTTP/1.1 431") && head.contains("header_bytes"), "{head}");
    // Without a length it is found out on the way: the answer, a copy of the body, is not whole.
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let head = "POST /guest-echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = whole(hob.address(), &format!("{head}{chunk}{chunk}0\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 413") || !answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[test]
fn what_an_invocation_used_is_counted() {
    let hob = Hob::start();
    hob.deploy_with("guest-hostile", config(limits()));
    assert_eq!(get(&hob.url("/guest-hostile/spin")).0, 504);
    let spun = hob.ended(|summary| summary.outcome == "cpu");
    assert!((240_000..1_000_000).contains(&spun.cpu_us), "{spun:?}");
    assert_eq!(get(&hob.url("/guest-hostile/allocate")).0, 200);
    let taken = hob.ended(|summary| summary.outcome == "ok");
    assert!((20 << 20..=32 << 20).contains(&taken.memory_peak_bytes), "{taken:?}");
    assert_eq!(get(&hob.url("/guest-hostile/sleep")).0, 504);
    let slept = hob.ended(|summary| summary.outcome == "deadline");
    assert!(slept.cpu_us < 100_000, "a guest that waits computes nothing: {slept:?}");
}
