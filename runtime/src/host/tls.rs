//! `wasi:tls`, 0.2.0-draft and 0.3.0-draft: TLS over the sockets of a guest, which trusts whom outgoing HTTP trusts.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;
use wasmtime::Result;
use wasmtime::component::Linker;
use wasmtime_wasi_tls::{Error, TlsProvider, TlsTransport, WasiTlsCtxBuilder, WasiTlsCtxView, WasiTlsView, p2, p3};

use super::State;
use super::egress::Tls;

/// Links `wasi:tls`.
///
/// # Errors
/// None in practice: the interfaces are distinct.
pub fn link(linker: &mut Linker<State>, concurrent: bool) -> Result<()> {
    let mut options = p2::LinkOptions::default();
    p2::add_to_linker(linker, options.tls(true))?;
    if concurrent {
        p3::add_to_linker(linker)?;
    }
    Ok(())
}

impl WasiTlsView for State {
    fn tls(&mut self) -> WasiTlsCtxView<'_> {
        let ctx = self.tls.get_or_insert_with(|| {
            let provider = Provider(self.granted.egress.as_ref().map(|egress| egress.tls().clone()));
            WasiTlsCtxBuilder::new().provider(Box::new(provider)).build()
        });
        WasiTlsCtxView { table: &mut self.table, ctx }
    }
}

/// Trusts whom egress trusts; nobody, where there is none.
struct Provider(Option<Tls>);

type Connecting = Pin<Box<dyn Future<Output = Result<Box<dyn wasmtime_wasi_tls::TlsStream>, Error>> + Send>>;

impl TlsProvider for Provider {
    fn connect(&self, server_name: String, transport: Box<dyn TlsTransport>) -> Connecting {
        let tls = self.0.clone();
        Box::pin(async move {
            let Some(Tls(connector)) = tls else { return Err(Error::msg("this function was granted no egress")) };
            let name = ServerName::try_from(server_name).map_err(|_| Error::msg("that is no name of a server"))?;
            let stream = connector.connect(name, transport).await.map_err(Error::msg)?;
            Ok(Box::new(Secured(stream)) as Box<dyn wasmtime_wasi_tls::TlsStream>)
        })
    }
}

/// A connection that is secured.
struct Secured(TlsStream<Box<dyn TlsTransport>>);

impl wasmtime_wasi_tls::TlsStream for Secured {}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
