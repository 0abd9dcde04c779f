//! A request in an instance.
//!
//! The guest runs as a task of its own beside the connection, on the same thread. Whoever waits for its answer
//! holds the task: first the call, then the response body. When the client leaves, hyper drops what it holds,
//! the task is aborted, and the instance goes with all it has: memory, models, running generations.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use wasmtime::{PoolConcurrencyLimitError, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiBody;

use super::body::{AnswerBody, Body, BoxError, Gathered, Held, RequestBody, unreadable};
use super::{INVOCATION, Invocation, RequestError};
use crate::config::Limits;
use crate::instance::{Bounds, Call, Callable, Head, Meter, Spent};

/// In a request's extensions: it came over TLS.
#[derive(Clone, Copy, Debug)]
pub struct Secure;

/// Runs `request` in an instance, until its answer begins; the body carries the rest.
///
/// # Errors
/// When the guest gave no answer, or may not be called now.
pub async fn run<B>(
    callable: Arc<Callable>,
    request: Request<B>,
    invocation: Arc<Invocation>,
) -> Result<Response<Body>, RequestError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let request = request.map(|body| body.map_err(unreadable).boxed_unsync());
    let answer = call(&callable, request, &invocation).await;
    answer.map_err(|error| {
        // A guest that broke off because it could not read on is not to blame.
        let mut error = error;
        invocation.mark(|marks| {
            if marks.request_too_large {
                error = RequestError::TooLarge(callable.limits().request_bytes);
            }
            marks.outcome = error.code();
        });
        error
    })
}

async fn call(
    callable: &Arc<Callable>,
    request: Request<WasiBody>,
    invocation: &Arc<Invocation>,
) -> Result<Response<Body>, RequestError> {
    let limits = callable.limits();
    check_size(&request, limits.header_bytes, limits.request_bytes)?;
    let permit = callable.gate.admit().await?;
    invocation.mark(|marks| marks.wait = invocation.started.elapsed());
    invocation.meter.allow(invocation.started + limits.wall(), limits.cpu());
    let request = request.map(|body| match body.is_end_stream() {
        true => body,
        false => RequestBody::new(body, limits.request_bytes, invocation.clone()).boxed_unsync(),
    });
    let is_head = request.method() == Method::HEAD;
    let (send, head) = oneshot::channel();
    let (ending, ended) = oneshot::channel();
    let call = Call { request, invocation: invocation.clone(), head: send, ended };
    let (head, held) = if callable.is_shared() {
        (in_shared(callable, call, permit, head).await, Held::new(None, ending))
    } else {
        let guest = tokio::spawn(guarded(callable.clone(), call, permit));
        let held = Held::new(Some(guest.abort_handle()), ending);
        (in_own(guest, head).await, held)
    };
    let head = head?;
    let held = if is_head || is_bodiless(head.status()) {
        // Nobody reads the body; the guest is not to end for that.
        held.release();
        None
    } else {
        Some(held)
    };
    answer(head, held, limits.response_bytes, invocation).await
}

