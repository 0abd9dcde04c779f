//! The data listener: HTTP connections spread over worker threads, each with an executor of its own.
//!
//! A request runs on the thread that reads it. A hop between two threads costs more than starting an instance,
//! and keeping a guest and its connection together makes its data stay in one core's caches.
//!
//! HTTP/1.1 and HTTP/2 are told apart by what the client sends first, or over TLS by what was agreed on.

mod linger;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use self::linger::Linger;
pub(crate) use self::tls::Wire;
pub use self::tls::{ServerTls, ServerTlsError};
use crate::function_host::Host;
use crate::model_api::{ModelApi, ModelApiConfig};
use crate::request::{Body, Secure};

/// Longest wait for the head of a request, and for the first one of a connection: a client that drips bytes, or sends
/// none, holds a connection no longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for running requests when the server stops, unless said.
const DRAIN: Duration = Duration::from_secs(10);
/// Most bytes of a request's head. Functions have their own, lower limit.
const MAX_HEAD: usize = 1 << 20;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// How often a silent HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

/// How to listen.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where.
    pub listen: SocketAddr,
    /// A listener that is there already, in place of a new one.
    pub listener: Option<Arc<std::net::TcpListener>>,
    /// Threads that serve.
    pub threads: usize,
    /// Connections at once; those beyond wait to be accepted.
    pub connections: usize,
    /// Speak TLS.
    pub tls: Option<ServerTls>,
    /// Answer the model APIs here.
    pub models: Option<ModelApiConfig>,
    /// Call no functions here.
    pub models_only: bool,
}

impl ServerConfig {
    /// Listens on `listen`, with a thread for each core, without TLS, and for functions only.
    pub fn new(listen: SocketAddr) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { listen, listener: None, threads, connections: 10_000, tls: None, models: None, models_only: false }
    }
}

/// A listener that serves.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<Option<Duration>>,
    acceptor: tokio::task::JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

/// A connection on its way to its worker, with its share of all connections.
type Accepted = (TcpStream, OwnedSemaphorePermit);

