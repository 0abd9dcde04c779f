//! What hosts of `wasi:http` are expected to do, as wasmtime's own tests of `wasmtime serve` have it, where no other case
//! says it: what a request looks like to its guest, life after an answer, and many requests at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hob::config::{FunctionConfig, Reuse};
use hob_tests::{Connection, Hob, get, whole};

#[test]
pub fn about() {
    let hob = Hob::start();
    hob.deploy("guest-about", &[]);
    let authority = hob.address().to_string();
    let (_, about) = get(&hob.url("/guest-about/x?y=1"));
    assert_eq!(about, format!("Method::Get Some(Scheme::Http) Some({authority:?}) /guest-about/x?y=1"));
    // As the client says, not as the server is called; in the target, or in a header.
    let says = |request: &str| whole(hob.address(), request);
    let answer = says("DELETE /guest-about HTTP/1.1\r\nhost: Example.com:99\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("Method::Delete Some(Scheme::Http) Some(\"Example.com:99\") /guest-about"), "{answer}");
    let answer =
        says("GET http://other.example/guest-about HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("Some(\"other.example\") /guest-about"), "{answer}");
    let answer = says("BREW /guest-about HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("Method::Other(\"BREW\")"), "{answer}");
    assert_eq!(get(&hob.url("/guest-about?outparam-error")).0, 500);
    hob.logged("no answer today");
}

#[test]
fn a_guest_may_go_on_after_its_answer() {
    let hob = Hob::start();
    for (guest, path) in [("guest-about", "?after"), ("guest-three", "/after")] {
        hob.deploy(guest, &[]);
        let answered = || {
            let mut connection = Connection::open(hob.address());
            let started = Instant::now();
            connection.get(&format!("/{guest}{path}"));
            assert_eq!(connection.head().status, 200);
            assert!(!connection.body().is_empty());
            started.elapsed()
        };
        // Often enough that one is not held up by the machine.
        let waits = (0..5).all(|_| answered() >= Duration::from_millis(90));
        assert!(!waits, "{guest}: the answer does not wait for what follows");
        let ended = hob.ended(|summary| summary.function.as_str() == guest);
        assert!(ended.total_us >= 100_000, "{guest}: {} us", ended.total_us);
        let lines = hob.ok(&["logs", guest]);
        assert!(lines.contains("still here after the answer"), "{guest}: {lines}");
    }
    // An answer that is whole stays so, whatever its guest does then.
    assert_eq!(get(&hob.url("/guest-about?trap-after")).0, 200);
    assert_eq!(hob.ended(|summary| summary.outcome == "failed").function.as_str(), "guest-about");
}

/// So many answers, from clients that ask at once.
fn counts(hob: &Hob, path: &str, clients: usize, each: usize) -> Vec<u32> {
    let ask = || {
        let mut connection = Connection::open(hob.address());
        let count = |_| {
            connection.get(path);
            assert_eq!(connection.head().status, 200);
            connection.body().parse().unwrap()
        };
        (0..each).map(count).collect::<Vec<u32>>()
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn many_requests_with_and_without_reuse() {
    let hob = Hob::start();
    let (clients, each) = (16, 50);
    for guest in ["guest-hostile", "guest-three"] {
        let path = format!("/{guest}/count");
        hob.deploy_with(guest, FunctionConfig::default());
        assert!(counts(&hob, &path, clients, each).iter().all(|count| *count == 1), "{guest}: a fresh instance each");
        let reuse = Reuse { requests: 100, ..Reuse::default() };
        hob.deploy_with(guest, FunctionConfig { reuse, ..FunctionConfig::default() });
        let reused = counts(&hob, &path, clients, each);
        assert!(reused.iter().all(|count| (1..=100).contains(count)), "{guest}: {reused:?}");
        // Sixteen clients need no more than sixteen instances at once: most requests find one that has answered.
        let fresh = reused.iter().filter(|count| **count == 1).count();
        assert!(fresh < reused.len() / 4, "{guest}: {fresh} of {} began an instance", reused.len());
    }
    let reuse = Reuse { requests: 100, concurrent: 16, ..Reuse::default() };
    hob.deploy_as("guest-three", "shared", FunctionConfig { reuse, ..FunctionConfig::default() });
    let shared = counts(&hob, "/shared/count", clients, each);
    assert!(shared.iter().copied().collect::<BTreeSet<_>>().len() > 50, "{shared:?}");
    assert!(shared.iter().all(|count| (1..=100).contains(count)), "{shared:?}");
}
