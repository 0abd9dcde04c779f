//! The control API: its key, its errors, and that the data listener does not lead there.

use hob::api::ControlFile;
use hob_tests::{Hob, ServeOptions, certificate, component, get};

fn control(hob: &Hob) -> ControlFile {
    serde_json::from_slice(&std::fs::read(hob.home.path().join("control.json")).unwrap()).unwrap()
}

#[test]
fn needs_its_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let hob = Hob::start();
    let file = control(&hob);
    assert!(file.address.ip().is_loopback() && file.pid == hob.pid());
    let mode = std::fs::metadata(hob.home.path().join("control.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "only its owner may read the key");
    for path in ["/v1/functions", "/v1/status", "/nothing"] {
        let (status, body) = get(&format!("http://{}{path}", file.address));
        assert!(status == 401 && body.contains("unauthorized") && !body.contains(&file.key), "{body}");
        assert_eq!(get(&hob.url(path)).0, 404, "the data listener does not lead there");
    }
}

#[test]
fn says_what_is_wrong_with_a_call() {
    let hob = Hob::start();
    let file = control(&hob);
    let call = |method: &str, path: &str, body: &str| {
        let mut connection = hob_tests::Connection::open(file.address);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            file.key,
            body.len()
        );
        connection.send(format!("{head}{body}").as_bytes());
        let status = connection.head().status;
        (status, connection.body())
    };
    for (method, path, body, status, said) in [
        ("GET", "/v1/nothing", "", 404, "no such call"),
        ("PUT", "/v1/components/sha256:12", "x", 400, "64 hexadecimal"),
        ("PUT", &format!("/v1/components/sha256:{}", "0".repeat(64)), "x", 400, "changed on the way"),
        ("PUT", "/v1/functions/x", "{", 400, "line 1"),
        ("PUT", "/v1/functions/x", "{\"component\":1}", 422, "component"),
        (
            "PUT",
            "/v1/functions/x",
            &format!("{{\"component\":\"sha256:{}\",\"config\":{{\"routes\":[{{\"path\":\"/x\"}}]}}}}", "0".repeat(64)),
            409,
            "upload it first",
        ),
        (
            "PUT",
            "/v1/functions/x",
            &format!("{{\"component\":\"sha256:{}\",\"rout\":1}}", "0".repeat(64)),
            422,
            "unknown field `rout`",
        ),
        ("DELETE", "/v1/functions/x", "", 404, "no function is called"),
        ("DELETE", "/v1/models/resident/x", "", 409, "hob models pull x"),
    ] {
        let (got, answer) = call(method, path, body);
        assert!(got == status && answer.contains(said), "{method} {path} {body}: {got} {answer}");
    }
}

/// A call with a key; its status and body.
fn call_as(hob: &Hob, key: &str, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let mut connection = hob_tests::Connection::open(control(hob).address);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.send(format!("{head}{body}").as_bytes());
    let status = connection.head().status;
    (status, serde_json::from_str(&connection.body()).unwrap_or_default())
}

/// `hob` as a machine elsewhere runs it: with a server and a key, and no data directory of that server.
fn elsewhere(hob: &Hob, key: &str, args: &[&str]) -> std::process::Output {
    let home = tempfile::tempdir().unwrap();
    let server = format!("http://{}", control(hob).address);
    std::process::Command::new(hob_tests::hob_binary())
        .args(args)
        .env("HOB_DATA", home.path())
        .env("HOB_SERVER", server)
        .env("HOB_KEY", key)
        .output()
        .unwrap()
}

fn create_key(hob: &Hob, args: &[&str]) -> String {
    hob.ok(&[&["keys", "create"], args].concat()).trim().to_owned()
}

