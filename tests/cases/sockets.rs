//! TCP for guests: where a rule with tcp leads to, and nowhere else.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};

use hob::config::{FunctionConfig, Limits, Reuse};
use hob_tests::{Hob, ServeOptions, certificate, component, get};
use serde_json::{Value, json};

/// A server that answers each line with itself, and where it is.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                for line in lines.map_while(Result::ok) {
                    let _ = stream.write_all(format!("{line} yourself\n").as_bytes());
                }
            });
        }
    });
    address
}

fn config(rules: &[&str]) -> FunctionConfig {
    let egress = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    FunctionConfig { egress, ..FunctionConfig::default() }
}

fn ask(hob: &Hob, function: &str, query: &str) -> Value {
    let (status, body) = get(&hob.url(&format!("/{function}?{query}")));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
pub fn sockets() {
    let (hob, server) = (Hob::start(), echo());
    let port = server.port();
    hob.deploy_as("guest-sockets", "address", config(&[&format!("tcp://127.0.0.1:{port}")]));
    hob.deploy_as("guest-sockets", "name", config(&[&format!("tcp://localhost:{port}")]));
    hob.deploy_as("guest-sockets", "anywhere", config(&["tcp://*:*"]));
    hob.deploy_as("guest-sockets", "web", config(&["https://*:*", "http://*:*"]));
    let answer = json!({ "answer": "ping yourself" });
    assert_eq!(ask(&hob, "address", &format!("to={server}")), answer);
    // An address that was got for a name may be connected to; by itself it may not.
    assert_eq!(ask(&hob, "name", &format!("do=named&name=localhost&port={port}")), answer);
    assert_eq!(ask(&hob, "name", "do=lookup&name=localhost"), json!(["127.0.0.1"]));

    let other = echo();
    let denied = json!({ "error": "access-denied" });
    for (function, query) in [
        ("name", format!("to={server}")),
        ("name", "do=lookup&name=example.com".into()),
        ("address", format!("to={other}")),
        ("address", "do=lookup&name=localhost".into()),
        ("address", "to=127.0.0.2:1".into()),
        // A rule for all names is none for what is inside.
        ("anywhere", format!("to={server}")),
        ("anywhere", format!("to=[::1]:{port}")),
        ("anywhere", "to=169.254.169.254:80".into()),
        ("anywhere", "to=10.0.0.1:5432".into()),
        ("anywhere", "to=192.168.0.1:22".into()),
        ("anywhere", "to=[fe80::1]:22".into()),
        ("anywhere", "do=lookup&name=localhost".into()),
        // Nobody is waited for, and nothing is sent without a connection.
        ("address", "do=bind&to=127.0.0.1:0".into()),
        ("address", format!("do=bind&to=0.0.0.0:{}", other.port() ^ 1)),
        ("address", "do=listen&to=0.0.0.0:0".into()),
        ("anywhere", "do=listen&to=0.0.0.0:0".into()),
        ("anywhere", "do=udp&to=8.8.8.8:53".into()),
        ("address", format!("do=udp&to={server}")),
        // Rules for HTTP open no sockets.
        ("web", format!("to={server}")),
        ("web", "do=lookup&name=localhost".into()),
    ] {
        assert_eq!(ask(&hob, function, &query), denied, "{function} {query}");
    }
    hob.logged(&format!("tcp://{other} was refused: no rule of `egress` with tcp allows it"));
    // Without any rule the guest does not even come as far: it imports TLS.
    let file = component("guest-sockets");
    let error = hob.refused(&["deploy", file.to_str().unwrap(), "--name", "x"]);
    assert!(error.contains("`wasi:tls/types@0.2.0-draft`") && error.contains("egress"), "{error}");
}

#[test]
fn connections_are_counted() {
    let (hob, server) = (Hob::start(), echo());
    let limits = Limits { connections: 3, ..Limits::default() };
    let reuse = Reuse { requests: 10, ..Reuse::default() };
    hob.deploy_as("guest-sockets", "few", FunctionConfig { limits, reuse, ..config(&[&format!("tcp://{server}")]) });
    let three = json!({ "held": 3, "error": "access-denied" });
    assert_eq!(ask(&hob, "few", &format!("do=many&to={server}")), three);
    hob.logged("as many as `limits.connections` allows");
    assert_eq!(ask(&hob, "few", &format!("do=many&to={server}")), three, "each invocation has its own");
}

#[test]
pub fn sockets_three() {
    let (hob, server) = (Hob::start(), echo());
    let port = server.port();
    hob.deploy_as("guest-sockets-three", "address", config(&[&format!("tcp://127.0.0.1:{port}")]));
    hob.deploy_as("guest-sockets-three", "name", config(&[&format!("tcp://localhost:{port}")]));
    hob.deploy_as("guest-sockets-three", "anywhere", config(&["tcp://*:*"]));
    let ask = |path: &str| get(&hob.url(path)).1;
    assert_eq!(ask(&format!("/address/ask?{server}")), "ping yourself");
    assert!(ask("/name/lookup?localhost").contains("(127, 0, 0, 1)"));
    for path in [
        format!("/name/ask?{server}"),
        "/name/lookup?example.com".into(),
        "/address/ask?127.0.0.1:1".into(),
        format!("/anywhere/ask?{server}"),
        "/anywhere/ask?169.254.169.254:80".into(),
        "/anywhere/lookup?localhost".into(),
        "/address/listen?0.0.0.0:0".into(),
        "/anywhere/udp?8.8.8.8:53".into(),
    ] {
        assert_eq!(ask(&path), "ErrorCode::AccessDenied", "{path}");
    }
}

#[test]
fn tls_over_sockets_trusts_whom_egress_trusts() {
    let file = |name| certificate(name).to_str().unwrap().to_owned();
    let tls = vec!["--tls-cert".into(), file("cert.pem"), "--tls-key".into(), file("key.pem")];
    let upstream = Hob::with(ServeOptions { args: tls, ..ServeOptions::default() });
    upstream.deploy("hello", &[]);
    let to = upstream.address();
    let rule = format!("tcp://{to}");
    for trusts in [true, false] {
        let args = if trusts { vec!["--egress-ca".into(), file("ca.pem")] } else { vec![] };
        let hob = Hob::with(ServeOptions { args, ..ServeOptions::default() });
        hob.deploy_as("guest-sockets", "two", config(&[&rule]));
        hob.deploy_as("guest-sockets-three", "three", config(&[&rule]));
        for name in ["localhost", "somebody.else"] {
            let two = ask(&hob, "two", &format!("do=tls&to={to}&name={name}")).to_string();
            let (_, three) = get(&hob.url(&format!("/three/tls?{to}/{name}")));
            for answer in [two, three] {
                let good = answer.contains("200 OK") && answer.contains("hello from hob");
                assert_eq!(good, trusts && name == "localhost", "{trusts} {name}: {answer}");
                assert!(good || answer.contains("certificate"), "{answer}");
            }
        }
    }
}
