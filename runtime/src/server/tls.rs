//! TLS, on the data listener and for the control API.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A certificate and its key.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

/// Why a certificate cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// A file is not what it should be.
    #[error("{path} cannot be used: {why}; give a file in PEM form", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: rustls::pki_types::pem::Error,
    },
    /// They do not belong together, or are of a kind that is not supported.
    #[error("the certificate in {cert} cannot be used with the key in {key}: {why}", cert = cert.display(), key = key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: rustls::Error,
    },
}

impl ServerTls {
    /// Reads a certificate, with those between it and its authority, and its key, both in PEM form.
    ///
    /// # Errors
    /// See [`ServerTlsError`].
    pub fn open(cert: &Path, key: &Path) -> Result<Self, ServerTlsError> {
        let file = |path: &Path, why| ServerTlsError::File { path: path.to_owned(), why };
        let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|why| file(cert, why))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|why| file(key, why))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_no_client_auth()
            .with_single_cert(chain, private);
        let pair = |why| ServerTlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), why };
        let mut config = config.map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// The same for a listener that speaks HTTP/1.1 only.
    pub(crate) fn http1_only(self) -> Self {
        let mut config = rustls::ServerConfig::clone(self.0.config());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    pub(crate) async fn accept(&self, connection: TcpStream) -> io::Result<Wire> {
        Ok(Wire::Secure(Box::new(self.0.accept(connection).await?)))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

/// A connection, secured or not: one type, so that what speaks HTTP is compiled once.
pub(crate) enum Wire {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

macro_rules! on_wire {
    ($self:ident, $wire:ident => $call:expr) => {
        match $self.get_mut() {
            Wire::Plain(stream) => {
                let $wire = Pin::new(stream);
                $call
            }
            Wire::Secure(stream) => {
                let $wire = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, wire => wire.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_wire!(self, wire => wire.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_wire!(self, wire => wire.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, wire => wire.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, wire => wire.poll_shutdown(cx))
    }
}
