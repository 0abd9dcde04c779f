//! Components from elsewhere: a URL with its digest, and an OCI registry.

use hob::digest::Digest;
use hob_tests::{Fault, Hob, Registry, component, get, hob_binary};
use serde_json::json;

fn hello() -> Vec<u8> {
    std::fs::read(component("hello")).unwrap()
}

fn push(registry: &Registry, name: &str) -> String {
    let home = tempfile::tempdir().unwrap();
    let to = format!("oci://{}/{name}", registry.host);
    let output = hob_tests::hob(home.path(), &["push", component("hello").to_str().unwrap(), &to]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_is_pushed_has_the_layout_of_wasm_artifacts_and_is_deployed_from_there() {
    let (hob, registry) = (Hob::start(), Registry::start());
    let said = push(&registry, "acme/greet:1.2");
    let manifest = registry.manifest("acme/greet:1.2").unwrap();
    let (layer, config) = (&manifest["layers"][0], &manifest["config"]);
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!((&layer["mediaType"], &layer["digest"]), (&json!("application/wasm"), &json!(Digest::of(&hello()))));
    assert_eq!(config["mediaType"], "application/vnd.wasm.config.v0+json");
    let config: serde_json::Value =
        serde_json::from_slice(&registry.blob(config["digest"].as_str().unwrap()).unwrap()).unwrap();
    assert_eq!((&config["architecture"], &config["os"]), (&json!("wasm"), &json!("wasip2")));
    assert_eq!(config["layerDigests"], json!([Digest::of(&hello())]));
    let exact = said.trim().rsplit(' ').next().unwrap();
    assert!(exact.starts_with(&format!("oci://{}/acme/greet@sha256:", registry.host)), "{said}");

    // Pushed again it is the same, and its blobs are not sent again.
    let before = registry.calls().len();
    assert_eq!(push(&registry, "acme/greet:1.2"), said);
    assert!(registry.calls()[before..].iter().all(|call| !call.starts_with("POST")), "{:?}", registry.calls());

    for (what, id) in [(format!("oci://{}/acme/greet:1.2", registry.host), "r1"), (exact.to_owned(), "r2")] {
        let said = hob.ok(&["deploy", &what]);
        assert!(said.contains(&format!("greet {id} is deployed")), "named after the repository: {said}");
        assert_eq!(get(&hob.url("/greet")).0, 200);
    }
    let revisions = hob.client().revisions(&"greet".parse().unwrap()).unwrap();
    assert!(revisions.iter().all(|revision| revision.record.source == exact), "the revision says exactly which");
}

#[test]
fn what_is_wrong_in_a_registry_is_said_and_nothing_is_half_made() {
    let (hob, registry) = (Hob::start(), Registry::start());
    push(&registry, "greet:1");
    let at = |name: &str| format!("oci://{}/{name}", registry.host);
    let refused = |what: &str, said: &str| {
        let error = hob.refused(&["deploy", what]);
        assert!(error.contains(said), "{what}: {error}");
    };
    refused(&at("greet:2"), "greet:2 is not there; check its name and its tag");
    refused(&at("other:1"), "is not there");
    for (fault, said) in [
        (Fault::OtherBytes, "nothing was kept"),
        (Fault::Short, "bytes instead of"),
        (Fault::Cut, "bytes instead of"),
        (Fault::OtherManifest, "has the digest"),
    ] {
        registry.fail(fault);
        refused(&at("greet:1"), said);
    }
    registry.fail(Fault::None);
    // Another kind of artifact.
    let layer = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(b"x"), "size": 1 });
    let config =
        json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"x"), "size": 1 });
    registry.put_manifest("image:1", &json!({ "schemaVersion": 2, "config": config, "layers": [layer] }));
    refused(&at("image:1"), "no WebAssembly artifact: its layers are application/vnd.oci.image.layer.v1.tar");
    registry.put_manifest(
        "image:2",
        &json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] }),
    );
    refused(&at("image:2"), "list of images");
    registry.put_manifest("image:3", &json!({ "schemaVersion": "two" }));
    refused(&at("image:3"), "its manifest does not read");
    let size = hob::api::MAX_COMPONENT_BYTES + 1;
    let layer = json!({ "mediaType": "application/wasm", "digest": Digest::of(b"x"), "size": size });
    registry.put_manifest("large:1", &json!({ "schemaVersion": 2, "config": config, "layers": [layer] }));
    refused(&at("large:1"), "has more than the");
    refused("oci://127.0.0.1:1/greet", "does not answer");
    refused("oci://nowhere", "names no repository; write oci://HOST/REPOSITORY:TAG");
    assert!(hob.ok(&["list"]).contains("no function is deployed"));
    assert_eq!(std::fs::read_dir(hob.home.path().join("components")).unwrap().count(), 0);

    // An upload that fails sets no tag.
    registry.fail(Fault::NoSpace);
    let other = hob.home.path().join("other.wasm");
    std::fs::write(&other, hob_tests::distinct(&hello(), b"1")).unwrap();
    let error = hob.refused(&["push", other.to_str().unwrap(), &at("greet:1")]);
    assert!(error.contains("was not pushed") && error.contains("507: the disk is full"), "{error}");
    registry.fail(Fault::None);
    assert_eq!(registry.manifest("greet:1").unwrap()["layers"][0]["digest"], json!(Digest::of(&hello())));
    std::fs::write(&other, "<html>").unwrap();
    assert!(hob.refused(&["push", other.to_str().unwrap(), &at("greet:1")]).contains("not WebAssembly"));
}

