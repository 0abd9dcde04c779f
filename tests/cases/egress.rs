//! Outgoing requests: nowhere, unless a rule says so, and never inside by a detour.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hob::config::{FunctionConfig, Limits};
use hob_tests::{Hob, ServeOptions, certificate, component, get};
use serde_json::Value;

/// A server outside: `/slow` takes a while, `/silent` for ever, `/redirect` leads elsewhere, `/large` is large.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                    let first = lines.next().unwrap_or_default();
                    let host =
                        lines.by_ref().take_while(|line| !line.is_empty()).find(|line| line.starts_with("host:"));
                    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                    match path.as_str() {
                        "/slow" => std::thread::sleep(Duration::from_millis(700)),
                        "/silent" => std::thread::sleep(Duration::from_secs(60)),
                        _ => {}
                    }
                    let (status, body) = match path.as_str() {
                        "/redirect" => ("302 Found\r\nlocation: http://127.0.0.1:1/", String::new()),
                        "/large" => ("200 OK", "large ".repeat(500_000)),
                        _ => ("200 OK", format!("{first}, {}", host.unwrap_or_default())),
                    };
                    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all(format!("{head}{body}").as_bytes());
                });
            }
        });
        Self { address, asked }
    }
}

fn config(rules: &[String], limits: Limits) -> FunctionConfig {
    let egress = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    FunctionConfig { egress, limits, ..FunctionConfig::default() }
}

