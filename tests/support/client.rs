//! A client that speaks what browsers and proxies do: HTTP/1.1 and HTTP/2, in the clear and over TLS, with trailers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Headers after a body.
pub type Trailers = HeaderMap;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Where it is.
    pub address: SocketAddr,
    /// What is spoken; over TLS it is offered, and whatever the server takes is spoken.
    pub version: Version,
    /// Trust the authority of `golden/tls`, and speak TLS.
    pub tls: bool,
}

/// An answer as a whole.
#[derive(Debug)]
pub struct Answer {
    /// What was spoken.
    pub version: Version,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as far as it came.
    pub body: Bytes,
    /// What came after the body.
    pub trailers: Option<Trailers>,
    /// The body did not come to its end.
    pub cut: bool,
}

impl Client {
    /// Asks, with a body if there is one, and its trailers, and waits for the whole answer.
    pub fn ask(&self, path: &str, body: Option<&str>, trailers: Option<Trailers>) -> Answer {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are threads");
        let asked = async { tokio::time::timeout(Duration::from_secs(60), self.exchange(path, body, trailers)).await };
        runtime.block_on(asked).expect("the server answers in time")
    }

    async fn exchange(&self, path: &str, body: Option<&str>, trailers: Option<Trailers>) -> Answer {
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let frames = body.map(|text| Frame::data(Bytes::copy_from_slice(text.as_bytes())));
        let frames: Vec<_> = frames.into_iter().chain(trailers.map(Frame::trailers)).collect();
        let method = if frames.is_empty() { "GET" } else { "POST" };
        let scheme = if self.tls { "https" } else { "http" };
        let target = match self.version {
            Version::HTTP_2 => format!("{scheme}://localhost:{}{path}", self.address.port()),
            _ => path.to_owned(),
        };
        let mut request = Request::builder().method(method).uri(target).header("te", "trailers");
        if self.version != Version::HTTP_2 {
            request = request.header("host", "localhost");
        }
        let request = request.body(Frames(frames.into_iter())).expect("it is a request");
        if !self.tls {
            return self.speak(stream, self.version, request).await;
        }
        let protocol = if self.version == Version::HTTP_2 { "h2" } else { "http/1.1" };
        let stream = secure(stream, protocol).await;
        let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.speak(stream, if agreed { Version::HTTP_2 } else { Version::HTTP_11 }, request).await
    }

    async fn speak<S>(&self, stream: S, version: Version, request: Request<Frames>) -> Answer
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("it speaks HTTP/1.1");
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        read(response.expect("the server answers")).await
    }
}

async fn read(response: http::Response<Incoming>) -> Answer {
    let (parts, mut body) = response.into_parts();
    let (mut bytes, mut trailers, mut cut) = (Vec::new(), None, false);
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => bytes.extend(data),
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            Err(_) => cut = true,
        }
    }
    let (version, status, headers) = (parts.version, parts.status.as_u16(), parts.headers);
    Answer { version, status, headers, body: bytes.into(), trailers, cut }
}

async fn secure(stream: TcpStream, protocol: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(crate::certificate("ca.pem")).expect("the file is in golden/");
    roots.add(authority).expect("it is a certificate");
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from("localhost").expect("it is a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.expect("the certificate is good")
}

/// Frames that are all there already.
struct Frames(std::vec::IntoIter<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.0.next().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.len() == 0
    }
}