/// Refuses a request that is too large for its function before anything is made for it.
fn check_size(request: &Request<WasiBody>, header_bytes: u32, body_bytes: u64) -> Result<(), RequestError> {
    let bytes = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if bytes > header_bytes as usize {
        return Err(RequestError::HeadersTooLarge { bytes, most: header_bytes });
    }
    match content_length(request.headers()) {
        Some(length) if length > body_bytes => Err(RequestError::TooLarge(body_bytes)),
        _ => Ok(()),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn in_own(guest: JoinHandle<Result<(), RequestError>>, head: oneshot::Receiver<Head>) -> Head {
    match head.await {
        Ok(head) => head,
        // Why the guest ended without an answer.
        Err(_) => Err(match guest.await {
            Ok(Ok(())) => RequestError::NoAnswer,
            Ok(Err(error)) => error,
            Err(panic) => {
                tracing::error!(%panic, "the host panicked while it ran a guest");
                RequestError::Failed
            }
        }),
    }
}

async fn in_shared(
    callable: &Arc<Callable>,
    call: Call,
    permit: OwnedSemaphorePermit,
    head: oneshot::Receiver<Head>,
) -> Head {
    let invocation = call.invocation.clone();
    let worker = callable.place(call, permit);
    match head.await {
        Ok(head) => head,
        Err(_) if invocation.started.elapsed() >= callable.limits().wall() => {
            Err(spent_error(Spent::Wall, callable.limits()))
        }
        Err(_) => {
            let fate = worker.fate();
            tracing::warn!(function = %invocation.function, id = %invocation.id, %fate, "its shared instance ended");
            invocation.print("host", format!("its shared instance ended: {fate}"));
            Err(fate)
        }
    }
}

/// An answer with this status has no body, whatever its guest writes.
fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

async fn answer(
    response: Response<WasiBody>,
    held: Option<Held>,
    most_bytes: u64,
    invocation: &Arc<Invocation>,
) -> Result<Response<Body>, RequestError> {
    let announced = content_length(response.headers()).or_else(|| response.body().size_hint().exact());
    if held.is_some() && announced.is_some_and(|length| length > most_bytes) {
        tracing::warn!(function = %invocation.function, id = %invocation.id, most_bytes, "the answer is too large");
        invocation.print("host", format!("the answer is too large: more than {most_bytes} bytes"));
        return Err(RequestError::AnswerTooLarge(most_bytes));
    }
    let (head, body) = response.into_parts();
    let read = held.is_some();
    let body = AnswerBody::new(body, held, (most_bytes, announced), invocation.clone());
    let body = if read { Gathered::new(body).await.boxed_unsync() } else { body.boxed_unsync() };
    let mut response = Response::from_parts(head, body);
    let id = HeaderValue::from_str(&invocation.id).expect("an id is hexadecimal digits and a dash");
    response.headers_mut().insert(INVOCATION, id);
    Ok(response)
}

/// The guest's run, bounded by its limits, its end noted.
async fn guarded(callable: Arc<Callable>, call: Call, _permit: OwnedSemaphorePermit) -> Result<(), RequestError> {
    let invocation = call.invocation.clone();
    // In a box, it is not copied with the task that it is a part of.
    let result = match metered(&callable, &invocation, Box::pin(callable.serve(call))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(explain(&error, callable.bounds(), &invocation, &invocation.meter)),
        Err(spent) => Err(spent_error(spent, callable.limits())),
    };
    if let Err(error @ (RequestError::Deadline(_) | RequestError::Cpu(_))) = &result {
        tracing::warn!(function = %invocation.function, id = %invocation.id, %error, "guest stopped");
        invocation.print("host", format!("guest stopped: {error}"));
    }
    invocation.mark(|marks| {
        if marks.outcome.is_empty() || marks.outcome == "ok" {
            marks.outcome = result.as_ref().err().map_or("ok", RequestError::code);
        }
    });
    result
}

/// Runs a guest's part under its meter.
async fn metered<F: Future + Unpin>(
    callable: &Callable,
    invocation: &Invocation,
    guest: F,
) -> Result<F::Output, Spent> {
    match callable.is_free() {
        true => Ok(guest.await),
        false => invocation.meter.run(guest).await,
    }
}

/// What a guest has used up, as its caller is told.
pub(crate) fn spent_error(spent: Spent, limits: &Limits) -> RequestError {
    match spent {
        Spent::Wall => RequestError::Deadline(limits.wall()),
        Spent::Cpu => RequestError::Cpu(limits.cpu()),
    }
}

/// A guest's end in the host's words; the details go to the log, under the invocation's id.
pub(crate) fn explain(
    error: &wasmtime::Error,
    bounds: Bounds<'_>,
    invocation: &Invocation,
    meter: &Meter,
) -> RequestError {
    if error.is::<PoolConcurrencyLimitError>() {
        return RequestError::Busy(bounds.instances);
    }
    if let (Some(Trap::Interrupt), Some(spent)) = (error.downcast_ref(), meter.spent()) {
        return spent_error(spent, bounds.limits);
    }
    if let Some(I32Exit(0)) = error.downcast_ref() {
        return RequestError::NoAnswer;
    }
    tracing::warn!(function = %invocation.function, id = %invocation.id, error = format!("{error:#}"), "guest failed");
    invocation.print("host", format!("guest failed: {error:#}"));
    RequestError::Failed
}
