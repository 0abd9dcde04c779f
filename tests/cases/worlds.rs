//! What components may be: WASI 0.2 and 0.3, fresh and reused, commands; and the interfaces that are not HTTP.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hob::config::{Directory, FunctionConfig, Limits, Reuse};
use hob_tests::{Hob, ServeOptions, component, get, hob_binary, post};
use serde_json::{Value, json};

fn json(url: &str) -> Value {
    let (status, body) = get(url);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn reuse(requests: u32, concurrent: u32, idle_ms: u32) -> FunctionConfig {
    FunctionConfig { reuse: Reuse { requests, concurrent, idle_ms }, ..FunctionConfig::default() }
}

#[test]
pub fn three() {
    let hob = Hob::start();
    hob.deploy("guest-three", &[]);
    assert_eq!(get(&hob.url("/guest-three")), (200, "hello from WASI 0.3\n".into()));
    let (_, about) = get(&hob.url("/guest-three/about?x=1"));
    let authority = format!("Some({:?})", hob.address().to_string());
    assert_eq!(about, format!("Method::Get Some(Scheme::Http) {authority} /guest-three/about?x=1"));
    let body = "over and out ".repeat(100_000);
    assert_eq!(post(&hob.url("/guest-three/echo"), &body), (200, body));
    for _ in 0..3 {
        assert_eq!(get(&hob.url("/guest-three/count")).1, "1", "a fresh instance each time");
    }
    // It is mapped again after a restart, by the engine that it was compiled for.
    let mut hob = hob;
    assert!(hob.terminate());
    hob.restart();
    assert_eq!(get(&hob.url("/guest-three")).0, 200);
    assert!(!hob.log().contains("compiling again"), "{}", hob.log());
}

#[test]
fn instances_are_reused_when_asked_for() {
    let hob = Hob::start();
    // An instance is free a moment after its client has the answer.
    let count_of = |path: &str| {
        let (_, count) = get(&hob.url(path));
        std::thread::sleep(Duration::from_millis(30));
        count
    };
    for guest in ["guest-three", "guest-hostile"] {
        hob.deploy_with(guest, reuse(3, 1, 60_000));
        let count = || count_of(&format!("/{guest}/count"));
        assert_eq!([count(), count(), count(), count()], ["1", "2", "3", "1"], "{guest} lives for three requests");
        // What ends badly is not used again.
        assert_eq!(get(&hob.url(&format!("/{guest}/trap"))).0, 500);
        assert_eq!(count(), "1", "{guest}");
        // A client that leaves takes the instance along.
        assert_eq!([count(), count()], ["2", "3"]);
    }
    hob.deploy_with("guest-three", reuse(1000, 1, 150));
    let count = || count_of("/guest-three/count");
    assert_eq!([count(), count()], ["1", "2"]);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(count(), "1", "an instance that idles goes");
    // Log lines and times are those of the request at hand.
    hob.deploy_with("guest-print", reuse(1000, 1, 60_000));
    let ids: Vec<_> = (0..2)
        .map(|_| {
            assert_eq!(get(&hob.url("/guest-print")).0, 200);
            let id = hob.ended(|summary| summary.function.as_str() == "guest-print").id;
            hob.logged(&id);
            id
        })
        .collect();
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn one_instance_answers_several_at_once() {
    // Each thread that serves has its own.
    let args = vec!["--workers".into(), "1".into()];
    let hob = Hob::with(ServeOptions { args, ..ServeOptions::default() });
    hob.deploy_with("guest-three", reuse(1000, 16, 60_000));
    let all = |path: &str, n: usize| -> Vec<(u16, String)> {
        let url = &hob.url(path);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..n).map(|_| scope.spawn(move || get(url))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        })
    };
    let together = all("/guest-three/wait?400", 8);
    assert!(together.iter().all(|(status, _)| *status == 200), "{together:?}");
    let most = together.iter().map(|(_, text)| text.parse::<u32>().unwrap()).max();
    assert_eq!(most, Some(8), "all in one instance: {together:?}");
    assert_eq!(get(&hob.url("/guest-three/count")).1, "9");
    // Time limits hold for each alone.
    let limits = Limits { wall_ms: 500, cpu_ms: 200, ..Limits::default() };
    hob.deploy_as("guest-three", "short", FunctionConfig { limits, ..reuse(1000, 16, 60_000) });
    let (status, body) = get(&hob.url("/short/never"));
    assert!(status == 504 && body.contains("deadline"), "{body}");
    assert_eq!(get(&hob.url("/short/count")), (200, "1".into()), "another instance");
    // What ends the instance ends all that run in it, each with an id that the log knows; the next request has another.
    let ended = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&hob.url("/short/wait?400")));
        std::thread::sleep(Duration::from_millis(100));
        let spun = get(&hob.url("/short/spin"));
        [spun, waiting.join().unwrap()]
    });
    for (status, body) in ended {
        assert_eq!(status, 504, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        hob.logged(body["error"]["id"].as_str().unwrap());
    }
    let trapped = all("/short/trap", 2);
    assert!(trapped.iter().all(|(status, _)| *status == 500), "{trapped:?}");
    assert_eq!(get(&hob.url("/short")).0, 200);
}