#[test]
fn keys_do_what_their_scope_says_and_reach_their_tenant_only() {
    let mut hob = Hob::start();
    let hello = component("hello");
    let hello = hello.to_str().unwrap();
    hob.deploy("hello", &[]);
    let read = create_key(&hob, &["watcher", "--scope", "read", "--tenant", "acme"]);
    let deploy = create_key(&hob, &["ci", "--scope", "deploy", "--tenant", "acme"]);
    let other = create_key(&hob, &["ci", "--scope", "deploy", "--tenant", "globex"]);
    let admin = create_key(&hob, &["boss", "--scope", "admin"]);
    let said = |output: std::process::Output| {
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };

    // All of it over the API, from elsewhere, as before and after a restart.
    let deployed = said(elsewhere(&hob, &deploy, &["deploy", hello, "--name", "greet"]));
    assert!(deployed.contains("greet r1 is deployed"), "{deployed}");
    assert!(hob.terminate());
    hob.restart();
    let list = said(elsewhere(&hob, &read, &["list"]));
    assert!(list.contains("greet") && !list.contains("hello"), "its own tenant's only: {list}");
    let list = said(elsewhere(&hob, &admin, &["list"]));
    assert!(list.contains("greet") && list.contains("hello"), "an administrator sees all: {list}");
    assert_eq!(get(&hob.url("/greet")).0, 200);

    for (key, args, why) in [
        (&read, &["rm", "greet"][..], "needs a key of scope deploy; this one has read"),
        (&deploy, &["keys", "list"], "needs a key of scope admin; this one has deploy"),
        (&other, &["rm", "greet"], "no function is called `greet`"),
        (&other, &["revisions", "greet"], "no function is called `greet`"),
        (&other, &["deploy", hello, "--name", "greet", "--route", "/other"], "belongs to another tenant"),
        (&other, &["deploy", hello, "--name", "mine", "--route", "/greet"], "taken by another tenant"),
        (&deploy[..deploy.len() - 1].to_owned(), &["list"], "needs a key"),
    ] {
        let output = elsewhere(&hob, key, args);
        assert!(!output.status.success());
        let said = said(output);
        assert!(said.contains(why), "{args:?}: {said}");
    }

    // A tenant does not give itself the host's files, or what listens beside it.
    let manifest = hob.home.path().join("hob.toml");
    for (grant, said) in [
        ("directories = [{ host = \"/\", guest = \"/host\" }]", "the directory / is an administrator's to grant"),
        (
            "egress = [\"https://example.com\", \"http://127.0.0.1:*\"]",
            "egress to http://127.0.0.1:* is an administrator's",
        ),
        ("egress = [\"http://localhost\"]", "egress to http://localhost is an administrator's"),
        ("priority = \"high\"", "the priority `high` is an administrator's"),
        ("budget.weight = 101", "the weight 101 is an administrator's"),
    ] {
        std::fs::write(&manifest, format!("name = \"greet\"\ncomponent = {hello:?}\n{grant}\n")).unwrap();
        for flag in [&["--check"][..], &[]] {
            let output = elsewhere(&hob, &deploy, &[&["deploy", manifest.to_str().unwrap()], flag].concat());
            assert!(!output.status.success());
            let said_it = String::from_utf8(output.stderr).unwrap();
            assert!(said_it.contains(said), "{grant}: {said_it}");
        }
        hob.ok(&["deploy", "--check", manifest.to_str().unwrap()]);
    }

    // Revoked, it is worth nothing from the next call on.
    let keys = hob.ok(&["keys", "list"]);
    assert!(!keys.contains(&deploy[..12]), "the keys themselves are not shown: {keys}");
    let line = keys.lines().find(|line| line.contains("ci") && line.contains("acme")).unwrap();
    let id = line.split_whitespace().next().unwrap();
    hob.ok(&["keys", "revoke", id]);
    assert!(said(elsewhere(&hob, &deploy, &["list"])).contains("needs a key"));
    assert!(hob.refused(&["keys", "revoke", id]).contains("no key has the id"));
    assert!(said(elsewhere(&hob, &admin, &["rm", "greet"])).contains("greet is removed"), "an administrator may");

    // Neither the keys nor anything to check them by is where others can read it.
    for file in ["hob.redb", "audit.jsonl"] {
        let text = std::fs::read(hob.home.path().join(file)).unwrap();
        for key in [&read, &deploy, &other, &admin] {
            assert!(!text.windows(key.len()).any(|window| window == key.as_bytes()), "{file}");
        }
    }
}

