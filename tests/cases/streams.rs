//! Protocols on the data listener: HTTP/1.1 and HTTP/2, in the clear and over TLS; trailers; clients that leave.

use std::time::{Duration, Instant};

use hob::config::FunctionConfig;
use hob_tests::{Client, Connection, Hob, ServeOptions, Trailers, certificate, refused, whole};
use http::Version;

fn with_tls() -> Hob {
    let file = |name| certificate(name).to_str().unwrap().to_owned();
    let args = vec!["--tls-cert".into(), file("cert.pem"), "--tls-key".into(), file("key.pem")];
    Hob::with(ServeOptions { args, ..ServeOptions::default() })
}

#[test]
fn both_versions_are_spoken_in_the_clear_and_over_tls() {
    for tls in [false, true] {
        let hob = if tls { with_tls() } else { Hob::start() };
        for package in ["hello", "guest-three", "guest-echo"] {
            hob.deploy(package, &[]);
        }
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let client = Client { address: hob.address(), version, tls };
            let hello = client.ask("/hello", None, None);
            assert_eq!(
                (hello.version, hello.status, &*hello.body),
                (version, 200, &b"hello from hob\n"[..]),
                "{client:?}"
            );
            let about = client.ask("/guest-three/about", None, None);
            let about = String::from_utf8_lossy(&about.body).into_owned();
            assert!(about.contains(if tls { "Scheme::Https" } else { "Scheme::Http)" }), "{client:?}: {about}");
            assert!(about.contains("localhost"), "{client:?}: {about}");
            let body = "over and out ".repeat(50_000);
            for path in ["/guest-echo", "/guest-three/echo"] {
                let echo = client.ask(path, Some(&body), None);
                assert!(echo.status == 200 && !echo.cut && echo.body == body, "{client:?} {path}: {}", echo.body.len());
            }
        }
    }
}

#[test]
fn certificates_that_cannot_be_served_with_are_said() {
    let home = tempfile::tempdir().unwrap();
    let (cert, key, ca) = (certificate("cert.pem"), certificate("key.pem"), certificate("ca.pem"));
    let [cert, key, ca] = [&cert, &key, &ca].map(|path| path.to_str().unwrap());
    for (cert, key, why) in
        [("/nowhere.pem", key, "/nowhere.pem"), (cert, cert, "PEM"), (ca, key, "cannot be used with the key")]
    {
        let error = refused(home.path(), &["serve", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key]);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn trailers_pass_both_ways() {
    let hob = Hob::start();
    hob.deploy("guest-three", &[]);
    let client = Client { address: hob.address(), version: Version::HTTP_2, tls: false };
    let mut trailers = Trailers::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    let answer = client.ask("/guest-three/echo", Some("body"), Some(trailers));
    assert_eq!(&*answer.body, b"body");
    assert_eq!(answer.trailers.expect("they came back")["x-sum"], "42");
}

#[test]
fn a_client_that_leaves_cancels_whatever_world_it_called() {
    let hob = Hob::start();
    hob.deploy("guest-three", &[]);
    hob.deploy("guest-sleep", &[]);
    // In the middle of an answer.
    let mut connection = Connection::open(hob.address());
    connection.get("/guest-three/drip");
    let id = connection.head().header("x-hob-invocation").unwrap().to_owned();
    connection.chunk().unwrap();
    drop(connection);
    let left = Instant::now();
    assert_eq!(hob.ended(|summary| summary.id == id).outcome, "client-left");
    // Before there is one.
    for path in ["/guest-three/never", "/guest-sleep"] {
        let mut connection = Connection::open(hob.address());
        connection.get(path);
        std::thread::sleep(Duration::from_millis(100));
        drop(connection);
        let function = path.split('/').nth(1).unwrap();
        let ended = hob.ended(|summary| summary.function.as_str() == function && summary.id != id);
        assert_eq!(ended.outcome, "client-left", "{path}");
    }
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
}

#[test]
fn a_head_that_nobody_reads_on_from_ends_well() {
    let hob = Hob::start();
    for function in ["hello", "guest-three"] {
        hob.deploy(function, &[]);
        let answer =
            whole(hob.address(), &format!("HEAD /{function} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(hob.ended(|summary| summary.function.as_str() == function).outcome, "ok", "{function}");
    }
}

#[test]
fn connections_beyond_the_bound_wait() {
    let hob = Hob::with(ServeOptions { args: ["--connections", "2"].map(str::to_owned).into(), ..Default::default() });
    hob.deploy_with("hello", FunctionConfig::default());
    let mut held: Vec<_> = (0..2).map(|_| Connection::open(hob.address())).collect();
    for connection in &mut held {
        connection.get("/hello");
        assert_eq!(connection.head().status, 200);
        connection.body();
    }
    let mut third = Connection::open(hob.address());
    third.get("/hello");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!third.has_answer(), "it is not accepted yet");
    held.pop();
    assert_eq!(third.head().status, 200, "one has gone, the next is served");
}