#[test]
fn a_registry_that_wants_a_login_gets_it() {
    // hob:secret
    let registry = Registry::with_login("aG9iOnNlY3JldA==");
    let to = format!("oci://{}/greet:1", registry.host);
    let push = |variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new(hob_binary());
        command
            .args(["push", component("hello").to_str().unwrap(), &to])
            .env_remove("DOCKER_CONFIG")
            .env("HOME", "/none");
        command.envs(variables.iter().copied());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let host = registry.host.as_str();
    let wrong = [("HOB_REGISTRY", host), ("HOB_REGISTRY_USER", "hob"), ("HOB_REGISTRY_PASSWORD", "wrong")];
    for variables in [&[][..], &wrong] {
        let (done, error) = push(variables);
        assert!(
            !done && error.contains("lets nobody push without a login") && error.contains("HOB_REGISTRY_USER"),
            "{error}"
        );
    }
    let login = [("HOB_REGISTRY", host), ("HOB_REGISTRY_USER", "hob"), ("HOB_REGISTRY_PASSWORD", "secret")];
    assert!(push(&login).0);
    // Without a word about whose it is, or for another registry, it is sent to nobody.
    let (done, error) = push(&login[1..]);
    assert!(!done && error.contains("were not sent") && error.contains(&format!("set it to {host}")), "{error}");
    let others = [("HOB_REGISTRY", "ghcr.io"), login[1], login[2]];
    assert!(push(&others).1.contains("are for ghcr.io"));
    // The same from docker's own file.
    let docker = tempfile::tempdir().unwrap();
    let config = json!({ "auths": { &registry.host: { "auth": "aG9iOnNlY3JldA==" } } });
    std::fs::write(docker.path().join("config.json"), config.to_string()).unwrap();
    assert!(push(&[("DOCKER_CONFIG", docker.path().to_str().unwrap())]).0);
}

#[test]
fn a_url_comes_with_its_digest() {
    let (hob, registry) = (Hob::start(), Registry::start());
    // Any file on a server will do: the registry's tokens are one.
    let url = format!("http://{}/token?service=test&scope=repository", registry.host);
    let wrong = "0".repeat(64);
    let error = hob.refused(&["deploy", "--url", &url, "--sha256", &wrong, "--name", "x"]);
    assert!(error.contains("has the digest sha256:") && error.contains("nothing was kept"), "{error}");
    let right = Digest::of(br#"{"token":"a-token"}"#).to_string();
    let error = hob.refused(&["deploy", "--url", &url, "--sha256", &right, "--name", "x"]);
    assert!(error.contains("this is not WebAssembly"), "fetched, checked, and refused for what it is: {error}");
    let error = hob.refused(&["deploy", "--url", &format!("http://{}/nothing", registry.host), "--sha256", &right]);
    assert!(error.contains("answers 404"), "{error}");
    let error = hob.refused(&["deploy", &url]);
    assert!(error.contains("--sha256"), "{error}");
    let error = hob.refused(&["deploy", "--url", &url]);
    assert!(error.contains("--sha256"), "{error}");
    let file = serve_once(hello());
    hob.ok(&["deploy", "--url", &file, "--sha256", &Digest::of(&hello()).hex()]);
    assert_eq!(get(&hob.url("/greet")).0, 200, "named after the file");
    let manifest = hob.home.path().join("hob.toml");
    let file = serve_once(hello());
    let digest = Digest::of(&hello()).hex();
    std::fs::write(&manifest, format!("name = \"web\"\ncomponent = {{ url = \"{file}\", sha256 = \"{digest}\" }}\n"))
        .unwrap();
    hob.ok(&["deploy", manifest.to_str().unwrap()]);
    assert_eq!(get(&hob.url("/web")).0, 200);
}

/// A server that gives `bytes` once, as `greet.wasm`.
fn serve_once(bytes: Vec<u8>) -> String {
    use std::io::{BufRead as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/greet.wasm", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut lines = std::io::BufReader::new(connection.try_clone().unwrap()).lines();
        while !lines.next().unwrap().unwrap().is_empty() {}
        write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len()).unwrap();
        connection.write_all(&bytes).unwrap();
    });
    url
}
