//! A collector of traces that keeps what it gets: OTLP over HTTP, as JSON.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// It listens until the test ends.
pub struct Collector {
    /// Its base.
    pub endpoint: String,
    bodies: Arc<Mutex<Vec<Value>>>,
    heads: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Collector {
    /// Starts one.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let endpoint = format!("http://{}", listener.local_addr().expect("it listens"));
        let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
        let heads: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let kept = (bodies.clone(), heads.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream, &kept.0, &kept.1));
            }
        });
        Self { endpoint, bodies, heads }
    }

    /// The spans that came so far, in the order in which they came.
    pub fn spans(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().expect("nobody panics with it");
        let spans = |body: &Value| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().cloned();
        bodies.iter().filter_map(spans).flatten().collect()
    }

    /// Whether the last call had this header line, in lower case.
    pub fn was_sent(&self, line: &str) -> bool {
        let heads = self.heads.lock().expect("nobody panics with it");
        heads.last().is_some_and(|head| head.iter().any(|sent| sent == line))
    }

    /// What the last sender says of itself.
    pub fn attributes(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().expect("nobody panics with it");
        let attributes = bodies.last().map(|body| body["resourceSpans"][0]["resource"]["attributes"].clone());
        attributes.and_then(|attributes| attributes.as_array().cloned()).unwrap_or_default()
    }

    /// Who sent them.
    pub fn services(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().expect("nobody panics with it");
        bodies
            .iter()
            .map(|body| body["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"].clone())
            .collect()
    }
}

/// Requests on one connection. One that is not as the protocol has it ends it with a 400.
fn serve(stream: TcpStream, kept: &Mutex<Vec<Value>>, heads: &Mutex<Vec<Vec<String>>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            head.push(line.to_lowercase());
        }
        let Some(first) = head.first() else { return };
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let good =
            first.starts_with("post /v1/traces ") && head.iter().any(|line| line == "content-type: application/json");
        let mut body = vec![0; length.unwrap_or(0)];
        let body = reader.read_exact(&mut body).ok().and_then(|()| serde_json::from_slice(&body).ok());
        let (Some(body), true) = (body, good) else {
            let _ = reader
                .get_mut()
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return;
        };
        heads.lock().expect("nobody panics with it").push(head);
        kept.lock().expect("nobody panics with it").push(body);
        let _ = reader
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}");
    }
}
