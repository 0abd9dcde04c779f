//! One connection for one request: opened, secured, spoken HTTP/1.1 on, each wait bounded.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::{Answered, Io, PATIENCE, Target};
use crate::config::EgressScheme;

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 256 << 10;

/// Whom connections trust: the certificate authorities of the web, and those that were added.
#[derive(Clone)]
pub struct Tls(pub(in crate::host) TlsConnector);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificates in {file} cannot be used: {why}")]
pub struct TlsError {
    /// Where they are.
    pub file: String,
    /// What is wrong.
    pub why: String,
}

impl Tls {
    /// Trusts the web's authorities, and those whose certificates are in `extra`, files in PEM form.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no certificate.
    pub fn new(extra: &[std::path::PathBuf]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
        for file in extra {
            let fail = |why: String| TlsError { file: file.display().to_string(), why };
            let found = CertificateDer::pem_file_iter(file).map_err(|error| fail(error.to_string()))?;
            let before = roots.len();
            for certificate in found {
                let certificate = certificate.map_err(|error| fail(error.to_string()))?;
                roots.add(certificate).map_err(|error| fail(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(fail("there is none".into()));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

/// A connection, secured or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the first of `addresses` that answers.
pub(super) async fn connect(
    target: &Target,
    addresses: &[SocketAddr],
    Tls(tls): &Tls,
) -> Result<Box<dyn Stream>, Error> {
    let mut failed = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return match target.scheme {
                    EgressScheme::Https => Ok(Box::new(secure(target, stream, tls).await?)),
                    _ => Ok(Box::new(stream)),
                };
            }
            Err(error) => failed = Error::Connect(error),
        }
    }
    Err(failed)
}

async fn secure(
    target: &Target,
    stream: TcpStream,
    tls: &TlsConnector,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(target.host.clone()).map_err(|error| Error::Tls(io::Error::other(error)))?;
    tls.connect(name, stream).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
            _ => Error::Tls(error),
        }
    })
}

/// Sends `request` and waits for the head of its answer; the permit goes with the connection.
pub(super) async fn exchange(
    stream: Box<dyn Stream>,
    mut request: Request<WasiBody>,
    options: RequestOptions,
    permit: OwnedSemaphorePermit,
) -> Answered {
    let (mut sender, connection) = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(async move {
        let ended = connection.await;
        drop(permit);
        ended
    }));
    // The request is for the host that it was connected to; its target is a path.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| Error::HttpRequestUriInvalid)?;
    let patience = |asked: Option<Duration>| asked.map_or(PATIENCE, |asked| asked.min(PATIENCE));
    let head = tokio::time::timeout(patience(options.first_byte_timeout), sender.send_request(request));
    let response = head.await.map_err(|_| Error::ConnectionReadTimeout)??;
    let between = patience(options.between_bytes_timeout);
    let response = response.map(|body| Patient { body, between, timer: None }.boxed_unsync());
    let io: Io = Box::new(async move { connection.ended().await });
    Ok((response, io))
}

/// A connection's task, which ends with whoever holds this.
struct Connection(JoinHandle<hyper::Result<()>>);

impl Connection {
    async fn ended(mut self) -> Result<(), Error> {
        match (&mut self.0).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Error::ConnectionTerminated),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body whose parts must not be too long in coming.
struct Patient {
    body: hyper::body::Incoming,
    between: Duration,
    /// Runs while a part is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Patient {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        let between = self.between;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(between)));
        timer.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
