//! Chains of middleware before a handler, made into one component when a function is deployed.

use std::time::{Duration, Instant};

use hob::config::{FunctionConfig, Limits};
use hob::records::PartRecord;
use hob_tests::{Connection, Hob, component, get};

/// Deploys `handler` behind so many middlewares, all of the same component.
fn deploy(hob: &Hob, handler: &str, middleware: usize, more: &[&str]) {
    let (handler, middle) = (component(handler), component("guest-middleware"));
    let middle = ["--middleware", middle.to_str().unwrap()].repeat(middleware);
    let handler = ["deploy", handler.to_str().unwrap(), "--name", "chain"];
    hob.ok(&[&handler, middle.as_slice(), more].concat());
}

#[test]
pub fn middleware() {
    let hob = Hob::start();
    deploy(&hob, "guest-three", 2, &[]);
    let mut connection = Connection::open(hob.address());
    // A header for the handler, and one for the client from each; each has memory of its own.
    let ask = |connection: &mut Connection, path: &str, headers: &[(&str, &str)]| {
        connection.request("POST", &format!("/chain/{path}"), headers, b"a body");
        (connection.head(), connection.body())
    };
    let (head, depth) = ask(&mut connection, "depth", &[]);
    assert_eq!((head.status, depth.as_str()), (200, "2"));
    let passed: Vec<_> =
        head.headers.iter().filter(|(name, _)| name == "x-passed").map(|(_, value)| value.as_str()).collect();
    assert_eq!(passed, ["2 (request 1)", "1 (request 1)"]);
    let (_, about) = ask(&mut connection, "about?x=1", &[]);
    assert!(about.starts_with("Method::Post Some(Scheme::Http)") && about.ends_with("/chain/about?x=1"), "{about}");
    // Refused before the handler, by either.
    for depth in ["1", "2"] {
        let (head, body) = ask(&mut connection, "trap", &[("x-refuse-at", depth)]);
        assert_eq!((head.status, head.header("x-refused"), body.as_str()), (403, Some(depth), ""));
    }
    let (head, body) = ask(&mut connection, "echo", &[("x-shout-at", "2")]);
    assert_eq!((head.status, body.as_str()), (200, "A BODY"));
    // A trap anywhere is a trap of the function, with an id that its log knows.
    for at in ["1", "2", "3"] {
        let path = if at == "3" { "trap" } else { "depth" };
        let (head, body) = ask(&mut connection, path, &[("x-trap-at", at)]);
        assert_eq!(head.status, 500, "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        hob.logged(body["error"]["id"].as_str().unwrap());
    }
    assert_eq!(get(&hob.url("/chain")).0, 200);
}

#[test]
fn a_body_streams_through_both_ways() {
    let hob = Hob::start();
    deploy(&hob, "guest-three", 2, &[]);
    // A piece now and then, for ever: the first comes at once, and the client that leaves ends it.
    let mut connection = Connection::open(hob.address());
    let started = Instant::now();
    connection.get("/chain/drip");
    let head = connection.head();
    let id = head.header("x-hob-invocation").unwrap().to_owned();
    for _ in 0..3 {
        assert!(connection.chunk().unwrap().starts_with('.'));
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(connection);
    assert_eq!(hob.ended(|summary| summary.id == id).outcome, "client-left");
    // Large both ways, changed as it passes.
    let body = "over and out ".repeat(100_000);
    let mut connection = Connection::open(hob.address());
    connection.request("POST", "/chain/echo", &[("x-shout-at", "1")], body.as_bytes());
    assert_eq!(connection.head().status, 200);
    assert!(connection.body() == body.to_uppercase());
}

#[test]
fn a_chain_is_held_to_its_functions_limits() {
    let hob = Hob::start();
    deploy(&hob, "guest-three", 1, &["--timeout", "1"]);
    let mut connection = Connection::open(hob.address());
    let started = Instant::now();
    connection.request("GET", "/chain", &[("x-spin-at", "1")], b"");
    assert_eq!(connection.head().status, 504);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // Core instances are counted over all parts.
    let limits = Limits { core_instances: 1, ..Limits::default() };
    let parts = [component("guest-middleware"), component("guest-three")].map(|file| std::fs::read(file).unwrap());
    let client = hob.client();
    let [middle, handler] = parts.map(|bytes| client.upload(&bytes).unwrap());
    let config = FunctionConfig { limits, ..FunctionConfig::default() };
    let request = serde_json::json!({
        "component": handler, "middleware": [{ "component": middle }],
        "config": { "limits": config.limits, "routes": [{ "path": "/small" }] },
    });
    client.deploy(&"small".parse().unwrap(), &serde_json::from_value(request).unwrap()).unwrap();
    assert!(get(&hob.url("/small")).0 >= 500);
}

#[test]
fn a_revision_says_what_it_was_made_of() {
    let mut hob = Hob::start();
    let middle = std::fs::canonicalize(component("guest-middleware")).unwrap();
    let project = tempfile::tempdir().unwrap();
    std::fs::copy(component("guest-three"), project.path().join("three.wasm")).unwrap();
    std::fs::copy(&middle, project.path().join("middle.wasm")).unwrap();
    let manifest = project.path().join("hob.toml");
    std::fs::write(
        &manifest,
        "name = \"chain\"\ncomponent = \"three.wasm\"\nmiddleware = [\"middle.wasm\", \"middle.wasm\"]\n",
    )
    .unwrap();
    let manifest = manifest.to_str().unwrap();
    assert!(hob.ok(&["deploy", manifest, "--check"]).contains("can be deployed"));
    hob.ok(&["deploy", manifest]);
    assert!(hob.ok(&["revisions", "chain"]).contains("middle.wasm > middle.wasm > three.wasm"));
    let revisions = hob.client().revisions(&"chain".parse().unwrap()).unwrap();
    let record = &revisions[0].record;
    let sources: Vec<_> = record.parts.iter().map(PartRecord::name).collect();
    assert_eq!(sources, ["middle.wasm", "middle.wasm", "three.wasm"]);
    assert!(record.parts.iter().all(|part| part.component != record.component), "the whole is another component");
    // The same parts make the same whole: nothing is compiled again, nor after a restart.
    hob.ok(&["deploy", manifest]);
    let again = hob.client().revisions(&"chain".parse().unwrap()).unwrap();
    assert_eq!(again[0].record.component, record.component);
    assert_eq!(hob.log().matches("compiled ").count(), 1, "{}", hob.log());
    assert!(hob.terminate());
    hob.restart();
    assert_eq!(get(&hob.url("/chain/depth")), (200, "2".into()));
}

#[test]
fn what_makes_no_chain_is_refused() {
    let hob = Hob::start();
    let file = |name: &str| component(name).to_str().unwrap().to_owned();
    let refused = |handler: &str, middleware: &str| {
        hob.refused(&["deploy", &file(handler), "--name", "x", "--middleware", &file(middleware)])
    };
    let error = refused("guest-three", "guest-three");
    assert!(error.contains("guest-three.wasm is no middleware"), "{error}");
    let error = refused("hello", "guest-middleware");
    assert!(error.contains("hello.wasm takes no requests from middleware") && error.contains("WASI 0.3"), "{error}");
    let error = refused("guest-middleware", "guest-middleware");
    assert!(error.contains("no handler comes after it"), "{error}");
    let error = hob.refused(&["deploy", &file("guest-middleware"), "--name", "x"]);
    assert!(error.contains("wasi:http/handler@0.3") && error.contains("middleware"), "alone it is no handler: {error}");
    let error = refused("guest-three", "guest-module");
    assert!(error.contains("core WebAssembly module"), "{error}");
    let middle = file("guest-middleware");
    let many = ["--middleware", middle.as_str()].repeat(17);
    let error = hob.refused(&[&["deploy", &file("guest-three"), "--name", "x"], many.as_slice()].concat());
    assert!(error.contains("at most 16"), "{error}");
    assert!(hob.ok(&["list"]).contains("no function is deployed"));
}
