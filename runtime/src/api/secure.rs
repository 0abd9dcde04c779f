//! The control API's connections over TLS.
//!
//! A client that connects and says nothing must not keep others waiting: handshakes are tasks of their own, and what
//! they come to is accepted.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::server::{ServerTls, Wire};

/// Longest wait for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Secured connections that wait to be accepted.
const WAITING: usize = 64;

/// A listener whose connections are secured.
pub(super) struct SecureListener {
    address: SocketAddr,
    secured: mpsc::Receiver<(Wire, SocketAddr)>,
}

impl SecureListener {
    /// Secures the connections of `listener`.
    pub fn start(listener: TcpListener, tls: ServerTls) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (send, secured) = mpsc::channel(WAITING);
        tokio::spawn(accept(listener, tls.http1_only(), send));
        Ok(Self { address, secured })
    }
}

async fn accept(listener: TcpListener, tls: ServerTls, send: mpsc::Sender<(Wire, SocketAddr)>) {
    loop {
        match listener.accept().await {
            Ok((connection, from)) => drop(tokio::spawn(secure(connection, from, tls.clone(), send.clone()))),
            Err(error) => {
                tracing::warn!(%error, "connection to the control API not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn secure(connection: TcpStream, from: SocketAddr, tls: ServerTls, send: mpsc::Sender<(Wire, SocketAddr)>) {
    match tokio::time::timeout(HANDSHAKE, tls.accept(connection)).await {
        Ok(Ok(wire)) => drop(send.send((wire, from)).await),
        Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS on the control API's listener"),
        Err(_) => tracing::debug!(%from, "a handshake on the control API's listener took too long"),
    }
}

impl axum::serve::Listener for SecureListener {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        match self.secured.recv().await {
            Some(accepted) => accepted,
            // What accepts runs as long as this does.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
