//! An OCI registry on this machine: blobs, manifests, uploads in two steps, and tokens, as the distribution protocol has them.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hob::digest::Digest;

const TOKEN: &str = "a-token";

/// What goes wrong in a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// A blob's bytes are others than its name says.
    OtherBytes,
    /// A blob ends early, and its length says so.
    Short,
    /// A blob ends before the length that was announced.
    Cut,
    /// The manifest is other than the one that was pushed, under its digest.
    OtherManifest,
    /// Uploads are refused at their end.
    NoSpace,
}

/// A running registry.
pub struct Registry {
    /// Its host and port.
    pub host: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By digest.
    blobs: HashMap<String, Vec<u8>>,
    /// By repository and tag or digest.
    manifests: HashMap<String, Vec<u8>>,
    /// The login that tokens are given for; anybody, if there is none.
    login: Option<String>,
    fault: Fault,
    calls: Vec<String>,
}

impl Registry {
    /// Starts one that gives tokens to anybody.
    pub fn start() -> Self {
        Self::with(None)
    }

    /// Starts one that gives tokens to whoever knows the login only, as in `user:password` in base64.
    pub fn with_login(login: &str) -> Self {
        Self::with(Some(login.to_owned()))
    }

    fn with(login: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the system has a free port");
        let host = listener.local_addr().expect("it listens").to_string();
        let state = Arc::new(Mutex::new(State { login, ..State::default() }));
        let (shared, own) = (state.clone(), host.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (state, host) = (shared.clone(), own.clone());
                std::thread::spawn(move || answer(connection, &state, &host));
            }
        });
        Self { host, state }
    }

    /// Makes something go wrong from now on.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().expect("nobody panics with it").fault = fault;
    }

    /// The manifest under `repository:tag`.
    pub fn manifest(&self, name: &str) -> Option<serde_json::Value> {
        let state = self.state.lock().expect("nobody panics with it");
        state.manifests.get(name).map(|text| serde_json::from_slice(text).expect("a manifest is JSON"))
    }

    /// Puts a manifest under `repository:tag`.
    pub fn put_manifest(&self, name: &str, manifest: &serde_json::Value) {
        let text = manifest.to_string().into_bytes();
        self.state.lock().expect("nobody panics with it").manifests.insert(name.into(), text);
    }

    /// Puts a blob there, and gives its digest.
    pub fn put_blob(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        self.state.lock().expect("nobody panics with it").blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// A blob.
    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        self.state.lock().expect("nobody panics with it").blobs.get(digest).cloned()
    }

    /// The calls so far: method and path.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().expect("nobody panics with it").calls.clone()
    }
}

/// A request as it was read.
struct Call {
    method: String,
    path: String,
    query: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// An answer to be written.
struct Reply {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// More than there is, for one that is cut.
    length: Option<usize>,
}

impl Reply {
    fn new(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), length: None }
    }

    fn error(status: &'static str, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
        Self::new(status).body(body.to_string().into_bytes())
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }
}

/// One request a connection.
fn answer(mut connection: TcpStream, state: &Mutex<State>, host: &str) -> Option<()> {
    let call = read(&connection)?;
    let reply = {
        let mut state = state.lock().expect("nobody panics with it");
        state.calls.push(format!("{} {}", call.method, call.path));
        state.reply(&call, host)
    };
    let length = reply.length.unwrap_or(reply.body.len());
    let mut head = format!("HTTP/1.1 {}\r\ncontent-length: {length}\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    connection.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if call.method != "HEAD" {
        connection.write_all(&reply.body).ok()?;
    }
    Some(())
}