#[test]
fn changes_are_in_the_audit_log() {
    use std::os::unix::fs::PermissionsExt as _;
    let hob = Hob::start();
    hob.deploy("hello", &[]);
    hob.ok(&["list"]);
    hob.refused(&["traffic", "hello", "--to", "r9=100"]);
    let key = create_key(&hob, &["ci", "--scope", "read"]);
    assert_eq!(call_as(&hob, &key, "DELETE", "/v1/functions/hello", "").0, 403);
    assert_eq!(call_as(&hob, "wrong", "DELETE", "/v1/functions/hello", "").0, 401);
    hob.ok(&["rm", "hello"]);
    let path = hob.home.path().join("audit.jsonl");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "only its owner may read it");
    let text = std::fs::read_to_string(&path).unwrap();
    let entries: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let digest = hob::digest::Digest::of(&std::fs::read(component("hello")).unwrap());
    let upload = format!("PUT /v1/components/{digest}");
    let id = hob.client().keys().unwrap()[0].id.clone();
    let expected = [
        ("local", &*upload, 201, ""),
        ("local", "PUT /v1/functions/hello", 200, "r1 of sha256:"),
        ("local", "PUT /v1/functions/hello/traffic", 404, "no-revision: function `hello` has no revision r9"),
        ("local", "POST /v1/keys", 201, "read of default"),
        (&id, "DELETE /v1/functions/hello", 403, "forbidden"),
        ("-", "DELETE /v1/functions/hello", 401, "no good key"),
        ("local", "DELETE /v1/functions/hello", 204, ""),
    ];
    assert_eq!(entries.len(), expected.len(), "reading is not noted: {text}");
    for (entry, (who, call, status, result)) in entries.iter().zip(expected) {
        let as_expected = entry["who"] == who && entry["call"] == call && entry["status"] == status;
        assert!(as_expected && entry["result"].as_str().unwrap().contains(result), "{entry}");
        assert!(entry["at_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }
}

#[test]
fn speaks_tls_to_those_elsewhere() {
    let args = ["--control-tls-cert", "cert.pem", "--control-tls-key", "key.pem", "--control", "127.0.0.1:0"];
    let args = args.map(|arg| if arg.ends_with(".pem") { certificate(arg).display().to_string() } else { arg.into() });
    let hob = Hob::with(ServeOptions { args: args.to_vec(), ..ServeOptions::default() });
    hob.deploy("hello", &[]);
    assert!(hob.ok(&["list"]).contains("hello"), "commands on this machine go on as ever");
    let key = create_key(&hob, &["elsewhere", "--scope", "read"]);
    let address = hob.until("the log says where", || {
        let log = hob.log();
        let at = log.split("control=").nth(1)?.split_whitespace().next()?.to_owned();
        Some(at)
    });
    assert_ne!(address, control(&hob).address.to_string(), "commands on this machine have a listener of their own");
    // Somebody who connects and says nothing holds up nobody.
    let _silent: Vec<_> = (0..8).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    let home = tempfile::tempdir().unwrap();
    let list = |url: &str, ca: Option<&str>| {
        let mut command = std::process::Command::new(hob_tests::hob_binary());
        command.args(["list", "--server", url]).env("HOB_DATA", home.path()).env("HOB_KEY", &key);
        if let Some(ca) = ca {
            command.env("HOB_CA", certificate(ca));
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (good, said) = list(&format!("https://{address}"), Some("ca.pem"));
    assert!(good && said.contains("hello"), "{said}");
    for (url, ca, why) in [
        (format!("https://{address}"), None, "does not answer"),
        (format!("https://{address}"), Some("key.pem"), "no certificate in it"),
        (format!("http://{address}"), None, "does not answer"),
    ] {
        let (good, said) = list(&url, ca);
        assert!(!good && said.contains(why) && !said.contains("hello"), "{url} {ca:?}: {said}");
    }
}

#[test]
fn describes_itself() {
    let hob = Hob::start();
    let address = control(&hob).address;
    let (status, body) = get(&format!("http://{address}/v1/openapi.json"));
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &document["openapi"]), (200, &"3.1.0".into()));
    for part in body.split("\"#/").skip(1) {
        let place = part.split('"').next().unwrap();
        assert!(document.pointer(&format!("/{place}")).is_some_and(serde_json::Value::is_object), "{place}");
    }
    // Every call that is described is there, and no other method of its path.
    let key = control(&hob).key;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "x").replace("{id}", "x").replace("{digest}", "x");
        for method in ["get", "put", "post", "delete", "patch"] {
            let (status, answer) = call_as(&hob, &key, &method.to_uppercase(), &path, "");
            let missing = answer["error"]["message"].as_str().is_some_and(|why| why.contains("/v1/openapi.json"));
            let described = methods.get(method);
            assert_eq!(!missing, described.is_some(), "{method} {path}: {status} {answer}");
            assert!(described.is_none_or(|call| call["summary"].is_string()), "{method} {path}");
        }
    }
}
