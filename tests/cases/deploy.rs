//! Deploying: what is refused, and that nothing is lost.

use hob_tests::{Hob, component, get};

#[test]
fn what_is_no_component_is_refused_with_the_way_out() {
    let hob = Hob::start();
    let file = hob.home.path().join("x.wasm");
    let deploy = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        hob.refused(&["deploy", file.to_str().unwrap(), "--name", "x"])
    };
    let error = deploy(b"<html></html>");
    assert!(error.contains("not WebAssembly") && error.contains("x.wasm"), "{error}");
    let error = deploy(b"\0asm\x01\0\0\0");
    assert!(error.contains("core WebAssembly module") && error.contains("wasm32-wasip2"), "{error}");
    let error = deploy(b"\0asm\x0d\0\x01\0garbage");
    assert!(error.contains("does not compile"), "{error}");
    let hello = std::fs::read(component("hello")).unwrap();
    let error = deploy(&hello[..hello.len() / 2]);
    assert!(error.contains("does not compile"), "{error}");
    // The smallest component: it exports nothing.
    let error = deploy(b"\0asm\x0d\0\x01\0");
    assert!(error.contains("wasi:http/incoming-handler"), "{error}");
    let error = hob.refused(&["deploy", "/no/such/file.wasm"]);
    assert!(error.contains("/no/such/file.wasm"), "{error}");
    assert!(hob.ok(&["list"]).contains("no function is deployed"));
}

#[test]
fn names_routes_and_models_are_checked() {
    let hob = Hob::start();
    let hello = component("hello");
    let hello = hello.to_str().unwrap();
    hob.deploy("hello", &["--route", "/a"]);
    for (args, said) in [
        (&["--name", "Big"][..], "a-z"),
        (&["--name", "b", "--route", "a"], "path prefix"),
        (&["--name", "b", "--route", "/a"], "taken by function `hello`"),
        (&["--name", "b", "--model", "no-such-model"], "hob models pull no-such-model"),
        (&["--name", "b", "--model", "../x"], "cannot name a model"),
        (&["--name", "b", "--timeout", "0"], "1 to"),
        (&["--name", "b", "--memory", "1000000"], "1 to"),
    ] {
        let error = hob.refused(&[&["deploy", hello], args].concat());
        assert!(error.contains(said), "{args:?}: {error}");
    }
    let error = hob.refused(&["deploy", component("chat").to_str().unwrap(), "--name", "chat"]);
    assert!(error.contains("`hob:infer/models@0.1.0`") && error.contains("--model"), "{error}");
    let error = hob.refused(&["rm", "chat"]);
    assert!(error.contains("no function is called `chat`"), "{error}");
    assert_eq!(get(&hob.url("/a")).0, 200, "refusals changed nothing");
}

#[test]
fn deploy_replaces_list_shows_and_rm_removes() {
    let hob = Hob::start();
    hob.deploy("hello", &["--route", "/a"]);
    hob.deploy("hello", &["--route", "/b"]);
    assert_eq!([get(&hob.url("/a")).0, get(&hob.url("/b")).0], [404, 200], "the old route is free again");
    let list = hob.ok(&["list"]);
    assert!(list.contains("hello") && list.contains("/b") && list.contains("ready"), "{list}");
    let json: serde_json::Value = serde_json::from_str(&hob.ok(&["list", "--json"])).unwrap();
    assert_eq!(json[0]["routes"][0]["path"], "/b");
    hob.ok(&["rm", "hello"]);
    assert_eq!(get(&hob.url("/b")).0, 404);
}

#[test]
fn commands_need_a_server() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["list"][..], &["rm", "x"], &["deploy", component("hello").to_str().unwrap()]] {
        let error = hob_tests::refused(home.path(), args);
        assert!(error.contains("no hob serves from") && error.contains("hob serve"), "{error}");
    }
}
