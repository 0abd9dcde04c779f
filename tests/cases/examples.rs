//! The examples, as their readers run them.

use std::time::{Duration, Instant};

use hob_tests::{Connection, Hob, MODEL, get, post};
use serde_json::Value;

/// The events of a stream: name (`message` if it has none) and data.
fn events(body: &str) -> Vec<(String, Value)> {
    body.split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let data = field("data:").unwrap_or_else(|| panic!("an event without data: {event}"));
            (field("event:").unwrap_or("message").to_owned(), serde_json::from_str(data).unwrap())
        })
        .collect()
}

#[test]
fn chat_streams_tokens_and_serves_its_page() {
    let hob = Hob::with_model();
    hob.deploy_with_model("chat");
    let (status, page) = get(&hob.url("/chat"));
    assert!(status == 200 && page.contains("<!doctype html>"), "{page}");

    let mut connection = Connection::open(hob.address());
    connection.post("/chat", r#"{"messages":[{"role":"user","content":"Name the capital city of France."}]}"#);
    let head = connection.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let first = connection.chunk().unwrap();
    let events_seen = events(&format!("{first}{}", connection.body()));
    let text: String = events_seen.iter().filter_map(|(_, data)| data["text"].as_str()).collect();
    assert!(text.contains("Paris"), "{text}");
    assert!(events_seen.len() > 5, "it came in pieces");
    let (last, data) = events_seen.last().unwrap();
    assert_eq!((last.as_str(), &data["finish"]), ("done", &"stop".into()));
    assert!(data["usage"]["generated_tokens"].as_u64().unwrap() > 3);

    assert_eq!(post(&hob.url("/chat"), r#"{"prompt":"Say hi"}"#).0, 200);
    let (status, body) = post(&hob.url("/chat"), "this is not JSON");
    assert!(status == 400 && body.contains("invalid") || body.contains("JSON"), "{body}");
    assert_eq!(post(&hob.url("/chat"), r#"{"messages":[]}"#).0, 400);
    let long = serde_json::json!({ "prompt": "word ".repeat(20_000) }).to_string();
    let (status, body) = post(&hob.url("/chat"), &long);
    assert!(status == 413 && body.contains("8192"), "{body}");
}

#[test]
fn a_client_that_leaves_ends_its_generation() {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-infer");
    hob.deploy_with_model("chat");
    let mut connection = Connection::open(hob.address());
    connection.post("/chat", r#"{"prompt":"Count from one to ten thousand, in words, one number a line."}"#);
    let id = connection.head().header("x-hob-invocation").unwrap().to_owned();
    connection.chunk().unwrap();
    drop(connection);
    let left = Instant::now();
    let ended = hob.ended(|summary| summary.id == id);
    assert_eq!(ended.outcome, "client-left");
    assert!(ended.prompt_tokens > 0 && ended.generated_tokens > 0, "what was used is noted all the same: {ended:?}");
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
    // Nobody holds the model any more.
    let evicted = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        hob.client().evict(&MODEL.parse().unwrap()).is_ok()
    });
    assert!(evicted, "the lease went with the instance");
}

#[test]
fn several_clients_are_answered_together() {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-infer");
    let ask = "/guest-infer?do=raw&max_tokens=24";
    let alone: Value = serde_json::from_str(&get(&hob.url(ask)).1).unwrap();
    let url = hob.url(ask);
    let together: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn({
                let url = url.clone();
                move || get(&url)
            })
        })
        .collect();
    for answer in together {
        let answer: Value = serde_json::from_str(&answer.join().unwrap().1).unwrap();
        assert_eq!(answer["text"], alone["text"], "a batch does not change the text");
    }
}

#[test]
fn nn_answers_without_any_hob_import() {
    let hob = Hob::with_model();
    hob.deploy_with_model("nn");
    let component = std::fs::read(hob_tests::component("nn")).unwrap();
    assert!(!component.windows(9).any(|bytes| bytes == b"hob:infer"), "it imports nothing of hob's");
    let (status, text) = post(&hob.url("/nn"), "Name the capital city of France.");
    assert!(status == 200 && text.contains("Paris"), "{text}");
}

#[test]
fn summarize_takes_more_than_a_context() {
    let hob = Hob::with_model();
    hob.deploy("summarize", &["--model", MODEL, "--timeout", "600"]);
    let paragraph = "The Zubrin lighthouse was built in 1871 by Ada Moreno. It stands on a cliff above the bay, and its lamp was seen from forty miles away. ";
    let document = paragraph.repeat(260);
    let mut connection = Connection::open(hob.address());
    connection.post("/summarize", &document);
    assert_eq!(connection.head().status, 200);
    let events = events(&connection.body());
    let (last, done) = events.last().unwrap();
    assert_eq!(last, "done", "{done}");
    assert!(done["chunks"].as_u64().unwrap() > 8, "{done}");
    assert!(done["usage"]["prompt_tokens"].as_u64().unwrap() > 8192, "more than the context went through: {done}");
    assert!(!done["summary"].as_str().unwrap().is_empty());
    assert_eq!(post(&hob.url("/summarize"), " ").0, 400);
}

/// A server of the fifth example, with a folder of plugins.
struct Axum {
    process: std::process::Child,
    home: tempfile::TempDir,
    address: std::net::SocketAddr,
}

impl Axum {
    fn start() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let axum = Self::on(home);
        axum.until("it listens", || std::net::TcpStream::connect(axum.address).ok());
        axum
    }

    fn on(home: tempfile::TempDir) -> Self {
        hob_tests::lend_model(&home.path().join("data"));
        let plugins = home.path().join("plugins");
        std::fs::create_dir(&plugins).expect("a temporary directory can be written");
        std::fs::copy(hob_tests::component("hello"), plugins.join("assistant.wasm")).expect("it was built");
        std::fs::copy(hob_tests::component("moderator"), plugins.join("moderator.wasm")).expect("it was built");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        drop(listener);
        let mut command = std::process::Command::new(hob_tests::hob_binary().with_file_name("axum-plugins"));
        command.arg(&plugins).arg("--data").arg(home.path().join("data")).args(["--listen", &address.to_string()]);
        let process = command.spawn().expect("`cargo xtask test` builds it");
        Self { process, home, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts a file where a plugin is.
    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.home.path().join("plugins").join(name).with_extension("wasm"), bytes).unwrap();
    }

    fn running(&self, name: &str) -> Value {
        let (status, body) = get(&self.url("/plugins"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()[name].take()
    }

    fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            match look() {
                Some(found) => return found,
                None => assert!(started.elapsed() < Duration::from_secs(60), "waited for: {what}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Axum {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_axum_server_takes_up_new_plugins_under_load() {
    let axum = Axum::start();
    assert!(get(&axum.url("/")).1.contains("/comments"), "its own routes are there");
    let (status, reply) = post(&axum.url("/comments"), "What a lovely page!");
    assert!(status == 201 && reply.trim().len() > 3, "the model replies: {status} {reply}");
    let (status, reply) = post(&axum.url("/comments"), "buy at https://example.com");
    assert_eq!((status, reply.as_str()), (422, "Comments with links are not taken.\n"));
    assert_eq!(get(&axum.url("/comments")), (200, r#"["What a lovely page!"]"#.into()));

    // Nobody who asks meanwhile is refused, or answered by anything but one version as a whole.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = || {
            let mut answers = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (status, body) = post(&axum.url("/assistant"), "as it came");
                assert!(
                    status == 200 && ["hello from hob\n", "as it came"].contains(&body.as_str()),
                    "{status} {body}"
                );
                assert_eq!(post(&axum.url("/comments"), "://").0, 422);
                answers += 1;
            }
            answers
        };
        let asking = [scope.spawn(ask), scope.spawn(ask)];
        axum.put("assistant", &std::fs::read(hob_tests::component("guest-echo")).unwrap());
        axum.until("the new assistant", || {
            (post(&axum.url("/assistant"), "as it came").1 == "as it came").then_some(())
        });
        let moderator = std::fs::read(hob_tests::component("moderator")).unwrap();
        let before = axum.running("moderator");
        axum.put("moderator", &hob_tests::distinct(&moderator, b"another"));
        let after = axum.until("the new moderator", || Some(axum.running("moderator")).filter(|now| *now != before));
        assert!(after["refused"].is_null() && after["component"] != before["component"], "{after}");

        // What cannot be used leaves what was, and says why.
        axum.put("moderator", &std::fs::read(hob_tests::component("hello")).unwrap());
        let refused = axum.until("the refusal", || axum.running("moderator")["refused"].as_str().map(str::to_owned));
        assert!(refused.contains("not of the world"), "{refused}");
        assert_eq!(axum.running("moderator")["component"], after["component"]);
        axum.put("assistant", b"\0asm, half of it");
        axum.until("the other refusal", || axum.running("assistant")["refused"].as_str().map(str::to_owned));
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(asking.into_iter().all(|client| client.join().expect("every answer was right") > 10));
    });
    assert_eq!(post(&axum.url("/comments"), "Still here.").0, 201);
}
