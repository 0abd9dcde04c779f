//! A server of files on this machine, with whatever can be wrong with one: what `hob models pull` is tested against.
//!
//! It speaks as the Hugging Face hub, as Ollama's registry and as a plain web server do, and writes down who asked for
//! what and how many bytes were sent.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hob::digest::Digest;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::certificate;

/// The commit that the hub says a repository is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Ranges are ignored.
    NoRanges,
    /// Each answer ends after so many bytes, whatever length it announced.
    Cut(usize),
    /// Ranges are ignored, too.
    CutWithoutRanges(usize),
    /// After so many bytes, in however many answers, nothing more comes.
    Stall(usize),
    /// A pause after each 64 KiB.
    Slow(Duration),
    /// Other bytes of the same length.
    OtherBytes,
    /// The file is said to have so many bytes.
    Claims(u64),
    /// So many answers are this status.
    Status(u16, usize),
    /// This answer, by its number from 1, is 403: the right to read has lapsed.
    Lapses(usize),
    /// The bytes are elsewhere.
    Moved(String),
    /// Another file each time.
    Changes,
    /// Ranges are given whatever else is asked.
    NoIfRange,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The path, with its query.
    pub target: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// Bytes of the body that were sent.
    pub sent: Arc<AtomicU64>,
}

#[derive(Clone, Default)]
struct Item {
    bytes: Arc<Vec<u8>>,
    kind: &'static str,
    headers: Vec<(String, String)>,
    trouble: Trouble,
    /// How often it was asked for.
    times: usize,
    /// Bytes that were sent.
    given: Arc<AtomicUsize>,
    /// Who may have it: those with this `authorization`.
    only: Option<String>,
}

#[derive(Default)]
struct State {
    items: HashMap<String, Item>,
    asked: Vec<Asked>,
}

/// A running server.
pub struct Shelf {
    /// Where it is, without a slash at its end.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Shelf {
    /// Starts one.
    pub fn start() -> Self {
        Self::serve(None)
    }

    /// Starts one that speaks TLS, as `localhost`, with the certificate of `golden/tls`.
    pub fn with_tls() -> Self {
        let file = |name| std::fs::read(certificate(name)).expect("it is in the repository");
        let certificate = CertificateDer::from_pem_slice(&file("cert.pem")).expect("it is a certificate");
        let key = PrivateKeyDer::from_pem_slice(&file("key.pem")).expect("it is a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("they belong together");
        Self::serve(Some(Arc::new(config)))
    }

    fn serve(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the system has a free port");
        let address = listener.local_addr().expect("it listens");
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, secure) = (state.clone(), tls.is_some());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => converse(stream, &state),
                    Some(tls) => {
                        let tls = rustls::ServerConnection::new(tls).expect("the configuration is good");
                        converse(rustls::StreamOwned::new(tls, stream), &state)
                    }
                });
            }
        });
        let url = if secure { format!("https://localhost:{}", address.port()) } else { format!("http://{address}") };
        Self { url, state }
    }

    /// Puts a file at a path, and gives its address.
    pub fn put(&self, path: &str, bytes: &[u8]) -> String {
        self.put_as(path, bytes, "application/octet-stream", &[])
    }

    fn put_as(&self, path: &str, bytes: &[u8], kind: &'static str, headers: &[(&str, &str)]) -> String {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers = headers.iter().map(owned).collect();
        let item = Item { bytes: Arc::new(bytes.to_vec()), kind, headers, ..Item::default() };
        self.state().items.insert(path.to_owned(), item);
        format!("{}{path}", self.url)
    }

    /// Makes something go wrong with what is at a path.
    pub fn trouble(&self, path: &str, trouble: Trouble) {
        let mut state = self.state();
        let item = state.items.get_mut(path).unwrap_or_else(|| panic!("there is {path}"));
        (item.trouble, item.times, item.given) = (trouble, 0, Arc::default());
    }

    /// Gives all paths that begin so to those who say this `authorization` only.
    pub fn only(&self, prefix: &str, authorization: &str) {
        let mut state = self.state();
        let items = state.items.iter_mut().filter(|(path, _)| path.starts_with(prefix));
        items.for_each(|(_, item)| item.only = Some(authorization.to_owned()));
    }

    /// Publishes a repository as the hub does. Files that end in `.gguf` or `.safetensors` are large ones.
    pub fn hub(&self, repository: &str, files: &[(&str, &[u8])]) {
        let siblings = files.iter().map(|(name, bytes)| {
            let large = [".gguf", ".safetensors"].iter().any(|end| name.ends_with(end));
            let mut sibling = json!({ "rfilename": name, "size": bytes.len(), "blobId": git_id(bytes) });
            if large {
                sibling["lfs"] = json!({ "sha256": Digest::of(bytes).hex(), "size": bytes.len(), "pointerSize": 134 });
            }
            sibling
        });
        let list = json!({
            "id": repository, "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>(),
            "cardData": { "license": "apache-2.0" },
        });
        self.put_list(repository, &list);
        for (name, bytes) in files {
            self.put(&format!("/{repository}/resolve/{COMMIT}/{name}"), bytes);
        }
    }

    /// Publishes the list of a repository's files.
    pub fn put_list(&self, repository: &str, list: &Value) {
        for revision in ["main", COMMIT] {
            let path = format!("/api/models/{repository}/revision/{revision}");
            self.put_as(&path, list.to_string().as_bytes(), "application/json", &[]);
        }
    }

    /// Publishes a model as Ollama's registry does: layers with the ends of their types.
    pub fn ollama(&self, name: &str, tag: &str, layers: &[(&str, &[u8])]) {
        let layer = |(kind, bytes): &(&str, &[u8])| {
            let digest = Digest::of(bytes);
            self.put(&format!("/v2/{name}/blobs/{digest}"), bytes);
            json!({ "mediaType": format!("application/vnd.ollama.image.{kind}"), "digest": digest, "size": bytes.len() })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        self.put_manifest(name, tag, &manifest);
    }

    /// Publishes a manifest.
    pub fn put_manifest(&self, name: &str, tag: &str, manifest: &Value) {
        let text = manifest.to_string();
        let digest = Digest::of(text.as_bytes()).to_string();
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let path = format!("/v2/{name}/manifests/{tag}");
        self.put_as(&path, text.as_bytes(), kind, &[("docker-content-digest", &digest)]);
    }

    /// All requests so far whose target has `part`.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        self.state().asked.iter().filter(|asked| asked.target.contains(part)).cloned().collect()
    }

    /// Bytes that were sent of answers to these.
    pub fn sent(&self, part: &str) -> u64 {
        self.asked(part).iter().map(|asked| asked.sent.load(Ordering::SeqCst)).sum()
    }

    /// Forgets who asked.
    pub fn forget(&self) {
        self.state().asked.clear();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }
}