fn read(connection: &TcpStream) -> Option<Call> {
    let mut reader = BufReader::new(connection.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut parts = line.split(' ');
    let (method, target) = (parts.next()?.to_owned(), parts.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Call { method, path, query, headers, body })
}

impl State {
    fn reply(&mut self, call: &Call, host: &str) -> Reply {
        if call.path == "/token" {
            return self.token(call);
        }
        let Some((repository, kind, name)) = split(&call.path) else { return Reply::new("404 Not Found") };
        if call.headers.get("authorization").is_none_or(|given| given != &format!("Bearer {TOKEN}")) {
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:{repository}:pull,push\""
            );
            return Reply::error("401 Unauthorized", "UNAUTHORIZED", "who are you?")
                .header("www-authenticate", challenge);
        }
        match (call.method.as_str(), kind) {
            ("GET" | "HEAD", "manifests") => self.get_manifest(repository, name),
            ("PUT", "manifests") => self.keep_manifest(repository, name, call),
            ("GET" | "HEAD", "blobs") => self.get_blob(name),
            ("POST", "uploads") => {
                Reply::new("202 Accepted").header("location", format!("/v2/{repository}/blobs/uploads/7?state=x"))
            }
            ("PUT", "uploads") => self.keep_blob(call),
            _ => Reply::new("405 Method Not Allowed"),
        }
    }

    fn token(&self, call: &Call) -> Reply {
        let scoped = call.query.contains("service=test") && call.query.contains("scope=repository");
        let known = |login: &String| call.headers.get("authorization") == Some(&format!("Basic {login}"));
        match scoped && self.login.as_ref().is_none_or(known) {
            true => Reply::new("200 OK").body(format!("{{\"token\":\"{TOKEN}\"}}").into_bytes()),
            false => Reply::error("401 Unauthorized", "UNAUTHORIZED", "no such login"),
        }
    }

    fn get_manifest(&self, repository: &str, name: &str) -> Reply {
        let separator = if name.starts_with("sha256:") { '@' } else { ':' };
        let Some(text) = self.manifests.get(&format!("{repository}{separator}{name}")) else {
            return Reply::error("404 Not Found", "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let digest = Digest::of(text).to_string();
        let mut text = text.clone();
        if self.fault == Fault::OtherManifest {
            text.push(b' ');
        }
        Reply::new("200 OK").header("docker-content-digest", digest).body(text)
    }

    fn keep_manifest(&mut self, repository: &str, name: &str, call: &Call) -> Reply {
        let manifest: serde_json::Value = match serde_json::from_slice(&call.body) {
            Ok(manifest) => manifest,
            Err(error) => return Reply::error("400 Bad Request", "MANIFEST_INVALID", &error.to_string()),
        };
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let parts = layers.chain([&manifest["config"]]);
        for part in parts {
            let known = part["digest"].as_str().and_then(|digest| self.blobs.get(digest));
            if known.is_none_or(|blob| Some(blob.len() as u64) != part["size"].as_u64()) {
                return Reply::error("400 Bad Request", "MANIFEST_BLOB_UNKNOWN", "a blob is missing");
            }
        }
        let digest = Digest::of(&call.body).to_string();
        self.manifests.insert(format!("{repository}:{name}"), call.body.clone());
        self.manifests.insert(format!("{repository}@{digest}"), call.body.clone());
        Reply::new("201 Created").header("docker-content-digest", digest)
    }

    fn get_blob(&self, name: &str) -> Reply {
        let Some(blob) = self.blobs.get(name) else {
            return Reply::error("404 Not Found", "BLOB_UNKNOWN", "blob unknown");
        };
        let mut reply = Reply::new("200 OK").body(blob.clone());
        match self.fault {
            Fault::OtherBytes => reply.body.iter_mut().for_each(|byte| *byte ^= 1),
            Fault::Short => reply.body.truncate(blob.len() / 2),
            Fault::Cut => {
                reply.length = Some(blob.len());
                reply.body.truncate(blob.len() / 2);
            }
            Fault::None | Fault::OtherManifest | Fault::NoSpace => {}
        }
        reply
    }

    fn keep_blob(&mut self, call: &Call) -> Reply {
        let digest = call.query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap_or_default();
        let digest = digest.replace("%3A", ":");
        if self.fault == Fault::NoSpace {
            return Reply::error("507 Insufficient Storage", "DENIED", "the disk is full");
        }
        if !call.query.contains("state=x") || Digest::of(&call.body).to_string() != digest {
            return Reply::error("400 Bad Request", "DIGEST_INVALID", "provided digest did not match uploaded content");
        }
        self.blobs.insert(digest, call.body.clone());
        Reply::new("201 Created")
    }
}

/// `/v2/acme/chat/manifests/1.2` is `acme/chat`, `manifests`, `1.2`.
fn split(path: &str) -> Option<(&str, &str, &str)> {
    let rest = path.strip_prefix("/v2/")?;
    for (mark, kind) in [("/manifests/", "manifests"), ("/blobs/uploads/", "uploads"), ("/blobs/", "blobs")] {
        if let Some((repository, name)) = rest.split_once(mark) {
            return Some((repository, kind, name));
        }
    }
    None
}
