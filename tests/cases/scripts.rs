//! Handlers in JavaScript and Python, as their own tools make them, unmodified.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hob::config::{FunctionConfig, Limits, Reuse};
use hob_tests::{Connection, Hob, ServeOptions, get, post, root, script};
use serde_json::{Value, json};

/// What both can do. Their engines are snapshots taken after start: a fresh one for each request is quick.
fn a_handler(name: &str, language: &str, config: FunctionConfig) {
    let Some(bytes) = script(name) else { return };
    let hob = start();
    hob.deploy_bytes(&bytes, "script", config.clone());
    let mut connection = Connection::open(hob.address());
    connection.request("GET", "/script/a?b=c", &[("x-user", "ada")], b"");
    let head = connection.head();
    let body = connection.body();
    assert_eq!(head.status, 200, "{body}");
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(said, json!({ "hello": language, "path": "/script/a", "user": "ada" }));
    let text = "over and out ".repeat(20_000);
    assert_eq!(post(&hob.url("/script/echo"), &text), (200, text));
    for _ in 0..3 {
        assert_eq!(get(&hob.url("/script/count")).1, "1", "a fresh instance each time");
    }
    assert_eq!(get(&hob.url("/script/print")).0, 200);
    hob.logged(&format!("a line from {language}"));
    assert_eq!(get(&hob.url("/script/throw")).0, 500);
    hob.logged("this handler always throws");

    let limits = Limits { cpu_ms: 300, ..config.limits };
    hob.deploy_bytes(&bytes, "short", FunctionConfig { limits, ..config });
    assert_eq!(get(&hob.url("/short/spin")).0, 504);
    assert_eq!(get(&hob.url("/short/count")).0, 200);
    tell(&hob, name, &bytes);
    keep_compiled(&hob);
}

/// A server that finds compiled what an earlier run of these cases compiled: that takes ten seconds for each of them.
fn start() -> Hob {
    let home = tempfile::tempdir().unwrap();
    copy(&compiled(), &home.path().join("compiled"));
    Hob::on(home, ServeOptions::default())
}

fn keep_compiled(hob: &Hob) {
    copy(&hob.home.path().join("compiled"), &compiled());
}

fn compiled() -> PathBuf {
    root().join("target/guests/scripts/compiled")
}

/// Copies the files in the folders of `from` that are not there yet; each appears whole.
fn copy(from: &Path, to: &Path) {
    let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    for file in list(from).flat_map(|engine| list(&engine).collect::<Vec<_>>()) {
        let to = to.join(file.strip_prefix(from).unwrap());
        if !to.exists() {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            let part = to.with_extension(std::process::id().to_string());
            std::fs::copy(&file, &part).unwrap();
            std::fs::rename(part, to).unwrap();
        }
    }
}

/// What a fresh instance costs.
#[allow(clippy::print_stdout)] // numbers for who reads the tests' output
fn tell(hob: &Hob, name: &str, bytes: &[u8]) {
    for _ in 0..20 {
        assert_eq!(get(&hob.url("/script/count")).0, 200);
    }
    let mut calls = hob.client().invocations().unwrap();
    calls.retain(|call| call.function.as_str() == "script" && call.outcome == "ok");
    let last = &calls[calls.len() - 20..];
    let median = |of: fn(&hob::request::Summary) -> u64| {
        let mut all: Vec<_> = last.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    println!(
        "{name}: {} KiB of component; first call {} us; then start {} us, whole call {} us, memory {} KiB",
        bytes.len() >> 10,
        calls[0].total_us,
        median(|call| call.instantiate_us),
        median(|call| call.total_us),
        median(|call| call.memory_peak_bytes) >> 10,
    );
    assert!(median(|call| call.total_us) < 100_000, "a fresh engine takes milliseconds");
}

#[test]
fn javascript() {
    // The engine imports outgoing requests whether a program makes some or not.
    let egress = vec!["https://example.com".parse().unwrap()];
    let config = FunctionConfig { egress, ..FunctionConfig::default() };
    a_handler("guest-js", "JavaScript", config.clone());
    let Some(bytes) = script("guest-js") else { return };
    let hob = start();
    hob.deploy_bytes(&bytes, "js", config);
    let mut connection = Connection::open(hob.address());
    connection.get("/js/stream?n=5");
    assert_eq!(connection.head().status, 200);
    assert_eq!(connection.chunk().unwrap(), "1\n", "a piece at a time");
    assert_eq!(connection.body(), "2\n3\n4\n5\n");
}

#[test]
fn python() {
    a_handler("guest-py", "Python", FunctionConfig::default());
    let Some(bytes) = script("guest-py") else { return };
    let hob = start();
    let reuse = Reuse { requests: 100, ..Reuse::default() };
    hob.deploy_bytes(&bytes, "reused", FunctionConfig { reuse, ..FunctionConfig::default() });
    let count = || {
        let (_, count) = get(&hob.url("/reused/count"));
        // An instance is free a moment after its client has the answer.
        std::thread::sleep(Duration::from_millis(30));
        count
    };
    assert_eq!([count(), count(), count()], ["1", "2", "3"]);
}
