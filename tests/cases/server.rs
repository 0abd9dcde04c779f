//! The data listener: routes, connections, ports, stopping.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use hob_tests::{Connection, Hob, get, refused};

#[test]
fn answers_hello_and_names_what_it_has_not() {
    let hob = Hob::start();
    hob.deploy("hello", &["--route", "/greet"]);
    assert_eq!(get(&hob.url("/greet")), (200, "hello from hob\n".into()));
    assert_eq!(get(&hob.url("/greet/deeper?x=1")).0, 200);
    assert_eq!(get(&hob.url("/")), (200, "Ollama is running".into()), "no function is there");
    for path in ["/greeting", "/hello"] {
        let (status, body) = get(&hob.url(path));
        assert_eq!(status, 404);
        assert!(body.contains("no-route") && body.contains(path), "{body}");
    }
}

#[test]
fn a_bad_request_harms_nobody() {
    let hob = Hob::start();
    hob.deploy("hello", &["--route", "/"]);
    let mut connection = Connection::open(hob.address());
    connection.send(b"GET / HTTP/1.1\r\n\r\n");
    let head = connection.head();
    assert_eq!(head.status, 400);
    assert!(connection.body().contains("Host"));
    let mut connection = Connection::open(hob.address());
    connection.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n");
    assert!(connection.is_cut() || connection.head().status == 400);
    assert_eq!(get(&hob.url("/")).0, 200);
}

#[test]
fn a_port_in_use_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = tempfile::tempdir().unwrap();
    for flag in ["--listen", "--control"] {
        let other = if flag == "--listen" { "--control" } else { "--listen" };
        let error = refused(home.path(), &["serve", flag, &address, other, "127.0.0.1:0"]);
        assert!(error.contains(&address) && error.contains(flag) && error.contains("in use"), "{error}");
    }
}

#[test]
fn stops_when_asked_and_lets_answers_end() {
    let mut hob = Hob::start();
    hob.deploy("guest-stream-slow", &[]);
    let mut connection = Connection::open(hob.address());
    connection.get("/guest-stream-slow?n=50");
    assert_eq!(connection.head().status, 200);
    let reader = std::thread::spawn(move || connection.body());
    std::thread::sleep(Duration::from_millis(100));
    let asked = Instant::now();
    assert!(hob.terminate(), "it ends well");
    assert!(reader.join().unwrap().ends_with("end\n"), "the answer was whole");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert!(!hob.home.path().join("control.json").exists());
}
