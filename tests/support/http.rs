//! HTTP as a client speaks it: whole answers, and a connection that reads piece by piece and can be cut.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for bytes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gets a URL; status and body.
pub fn get(url: &str) -> (u16, String) {
    read(ureq::Agent::new_with_config(config()).get(url).call())
}

/// Posts a body; status and body.
pub fn post(url: &str, body: &str) -> (u16, String) {
    read(ureq::Agent::new_with_config(config()).post(url).send(body))
}

/// Sends bytes and gives all that comes back, until the server closes the connection or nothing comes for a while.
pub fn whole(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket can be set");
    stream.write_all(request.as_bytes()).expect("the server reads");
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn config() -> ureq::config::Config {
    ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(PATIENCE)).build()
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, String) {
    let mut answer = answer.expect("the server answers");
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_string();
    (status, body.expect("the body is whole"))
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Its status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A connection to a server, read as the bytes come.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// Bytes of a body of known length that are still to come.
    left: Option<usize>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("the server listens")
    }

    /// The same, if the server lives. What begins with `try_` here is for who talks to one that may be killed meanwhile.
    ///
    /// # Errors
    /// What the socket said, here and below.
    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream), left: None })
    }

    /// Sends a request without a body.
    pub fn get(&mut self, path: &str) {
        self.try_get(path).expect("the server reads");
    }

    /// The same, if the server lives.
    ///
    /// # Errors
    /// See [`Connection::try_open`].
    pub fn try_get(&mut self, path: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())
    }

    /// Sends a request with a body.
    pub fn post(&mut self, path: &str, body: &str) {
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send(format!("{head}{body}").as_bytes());
    }

    /// Sends a request with headers of its own.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {length}\r\n\r\n");
        self.send(&[head.as_bytes(), body].concat());
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server reads");
    }

    /// Reads the head of an answer.
    pub fn head(&mut self) -> Head {
        self.try_head().expect("the server answers")
    }

    /// The same, if the server lives.
    ///
    /// # Errors
    /// See [`Connection::try_open`].
    pub fn try_head(&mut self) -> io::Result<Head> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut head = Head { status: status.ok_or(io::ErrorKind::UnexpectedEof)?, headers: Vec::new() };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            head.headers.push((name.to_lowercase(), value.to_owned()));
        }
        self.left = head.header("content-length").and_then(|length| length.parse().ok());
        Ok(head)
    }

    /// Reads the next piece of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> Option<String> {
        self.try_chunk().expect("the chunk is whole")
    }

    /// The same, if the server lives.
    ///
    /// # Errors
    /// See [`Connection::try_open`].
    pub fn try_chunk(&mut self) -> io::Result<Option<String>> {
        let size = usize::from_str_radix(self.line()?.trim(), 16).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok((size > 0).then(|| String::from_utf8_lossy(&chunk).into_owned()))
    }

    /// Reads the rest of the body.
    pub fn body(&mut self) -> String {
        self.try_body().expect("the body is whole")
    }

    /// The same, if the server lives.
    ///
    /// # Errors
    /// See [`Connection::try_open`].
    pub fn try_body(&mut self) -> io::Result<String> {
        let Some(length) = self.left.take() else {
            let mut body = String::new();
            while let Some(chunk) = self.try_chunk()? {
                body.push_str(&chunk);
            }
            return Ok(body);
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// From now on bytes are waited for no longer than this.
    ///
    /// # Errors
    /// See [`Connection::try_open`].
    pub fn limit(&mut self, most: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(most))
    }

    /// Whether bytes have come that were not read yet; does not wait.
    pub fn has_answer(&mut self) -> bool {
        self.stream.get_ref().set_nonblocking(true).expect("a socket can be set");
        let came = !self.stream.buffer().is_empty() || self.stream.get_ref().peek(&mut [0]).is_ok();
        self.stream.get_ref().set_nonblocking(false).expect("a socket can be set");
        came
    }

    /// Whether the server has closed, or reset, this connection; waits for one or the other, or for bytes.
    pub fn is_cut(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}
