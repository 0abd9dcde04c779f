//! The data listener: HTTP/1.1 connections spread over worker threads, each with an executor of its own.
//!
//! A request runs on the thread that reads it. A hop between two threads costs more than starting an instance,
//! and keeping a guest and its connection together makes its data stay in one core's caches.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::function_host::Host;

/// Longest wait for the head of a request: a client that drips bytes holds a connection no longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for running requests when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// A listener that serves.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    acceptor: tokio::task::JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens on `listen` and serves `host` with `threads` worker threads.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(host: Arc<Host>, listen: SocketAddr, threads: usize) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for n in 0..threads.max(1) {
            let (send, connections) = mpsc::unbounded_channel();
            senders.push(send);
            workers.push(worker(n, host.clone(), connections, stopped.clone())?);
        }
        let acceptor = tokio::spawn(accept(listener, senders, stopped));
        Ok(Self { address, stop, acceptor, workers })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, and waits until those that run have ended, ten seconds at most.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.acceptor.await;
        for worker in self.workers {
            let _ = tokio::task::spawn_blocking(|| worker.join()).await;
        }
    }
}

/// Deals connections to the workers in turn.
async fn accept(
    listener: TcpListener,
    workers: Vec<mpsc::UnboundedSender<TcpStream>>,
    mut stopped: watch::Receiver<bool>,
) {
    for worker in workers.iter().cycle() {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match connection.and_then(|(connection, _)| connection.into_std()) {
            Ok(connection) => drop(worker.send(connection)),
            Err(error) => {
                // Out of descriptors, mostly: those that end will free some.
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn worker(
    n: usize,
    host: Arc<Host>,
    connections: mpsc::UnboundedReceiver<TcpStream>,
    stopped: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A guest that computes yields at each epoch; look at sockets and timers after every few such turns.
        .event_interval(7)
        .build()?;
    std::thread::Builder::new()
        .name(format!("hob-worker-{n}"))
        .spawn(move || runtime.block_on(serve_connections(host, connections, stopped)))
}

async fn serve_connections(
    host: Arc<Host>,
    mut connections: mpsc::UnboundedReceiver<TcpStream>,
    stopped: watch::Receiver<bool>,
) {
    let mut running = tokio::task::JoinSet::new();
    while let Some(connection) = connections.recv().await {
        running.spawn(serve(host.clone(), connection, stopped.clone()));
        while running.try_join_next().is_some() {}
    }
    let drained = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("requests still running after {} s are cut off", DRAIN.as_secs());
    }
}

async fn serve(host: Arc<Host>, connection: TcpStream, mut stopped: watch::Receiver<bool>) {
    let connection = match connection.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(connection)) {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%error, "connection lost"),
    };
    let service = service_fn(move |request| {
        let host = host.clone();
        async move { Ok::<_, std::convert::Infallible>(host.handle(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(connection), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        _ = stopped.wait_for(|stop| *stop) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended early");
    }
}