#[test]
fn a_stream_of_the_host_is_not_cut_short() {
    let hob = Hob::start();
    let home = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + (n / 7 % 26) as u8).collect();
    std::fs::write(home.path().join("large.bin"), &large).unwrap();
    let directories = vec![Directory { host: home.path().into(), guest: "/data".into(), writable: false }];
    for (name, reuse) in [
        ("fresh", Reuse::default()),
        ("reused", Reuse { requests: 100, concurrent: 1, idle_ms: 1 }),
        ("shared", Reuse { requests: 100, concurrent: 8, idle_ms: 1 }),
        ("last", Reuse { requests: 2, concurrent: 8, idle_ms: 1 }),
    ] {
        let config = FunctionConfig { directories: directories.clone(), reuse, ..FunctionConfig::default() };
        hob.deploy_as("guest-three", name, config);
        for _ in 0..4 {
            let (status, body) = get(&hob.url(&format!("/{name}/file")));
            assert_eq!((status, body.len()), (200, large.len()), "{name}");
            assert!(body.as_bytes() == large, "{name}: the bytes are right");
        }
    }
}

#[test]
pub fn interfaces() {
    let mut hob = Hob::start();
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("data")).unwrap();
    std::fs::write(home.path().join("data/in.txt"), "for the guest").unwrap();
    std::fs::write(home.path().join("secret.txt"), "not for the guest").unwrap();
    std::os::unix::fs::symlink(home.path().join("secret.txt"), home.path().join("data/link")).unwrap();
    let directory = |guest: &str, writable| Directory { host: home.path().join("data"), guest: guest.into(), writable };
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    };
    let config = FunctionConfig {
        environment: pairs(&[("MODE", "test")]),
        config: pairs(&[("greeting", "hello"), ("place", "here")]),
        directories: vec![directory("/data", true), directory("/ro", false)],
        ..FunctionConfig::default()
    };
    hob.deploy_with("guest-interfaces", config.clone());
    hob.deploy_as("guest-interfaces", "other", FunctionConfig::default());
    let ask = |hob: &Hob, query: &str| json(&hob.url(&format!("/guest-interfaces?{query}")));

    let all = json!([["greeting", "hello"], ["place", "here"]]);
    let configured = ask(&hob, "do=config&key=greeting");
    assert_eq!((&configured["one"], &configured["draft"]), (&json!("hello"), &json!("hello")));
    assert_eq!((&configured["all"], &configured["draft_all"]), (&all, &all));
    assert_eq!(configured["env"], json!({ "MODE": "test" }));
    assert_eq!(ask(&hob, "do=config&key=none")["one"], Value::Null);

    ask(&hob, "do=log");
    hob.logged("a warning");
    hob.logged("billing");

    let files = ask(&hob, "do=files");
    assert_eq!(files["read"], json!({ "Ok": "for the guest" }), "{files}");
    assert_eq!(files["wrote"], json!({ "Ok": null }), "{files}");
    assert_eq!((&files["read_only"], &files["outside"]), (&json!([true, false]), &json!(false)));
    assert_eq!(std::fs::read_to_string(home.path().join("data/out.txt")).unwrap(), "from the guest");

    assert_eq!(ask(&hob, "do=get&key=a"), Value::Null);
    ask(&hob, "do=set&key=a&value=1");
    ask(&hob, "do=set&key=b&value=x&bucket=second");
    assert_eq!((ask(&hob, "do=get&key=a"), ask(&hob, "do=exists&key=b")), (json!("1"), json!(false)));
    assert_eq!(ask(&hob, "do=increment&key=n&value=5"), json!(5));
    assert_eq!(ask(&hob, "do=many"), json!(["m1", null]));
    assert_eq!(ask(&hob, "do=keys"), json!(["a", "m1", "n"]));
    assert!(ask(&hob, "do=large")["error"].as_str().unwrap().contains("4194304"));
    assert!(ask(&hob, "do=increment&key=b&bucket=second")["error"].as_str().unwrap().contains("not a number"));
    assert_eq!(json(&hob.url("/other?do=get&key=a")), Value::Null, "functions do not share");
    // Another draft of the same, over the same buckets.
    let draft2 = json!({
        "seen": "1", "won": true, "lost": "2", "again": true, "now": "3", "sums": [5, -2], "keys": ["a", "b", "n"], "cursor": true,
    });
    assert_eq!(ask(&hob, "do=draft2"), draft2);
    assert_eq!(ask(&hob, "do=get&key=a&bucket=draft2"), json!("3"));
    // It survives the worst end, and another revision finds it.
    hob.kill();
    hob.restart();
    hob.deploy_with("guest-interfaces", config);
    assert_eq!((ask(&hob, "do=get&key=a"), ask(&hob, "do=increment&key=n&value=2")), (json!("1"), json!(7)));
    ask(&hob, "do=delete&key=a");
    assert_eq!(ask(&hob, "do=exists&key=a"), json!(false));
}

