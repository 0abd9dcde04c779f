//! A request in a fresh instance.
//!
//! The guest runs as a task of its own beside the connection, on the same thread. Whoever waits for its answer
//! holds the task: first the call, then the response body. When the client leaves, hyper drops what it holds,
//! the task is aborted, and the instance goes with all it has: memory, models, running generations.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};

use super::{Invocation, RequestError};
use crate::components::Linked;
use crate::config::Limits;
use crate::host::{Grant, State};

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, wasmtime_wasi_http::Error>;

type Head = Result<Response<Body>, ErrorCode>;

/// A component ready to be instantiated, and what its instances get.
pub struct Callable {
    /// Linked, checked; it stays mapped while this lives.
    pub linked: Arc<Linked>,
    /// What one invocation may use.
    pub limits: Limits,
    /// The models it may use.
    pub models: Grant,
    /// Slots that the host has for instances, to say so when they run out.
    pub instances: u32,
}

/// Runs `request` in a fresh instance, until its answer begins; the body carries the rest.
///
/// # Errors
/// When the guest gave no answer.
pub async fn run<B>(
    callable: Arc<Callable>,
    request: Request<B>,
    invocation: Arc<Invocation>,
) -> Result<Response<Body>, RequestError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<wasmtime_wasi_http::Error>,
{
    let (send, head) = oneshot::channel();
    let guest = tokio::spawn(guarded(callable, request, send, invocation.clone()));
    let held = AbortOnDrop(Some(guest.abort_handle()));
    match head.await {
        Ok(Ok(response)) => Ok(answer(response, held, &invocation)),
        // The guest itself says that it cannot answer.
        Ok(Err(code)) => {
            tracing::warn!(function = %invocation.function, id = %invocation.id, ?code, "guest gave an error for an answer");
            Err(RequestError::Failed)
        }
        Err(_) => Err(ended(guest).await),
    }
}

fn answer(response: Response<Body>, held: AbortOnDrop, invocation: &Invocation) -> Response<Body> {
    let mut response = response.map(|body| GuestBody::new(body, held).boxed_unsync());
    let id = HeaderValue::from_str(&invocation.id).expect("an id is hexadecimal digits and a dash");
    response.headers_mut().insert("x-hob-invocation", id);
    response
}

/// Why the guest ended without an answer.
async fn ended(guest: JoinHandle<Result<(), RequestError>>) -> RequestError {
    match guest.await {
        Ok(Ok(())) => RequestError::NoAnswer,
        Ok(Err(error)) => error,
        Err(panic) => {
            tracing::error!(%panic, "the host panicked while it ran a guest");
            RequestError::Failed
        }
    }
}

/// The guest's run, bounded by its wall-clock limit, its end noted.
async fn guarded<B>(
    callable: Arc<Callable>,
    request: Request<B>,
    send: oneshot::Sender<Head>,
    invocation: Arc<Invocation>,
) -> Result<(), RequestError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<wasmtime_wasi_http::Error>,
{
    let wall = callable.limits.wall();
    let deadline = invocation.started + wall;
    let run = invoke(&callable, request, send, invocation.clone(), deadline);
    // Two guards: the timer for a guest that waits, the epoch for one that computes and so lets no timer fire.
    let result = match tokio::time::timeout_at(deadline.into(), run).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(explain(error, &callable, &invocation)),
        Err(_) => Err(RequestError::Deadline(wall)),
    };
    if let Err(RequestError::Deadline(_)) = result {
        tracing::warn!(function = %invocation.function, id = %invocation.id, wall_ms = wall.as_millis() as u64, "deadline");
    }
    invocation.mark(|marks| marks.outcome = result.as_ref().err().map_or("ok", RequestError::code));
    result
}

async fn invoke<B>(
    callable: &Callable,
    request: Request<B>,
    send: oneshot::Sender<Head>,
    invocation: Arc<Invocation>,
    deadline: Instant,
) -> wasmtime::Result<()>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<wasmtime_wasi_http::Error>,
{
    let mut store = store(callable, invocation.clone(), deadline);
    let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
    let out = store.data_mut().http().new_response_outparam(send)?;
    let accepted = invocation.started.elapsed();
    let proxy = callable.linked.pre.instantiate_async(&mut store).await?;
    let instantiated = invocation.started.elapsed();
    invocation.mark(|marks| (marks.accept, marks.instantiate) = (accepted, instantiated - accepted));
    proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
}

fn store(callable: &Callable, invocation: Arc<Invocation>, deadline: Instant) -> Store<State> {
    let state = State::new(callable.limits, callable.models.clone(), invocation);
    let mut store = Store::new(callable.linked.pre.engine(), state);
    store.limiter(|state| &mut state.limits);
    store.set_hostcall_fuel(crate::host::MAX_TRANSFER_BYTES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        Ok(if Instant::now() >= deadline {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))
        })
    });
    store
}

/// A guest's end in the host's words; the details go to the log, under the invocation's id.
fn explain(error: wasmtime::Error, callable: &Callable, invocation: &Invocation) -> RequestError {
    if error.is::<PoolConcurrencyLimitError>() {
        return RequestError::Busy(callable.instances);
    }
    if let Some(Trap::Interrupt) = error.downcast_ref() {
        return RequestError::Deadline(callable.limits.wall());
    }
    if let Some(I32Exit(0)) = error.downcast_ref() {
        return RequestError::NoAnswer;
    }
    tracing::warn!(function = %invocation.function, id = %invocation.id, error = format!("{error:#}"), "guest failed");
    RequestError::Failed
}

struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    /// Lets the task go on alone.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// An answer's body, which holds the guest that makes it.
struct GuestBody {
    body: Body,
    /// Let go at the end of the body: a guest may work on after its answer, until its deadline.
    guest: Option<AbortOnDrop>,
}

impl GuestBody {
    fn new(body: Body, held: AbortOnDrop) -> Self {
        let mut body = Self { body, guest: Some(held) };
        // An empty body is never polled.
        body.release_at_end(false);
        body
    }

    fn release_at_end(&mut self, ended: bool) {
        if (ended || self.body.is_end_stream())
            && let Some(held) = self.guest.take()
        {
            held.release();
        }
    }
}

impl http_body::Body for GuestBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.release_at_end(matches!(frame, Poll::Ready(None)));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