impl Server {
    /// Listens, and serves `host`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    #[expect(
        clippy::manual_async_fn,
        reason = "the body of a public `async fn` is compiled for the library's own tests, too"
    )]
    pub fn start(host: Arc<Host>, config: ServerConfig) -> impl Future<Output = io::Result<Self>> + Send {
        async move {
            let listener = listener(config.listen, config.listener).await?;
            let address = listener.local_addr()?;
            let models = config.models.map(|models| Arc::new(ModelApi::new(host.clone(), models, address.ip())));
            let (stop, stopped) = watch::channel(None);
            let mut senders = Vec::new();
            let mut workers = Vec::new();
            for n in 0..config.threads.max(1) {
                let (send, connections) = mpsc::unbounded_channel();
                senders.push(send);
                let serving = Serving {
                    host: host.clone(),
                    models: models.clone(),
                    models_only: config.models_only,
                    tls: config.tls.clone(),
                    stopped: stopped.clone(),
                    linger: Arc::default(),
                };
                workers.push(worker(n, serving, connections)?);
            }
            let acceptor = tokio::spawn(accept(listener, config.connections, senders, stopped));
            Ok(Self { address, stop, acceptor, workers })
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, and waits until those that run have ended, ten seconds at most.
    pub async fn stop(self) {
        self.stop_within(DRAIN).await;
    }

    /// The same, and waits no longer than `patience`; what runs then is cut off.
    pub async fn stop_within(self, patience: Duration) {
        let _ = self.stop.send(Some(patience));
        let _ = self.acceptor.await;
        for worker in self.workers {
            let _ = tokio::task::spawn_blocking(|| worker.join()).await;
        }
    }
}

/// The listener that is given, or a new one.
pub(crate) async fn listener(
    address: SocketAddr,
    given: Option<Arc<std::net::TcpListener>>,
) -> io::Result<TcpListener> {
    match given {
        None => TcpListener::bind(address).await,
        Some(given) => {
            given.set_nonblocking(true)?;
            TcpListener::from_std(given.try_clone()?)
        }
    }
}

/// Deals connections to the workers in turn.
async fn accept(
    listener: TcpListener,
    connections: usize,
    workers: Vec<mpsc::UnboundedSender<Accepted>>,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let room = Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)));
    for worker in workers.iter().cycle() {
        let next = async {
            let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            listener.accept().await.and_then(|(connection, _)| Ok((connection.into_std()?, place)))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = stopped.wait_for(Option::is_some) => return,
        };
        match accepted {
            Ok(accepted) => drop(worker.send(accepted)),
            Err(error) => {
                // Out of descriptors, mostly: those that end will free some.
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What a worker needs to serve.
#[derive(Clone)]
struct Serving {
    host: Arc<Host>,
    models: Option<Arc<ModelApi>>,
    models_only: bool,
    tls: Option<ServerTls>,
    stopped: watch::Receiver<Option<Duration>>,
    /// The worker's.
    linger: Arc<Linger>,
}

fn worker(n: usize, serving: Serving, connections: mpsc::UnboundedReceiver<Accepted>) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A guest that computes yields at each epoch, until sockets and timers were looked at.
        .event_interval(31)
        .build()?;
    std::thread::Builder::new().name(format!("hob-worker-{n}")).spawn(move || {
        hob_gpu::short_turns();
        let (host, linger) = (serving.host.clone(), serving.linger.clone());
        let infers = || host.library().engines().stats().running > 0;
        runtime.block_on(async {
            tokio::select! {
                () = serve_connections(serving, connections) => {}
                () = linger.run(infers) => unreachable!("that goes on for as long as requests may come"),
            }
        });
    })
}

async fn serve_connections(serving: Serving, mut connections: mpsc::UnboundedReceiver<Accepted>) {
    let mut running = tokio::task::JoinSet::new();
    while let Some((connection, place)) = connections.recv().await {
        let serving = serving.clone();
        running.spawn(async move {
            if let Err(error) = serving.serve(connection).await {
                tracing::debug!(%error, "connection ended early");
            }
            drop(place);
        });
        while running.try_join_next().is_some() {}
    }
    let drained = async { while running.join_next().await.is_some() {} };
    let patience = serving.stopped.borrow().unwrap_or(DRAIN);
    if tokio::time::timeout(patience, drained).await.is_err() {
        tracing::warn!("requests that still run are cut off");
    }
}

impl Serving {
    async fn serve(mut self, connection: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        connection.set_nodelay(true)?;
        let connection = tokio::net::TcpStream::from_std(connection)?;
        let wire = match &self.tls {
            Some(tls) => tokio::time::timeout(HEAD_TIMEOUT, tls.accept(connection)).await??,
            None => Wire::Plain(connection),
        };
        let secure = self.tls.is_some();
        let (host, models, models_only) = (self.host.clone(), self.models.clone(), self.models_only);
        let asked = Arc::new(AtomicBool::new(false));
        let service = {
            let (asked, linger) = (asked.clone(), self.linger.clone());
            service_fn(move |mut request: hyper::Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                let running = linger.begin();
                if secure {
                    request.extensions_mut().insert(Secure);
                }
                let (host, models) = (host.clone(), models.clone());
                async move {
                    let response = match models {
                        Some(models) => answer(&host, &models, models_only, request).await,
                        None => host.handle(request).await,
                    };
                    drop(running);
                    Ok::<_, std::convert::Infallible>(response)
                }
            })
        };
        let builder = protocols();
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(wire), service));
        let mut patience = std::pin::pin!(tokio::time::sleep(HEAD_TIMEOUT));
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => return result,
                () = patience.as_mut(), if !asked.load(Ordering::Relaxed) => {
                    // Its guard is looked at when it began to wait, not when it ends.
                    if !asked.load(Ordering::Relaxed) {
                        return Err("no request came".into());
                    }
                }
                _ = self.stopped.wait_for(Option::is_some) => break,
            }
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }
}

/// The answer of a function, or of the model APIs if the request is theirs.
async fn answer(
    host: &Host,
    models: &Arc<ModelApi>,
    models_only: bool,
    request: hyper::Request<Incoming>,
) -> hyper::Response<Body> {
    let (parts, body) = request.into_parts();
    let theirs = models_only || models.takes(&parts);
    let request = hyper::Request::from_parts(parts, body);
    // In a box: a future that is large is copied with each request, also with those of functions.
    if theirs { Box::pin(models.answer(request)).await } else { host.handle(request).await }
}

fn protocols() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}