#[test]
pub fn command() {
    let home = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    for dir in ["data", "ro"] {
        std::fs::create_dir(files.path().join(dir)).unwrap();
        std::fs::write(files.path().join(dir).join("in.txt"), dir).unwrap();
    }
    let data = format!("{}::/data", files.path().join("data").display());
    let read_only = format!("{}::/ro:ro", files.path().join("ro").display());
    let given = ["--env", "A=b=c", "--dir", &data, "--dir", &read_only, "--", "one", "two words"];
    let (code, out, err) = run(home.path(), &given, "some input");
    let expected = "args [\"one\", \"two words\"]\nenv [(\"A\", \"b=c\")]\nstdin \"some input\"\n\
        /data read Some(\"data\") wrote true\n/ro read Some(\"ro\") wrote false\n";
    assert_eq!((code, out.as_str()), (0, expected), "{err}");
    assert!(err.contains("to stderr"), "{err}");
    // WASI 0.2 tells a good end from a bad one, no more.
    assert_eq!(run(home.path(), &["--", "--exit", "7"], "").0, 1);
    assert_eq!(run(home.path(), &["--", "--exit", "0"], "").0, 0);
    assert_eq!(run(home.path(), &["--", "--fail"], "").0, 1);
    let refused = |args: &[&str]| hob_tests::refused(home.path(), args);
    let hello = component("hello");
    assert!(refused(&["run", hello.to_str().unwrap()]).contains("wasi:cli/run"), "a handler is no command");
    let hob = Hob::start();
    let command = component("guest-command");
    let error = hob.refused(&["deploy", command.to_str().unwrap(), "--name", "x"]);
    assert!(error.contains("wasi:http/handler"), "a command is no handler: {error}");
}

