//! `hob.toml`: deployed from, checked, and what a secret never does.

use std::path::{Path, PathBuf};

use hob_tests::{Hob, component, get, refused};

/// A folder with a manifest that begins with name and component.
fn project(rest: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(component("hello"), folder.path().join("hello.wasm")).unwrap();
    let path = folder.path().join("hob.toml");
    std::fs::write(&path, format!("name = \"greet\"\ncomponent = \"hello.wasm\"\n{rest}")).unwrap();
    (folder, path)
}

#[test]
fn a_folder_is_deployed_as_its_manifest_says() {
    let hob = Hob::start();
    let (folder, path) = project(
        "routes = [\"/hi\", { path = \"/only-get\", methods = [\"GET\"] }]\nenvironment.A = \"b\"\n[limits]\nwall_ms = 30_000\n",
    );
    let check = hob.ok(&["deploy", "--check", folder.path().to_str().unwrap()]);
    assert_eq!(check, "greet can be deployed; nothing was changed\n");
    assert!(hob.ok(&["list"]).contains("no function is deployed"));
    for what in [folder.path(), path.as_path()] {
        let said = hob.ok(&["deploy", what.to_str().unwrap()]);
        assert!(said.starts_with("greet r") && said.contains("/hi"), "{said}");
    }
    assert_eq!([get(&hob.url("/hi")).0, get(&hob.url("/only-get/x")).0, get(&hob.url("/greet")).0], [200, 200, 404]);
    let revisions = hob.client().revisions(&"greet".parse().unwrap()).unwrap();
    let config = &revisions[0].record.config;
    assert_eq!((config.limits.wall_ms, config.environment["A"].as_str()), (30_000, "b"));
    assert_eq!(revisions[0].record.source, "hello.wasm");
}

#[test]
fn all_mistakes_are_told_together() {
    let hob = Hob::start();
    let (folder, path) = project("rout = \"/x\"\negress = [\"example.com\"]\n[limits]\nwall_ms = 0\n");
    let error = hob.refused(&["deploy", folder.path().to_str().unwrap()]);
    for said in [
        "hob.toml has 3 mistakes",
        "line 3: `rout` is unknown; did you mean `routes`?",
        "line 4: `example.com`",
        "line 6: `limits.wall_ms` is 0",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
    let error = hob.refused(&["deploy", path.to_str().unwrap(), "--name", "other"]);
    assert!(error.contains("--name is for deploying a component as it is"), "{error}");
    let error = hob.refused(&["deploy", "/no/such/folder/hob.toml"]);
    assert!(error.contains("there is no /no/such/folder/hob.toml; write one"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = hob.refused(&["deploy", empty.path().to_str().unwrap()]);
    assert!(error.contains("hob.toml"), "{error}");
    // What only the server knows.
    let (folder, _) = project("[limits]\nmemory_mib = 4096\n");
    for flag in [&["--check"][..], &[]] {
        let error = hob.refused(&[&["deploy", folder.path().to_str().unwrap()], flag].concat());
        assert!(error.contains("`limits.memory_mib` is 4096; this host allows 1 to 1024"), "{error}");
    }
}

#[test]
fn it_is_checked_without_a_server_too() {
    let home = tempfile::tempdir().unwrap();
    let (folder, _) = project("");
    let output = hob_tests::hob(home.path(), &["deploy", "--check", folder.path().to_str().unwrap()]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("greet looks right; no server runs here"), "{said}");
    let (folder, _) = project("models = [\"../x\"]\n");
    let error = refused(home.path(), &["deploy", "--check", folder.path().to_str().unwrap()]);
    assert!(error.contains("line 3") && error.contains("cannot name a model"), "{error}");
}

#[test]
fn secrets_are_kept_apart_and_never_shown() {
    use std::os::unix::fs::PermissionsExt as _;
    let hob = Hob::start();
    let (folder, path) = project("[secrets]\nTOKEN = { file = \"token\" }\n");
    std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
    hob.ok(&["deploy", path.to_str().unwrap()]);
    let kept = hob.home.path().join("secrets/greet/r1.json");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), r#"{"TOKEN":"hunter2"}"#);
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o077, 0, "only its owner may read it");
    assert_eq!(get(&hob.url("/greet")).0, 200);
    let shown = [&["list", "--json"][..], &["revisions", "greet", "--json"]].map(|args| hob.ok(args)).concat();
    assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    assert!(!hob.log().contains("hunter2"));
    assert!(!holds(&hob.home.path().join("hob.redb"), b"hunter2"), "not in the records either");
    // A value that is written into the file is refused, and not repeated.
    std::fs::write(&path, "name = \"greet\"\ncomponent = \"hello.wasm\"\nsecrets.TOKEN = \"swordfish\"\n").unwrap();
    let error = hob.refused(&["deploy", path.to_str().unwrap()]);
    assert!(error.contains("must not stand in the file") && !error.contains("swordfish"), "{error}");
    hob.ok(&["rm", "greet"]);
    assert!(!kept.exists(), "they go with the function");
}

fn holds(file: &Path, text: &[u8]) -> bool {
    std::fs::read(file).unwrap().windows(text.len()).any(|window| window == text)
}

#[test]
fn the_examples_manifests_read() {
    let manifests = std::fs::read_dir(hob_tests::root().join("examples")).unwrap();
    let manifests = manifests.map(|example| example.unwrap().path().join("hob.toml")).filter(|path| path.exists());
    let read: Vec<_> = manifests.map(|path| hob::config::manifest::Manifest::read(&path).unwrap()).collect();
    assert!(read.iter().any(|manifest| manifest.name.as_str() == "chat" && manifest.config.limits.wall_ms == 120_000));
}

#[test]
fn the_guest_sees_what_the_manifest_gives() {
    let hob = Hob::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/in.txt"), "from the host").unwrap();
    std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
    let text = format!(
        r#"
        name = "greet"
        component = {:?}
        environment.LANG = "C"
        config.greeting = "hello"
        secrets.TOKEN = {{ file = "token" }}
        [[directories]]
        host = "data"
        guest = "/data"
        "#,
        component("guest-interfaces").to_str().unwrap()
    );
    std::fs::write(folder.path().join("hob.toml"), text).unwrap();
    let deploy = || hob.ok(&["deploy", folder.path().to_str().unwrap()]);
    deploy();
    let ask = |query: &str| -> serde_json::Value {
        let (status, body) = get(&hob.url(&format!("/greet?{query}")));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    assert_eq!(ask("do=config&key=TOKEN")["one"], "hunter2");
    let greeting = ask("do=config&key=greeting");
    assert_eq!((&greeting["one"], &greeting["env"]["LANG"]), (&"hello".into(), &"C".into()));
    assert!(greeting["env"].get("TOKEN").is_none(), "a secret is no variable");
    let files = ask("do=files");
    assert_eq!(files["read"]["Ok"], "from the host");
    assert!(files["wrote"]["Ok"].is_null(), "it may only read: {files}");

    // What a function keeps lives through its revisions, and goes with it.
    ask("do=set&bucket=&key=k&value=v");
    deploy();
    assert_eq!(ask("do=get&bucket=&key=k"), "v");
    hob.ok(&["rm", "greet"]);
    deploy();
    assert_eq!(ask("do=get&bucket=&key=k"), serde_json::Value::Null, "the next of its name begins with nothing");
}