/// One request after the other, as long as answers are whole. Also for those who take this for a proxy.
fn converse(stream: impl Read + Write, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let mut parts = line.split(' ');
        let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let sent = Arc::new(AtomicU64::new(0));
        let asked = Asked { target: target.clone(), headers, sent: sent.clone() };
        state.lock().ok()?.asked.push(asked.clone());
        if method == "CONNECT" {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            continue;
        }
        // To a proxy the whole address is said.
        let path = target.split_once("://").map_or(target.as_str(), |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
        let path = path.split('?').next().unwrap_or_default();
        let item = {
            let mut state = state.lock().ok()?;
            let item = state.items.get_mut(path);
            item.map(|item| {
                item.times += 1;
                item.clone()
            })
        };
        answer(reader.get_mut(), item, &asked)?;
    }
}

/// Answers; `None` if the connection is of no use after it.
fn answer(stream: &mut impl Write, item: Option<Item>, asked: &Asked) -> Option<()> {
    let mut plain = |status: &str, more: &str| {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).ok()
    };
    let Some(item) = item else { return plain("404 Not Found", "") };
    if item.only.is_some() && item.only.as_ref() != asked.headers.get("authorization") {
        return plain("401 Unauthorized", "");
    }
    match &item.trouble {
        Trouble::Status(status, times) if item.times <= *times => return plain(&format!("{status} No"), ""),
        Trouble::Lapses(number) if item.times == *number => return plain("403 Forbidden", ""),
        Trouble::Moved(place) => return plain("302 Found", &format!("location: {place}\r\n")),
        _ => {}
    }
    let mut bytes = (*item.bytes).clone();
    match item.trouble {
        Trouble::OtherBytes => bytes.iter_mut().for_each(|byte| *byte ^= 1),
        Trouble::Changes => bytes.iter_mut().for_each(|byte| *byte ^= item.times as u8),
        _ => {}
    }
    let total = match item.trouble {
        Trouble::Claims(total) => total,
        _ => bytes.len() as u64,
    };
    let tag = format!("\"{}\"", Digest::of(&bytes).short());
    let ranges = !matches!(item.trouble, Trouble::NoRanges | Trouble::CutWithoutRanges(_));
    let same = asked.headers.get("if-range").is_none_or(|wanted| *wanted == tag || item.trouble == Trouble::NoIfRange);
    let range = asked.headers.get("range").filter(|_| ranges && same).and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.min(total.saturating_sub(1))))
    });
    let mut head = match range {
        Some((first, _)) if first >= total => return plain("416 Range Not Satisfiable", ""),
        Some((first, last)) => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {first}-{last}/{total}\r\ncontent-length: {}\r\n",
            last - first + 1
        ),
        None => format!("HTTP/1.1 200 OK\r\ncontent-length: {total}\r\n"),
    };
    head += &format!("content-type: {}\r\netag: {tag}\r\n", item.kind);
    item.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let (first, last) = range.unwrap_or((0, total.saturating_sub(1)));
    let end = (last + 1).min(bytes.len() as u64);
    let body = bytes.get(first as usize..end as usize).unwrap_or_default();
    let most = match item.trouble {
        Trouble::Cut(most) | Trouble::CutWithoutRanges(most) => most.min(body.len()),
        _ => body.len(),
    };
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    for piece in body[..most].chunks(64 << 10) {
        let before = item.given.fetch_add(piece.len(), Ordering::SeqCst);
        let left = match item.trouble {
            Trouble::Stall(most) => most.saturating_sub(before).min(piece.len()),
            _ => piece.len(),
        };
        stream.write_all(&piece[..left]).ok()?;
        stream.flush().ok()?;
        asked.sent.fetch_add(left as u64, Ordering::SeqCst);
        match item.trouble {
            // Until the client gives up, or is killed.
            Trouble::Stall(_) if left < piece.len() => std::thread::sleep(Duration::from_secs(120)),
            Trouble::Slow(pause) => std::thread::sleep(pause),
            _ => {}
        }
    }
    (most as u64 == last + 1 - first.min(last + 1) || total == 0).then_some(())
}

/// The name that git has for a file.
fn git_id(bytes: &[u8]) -> String {
    use sha1::Digest as _;
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