#[test]
pub fn module() {
    let home = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("in.txt"), "a file").unwrap();
    let data = format!("{}::/data:ro", files.path().display());
    let run = |args: &[&str]| run_guest("guest-module", home.path(), args, "some input");
    // Not granted a model, it cannot even ask.
    let (code, _, error) = run(&["--", "hello"]);
    assert!(code != 0 && error.contains("wasi_ephemeral_nn.") && error.contains("--model"), "{error}");
    hob_tests::lend_model(home.path());
    let run = |args: &[&str]| run(&[&["--model", hob_tests::MODEL], args].concat());

    let (code, out, err) = run(&["--env", "A=b", "--dir", &data, "--", "about"]);
    let expected = "args [\"about\"]\nenv [(\"A\", \"b\")]\nstdin \"some input\" true\n\
        file Some(\"a file\")\noutside false\n";
    assert_eq!((code, out.as_str()), (0, expected), "{err}");
    // WASI 0.1 tells every end from every other.
    assert_eq!(run(&["--", "exit", "7"]).0, 7);
    let (code, _, err) = run(&["--", "trap"]);
    assert!(code == 1 && err.contains("this guest always traps"), "{err}");
    let (_, out, _) = run(&["--memory", "16", "--", "allocate"]);
    let mib: u32 = out.trim_end_matches(" MiB\n").parse().unwrap();
    assert!((8..16).contains(&mib), "a limit of 16 MiB left {mib} MiB to the guest");

    for model in ["default", hob_tests::MODEL] {
        let (_, out, err) = run(&["--", "ask", model, "The capital of France is"]);
        let (text, about) = out.trim_end().rsplit_once('\n').unwrap();
        let about: Value = serde_json::from_str(about).unwrap_or_else(|_| panic!("{out} {err}"));
        assert!(text.contains("Paris"), "{text}");
        assert_eq!((&about["output_tokens"], &about["finish_reason"]), (&json!(16), &json!("length")));
    }
    let (_, out, err) = run(&["--", "ask", "no-such-model", "x"]);
    assert!(out.contains("Not Found") && err.contains("no-such-model"), "{out} {err}");

    let refused = |args: &[&str]| hob_tests::refused(home.path(), args);
    let hob = Hob::start();
    let module = component("guest-module");
    let error = hob.refused(&["deploy", module.to_str().unwrap(), "--name", "x"]);
    assert!(error.contains("core WebAssembly module") && error.contains("hob run"), "{error}");
    for (text, why) in [
        ("(module (import \"env\" \"f\" (func)) (func (export \"_start\")))", "`env.f`"),
        ("(module)", "`_start`"),
        ("(module (import \"wasi_snapshot_preview1\" \"nonsense\" (func)) (func (export \"_start\")))", "nonsense"),
    ] {
        let file = files.path().join("bad.wasm");
        std::fs::write(&file, wat::parse_str(text).unwrap()).unwrap();
        let error = refused(&["run", file.to_str().unwrap()]);
        assert!(error.contains(why), "{error}");
    }
}

/// What a module asks for in bad faith is answered with a number, and nothing else happens.
#[test]
fn a_module_that_means_harm() {
    let home = tempfile::tempdir().unwrap();
    hob_tests::lend_model(home.path());
    let (code, out, err) = run_guest("guest-module", home.path(), &["--model", hob_tests::MODEL, "--", "hostile"], "");
    assert_eq!(code, 0, "{err}");
    let answers: BTreeMap<&str, u32> = out
        .lines()
        .map(|line| line.split_once(": ").map(|(what, code)| (what, code.parse().unwrap())).unwrap())
        .collect();
    let (invalid, runtime_error, unsupported, too_large, not_found) = (1, 5, 6, 7, 8);
    let expected = [
        ("load", unsupported),
        ("name far", invalid),
        ("name wraps", invalid),
        ("name not text", invalid),
        ("name unknown", not_found),
        ("name without a place", invalid),
        ("graph unknown", invalid),
        ("name", 0),
        ("graph huge", invalid),
        ("context unknown", invalid),
        ("context without a place", invalid),
        ("context", 0),
        ("tensor far", invalid),
        ("tensor wraps", invalid),
        ("dimensions far", invalid),
        ("dimensions wrap", invalid),
        ("type unknown", invalid),
        ("index unknown", invalid),
        ("computed nothing", invalid),
        ("output before", runtime_error),
        ("shape wrong", 0),
        ("shape wrong computed", invalid),
        ("good", 0),
        ("context huge", invalid),
        ("computed", 0),
        ("output far", invalid),
        ("output wraps", invalid),
        ("output without a place", invalid),
        ("output small", too_large),
        ("output unknown", invalid),
        ("contexts", too_large),
        // With the graph, as many as the limit of handles.
        ("contexts held", 999),
        // Eight would do, if the prompt and the output were not there.
        ("hoarded", 7),
        ("hoarded too much", too_large),
    ];
    assert_eq!(answers, BTreeMap::from(expected), "{err}");
}

fn run(home: &Path, args: &[&str], input: &str) -> (i32, String, String) {
    run_guest("guest-command", home, args, input)
}

fn run_guest(guest: &str, home: &Path, args: &[&str], input: &str) -> (i32, String, String) {
    let mut process = Command::new(hob_binary())
        .arg("run")
        .arg(component(guest))
        .args(args)
        .env("HOB_DATA", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