fn sent(hob: &Hob, function: &str, url: &str, n: usize) -> Vec<Value> {
    let (status, body) = get(&hob.url(&format!("/{function}?n={n}&url={url}")));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn requests_go_where_rules_say() {
    let (hob, upstream) = (Hob::start(), Upstream::start());
    let port = upstream.address.port();
    hob.deploy_as("guest-fetch", "named", config(&[format!("http://localhost:{port}")], Limits::default()));
    hob.deploy_as("guest-fetch", "network", config(&[format!("http://127.0.0.0/8:{port}")], Limits::default()));
    hob.deploy_as("guest-fetch", "anywhere", config(&["http://*:*".into(), "https://*:*".into()], Limits::default()));

    let answer = &sent(&hob, "named", &format!("http://localhost:{port}/x?y=1"), 1)[0];
    assert_eq!(answer["status"], 200, "{answer}");
    assert_eq!(answer["body"], format!("GET /x?y=1 HTTP/1.1, host: localhost:{port}"));
    assert_eq!(sent(&hob, "network", &format!("http://127.0.0.1:{port}/"), 1)[0]["status"], 200);
    let redirect = &sent(&hob, "named", &format!("http://localhost:{port}/redirect"), 1)[0];
    assert_eq!(redirect["status"], 302, "redirects are the guest's affair");
    let asked = upstream.asked.load(Ordering::Relaxed);

    for (function, url, error) in [
        ("named", format!("http://127.0.0.1:{port}/"), "HttpRequestDenied"),
        ("named", "http://localhost:1/".into(), "HttpRequestDenied"),
        ("named", format!("https://localhost:{port}/"), "HttpRequestDenied"),
        ("named", format!("http://localhost.evil.example:{port}/"), "HttpRequestDenied"),
        ("network", format!("http://localhost:{port}/"), "HttpRequestDenied"),
        ("network", format!("http://10.0.0.1:{port}/"), "HttpRequestDenied"),
        // However it is written, it leads inside.
        ("anywhere", format!("http://localhost:{port}/"), "DestinationIpProhibited"),
        ("anywhere", format!("http://127.0.0.1:{port}/"), "DestinationIpProhibited"),
        ("anywhere", format!("http://[::1]:{port}/"), "DestinationIpProhibited"),
        ("anywhere", format!("http://[::ffff:127.0.0.1]:{port}/"), "DestinationIpProhibited"),
        ("anywhere", format!("http://0.0.0.0:{port}/"), "DestinationIpProhibited"),
        ("anywhere", format!("http://2130706433:{port}/"), "DestinationIpProhibited"),
        ("anywhere", "http://169.254.169.254/latest/meta-data/".into(), "DestinationIpProhibited"),
        ("anywhere", "http://192.168.0.1/".into(), "DestinationIpProhibited"),
        ("anywhere", "http://[fe80::1]/".into(), "DestinationIpProhibited"),
    ] {
        let answer = &sent(&hob, function, &url, 1)[0];
        assert!(answer["error"].as_str().is_some_and(|got| got.contains(error)), "{function} {url}: {answer}");
    }
    assert_eq!(upstream.asked.load(Ordering::Relaxed), asked, "nobody was even connected to");
    hob.logged("no rule of `egress` allows it");
}

#[test]
pub fn fetch() {
    let (hob, upstream) = (Hob::start(), Upstream::start());
    let rule = format!("http://localhost:{}", upstream.address.port());
    let limits = Limits { connections: 2, wall_ms: 3000, ..Limits::default() };
    hob.deploy_with("guest-fetch", config(std::slice::from_ref(&rule), limits));
    let answers = fetch_all(&hob, &format!("{rule}/slow"), 5);
    assert_eq!(answers, (2, 3), "two connections at once, the others are refused");
    assert_eq!(fetch_all(&hob, &format!("{rule}/large"), 2), (2, 0));
    let (status, body) = get(&hob.url(&format!("/guest-fetch?url={rule}/silent")));
    assert!(status == 504 && body.contains("deadline"), "a server that is silent holds nobody for ever: {body}");
}

/// How many were answered, and how many refused for want of connections.
fn fetch_all(hob: &Hob, url: &str, n: usize) -> (usize, usize) {
    let answers = sent(hob, "guest-fetch", url, n);
    let refused =
        |answer: &&Value| answer["error"].as_str().is_some_and(|error| error.contains("ConnectionLimitReached"));
    (answers.iter().filter(|answer| answer["status"] == 200).count(), answers.iter().filter(refused).count())
}

#[test]
pub fn fetch_three() {
    let (hob, upstream) = (Hob::start(), Upstream::start());
    let port = upstream.address.port();
    hob.deploy_with("guest-fetch-three", config(&[format!("http://localhost:{port}")], Limits::default()));
    let (status, body) = get(&hob.url(&format!("/guest-fetch-three?localhost:{port}/large")));
    assert_eq!((status, body.len()), (200, 3_000_000), "a body from outside is passed on whole");
    let (_, denied) = get(&hob.url(&format!("/guest-fetch-three?127.0.0.1:{port}/")));
    assert!(denied.contains("HttpRequestDenied"), "{denied}");
    let file = component("guest-fetch-three");
    let error = hob.refused(&["deploy", file.to_str().unwrap(), "--name", "x"]);
    assert!(error.contains("`wasi:http/client@0.3") && error.contains("egress"), "{error}");
}

#[test]
fn outgoing_tls_trusts_the_web_and_what_was_added() {
    let file = |name| certificate(name).to_str().unwrap().to_owned();
    let tls = vec!["--tls-cert".into(), file("cert.pem"), "--tls-key".into(), file("key.pem")];
    let upstream = Hob::with(ServeOptions { args: tls, ..ServeOptions::default() });
    upstream.deploy("hello", &[]);
    let rule = format!("https://localhost:{}", upstream.address().port());
    for trusts in [true, false] {
        let args = if trusts { vec!["--egress-ca".into(), file("ca.pem")] } else { vec![] };
        let hob = Hob::with(ServeOptions { args, ..ServeOptions::default() });
        hob.deploy_with("guest-fetch", config(std::slice::from_ref(&rule), Limits::default()));
        let answer = &sent(&hob, "guest-fetch", &format!("{rule}/hello"), 1)[0];
        match trusts {
            true => assert_eq!(answer["body"], "hello from hob\n", "{answer}"),
            false => assert_eq!(answer["error"], "ErrorCode::TlsCertificateError", "{answer}"),
        }
    }
}
