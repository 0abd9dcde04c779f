//! Bodies, counted: a request's on its way in, an answer's on its way out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use wasmtime_wasi_http::{Error, WasiBody};

use super::Invocation;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// Why a request's body cannot be read on; whatever its source says.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// The same, as the guest is told.
pub(super) fn unreadable(error: impl Into<BoxError>) -> Error {
    let error = match error.into().downcast::<Error>() {
        Ok(known) => return *known,
        Err(error) => error,
    };
    match error.downcast::<hyper::Error>() {
        Ok(error) => Error::Hyper(*error),
        Err(error) => Error::InternalError(Some(error.to_string())),
    }
}

/// Bytes that a body may still have.
struct Allowance(u64);

impl Allowance {
    /// Takes the bytes that came, if some did: how many. `None` if there are more than may come.
    fn take(&mut self, polled: &Polled) -> Option<u64> {
        let Poll::Ready(Some(Ok(frame))) = polled else { return Some(0) };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.0 = self.0.checked_sub(bytes)?;
        Some(bytes)
    }
}

/// A request's body that ends with an error where it gets too long.
pub(super) struct RequestBody {
    body: WasiBody,
    left: Allowance,
    most: u64,
    invocation: Arc<Invocation>,
}

impl RequestBody {
    pub fn new(body: WasiBody, most: u64, invocation: Arc<Invocation>) -> Self {
        Self { body, left: Allowance(most), most, invocation }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match self.left.take(&frame) {
            Some(bytes) => self.invocation.received(bytes as usize),
            None => {
                self.invocation.mark(|marks| marks.request_too_large = true);
                return Poll::Ready(Some(Err(Error::HttpRequestBodySize(Some(self.most)))));
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What an answer's body holds on to. Dropped before the body's end it cancels the guest.
pub(super) struct Held {
    task: Option<AbortHandle>,
    /// Tells the guest's task that the body was read to its end, or that nobody will.
    _ended: oneshot::Sender<()>,
}

impl Held {
    /// `task` is the guest's, if it has one of its own.
    pub fn new(task: Option<AbortHandle>, ended: oneshot::Sender<()>) -> Self {
        Self { task, _ended: ended }
    }

    /// Lets the guest go on alone: it may work on after its answer, until its deadline.
    pub fn release(mut self) {
        self.task = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// An answer's body, which holds the guest that makes it.
pub(super) struct AnswerBody {
    body: WasiBody,
    guest: Option<Held>,
    left: Allowance,
    /// Bytes to come, if the answer has a length: nobody asks for more after the last of them.
    announced: Option<u64>,
    invocation: Arc<Invocation>,
}

impl AnswerBody {
    /// Of `announced` bytes, if the answer says so. Without a guest to hold, the body is one that nobody will read.
    pub fn new(
        body: WasiBody,
        guest: Option<Held>,
        (most, announced): (u64, Option<u64>),
        invocation: Arc<Invocation>,
    ) -> Self {
        let mut body = Self { body, guest, left: Allowance(most), announced, invocation };
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

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let Some(bytes) = self.left.take(&frame) else {
            let why = "the answer is cut off: it has more bytes than `limits.response_bytes`";
            let Invocation { function, id, .. } = &*self.invocation;
            tracing::warn!(%function, %id, "{why}");
            self.invocation.print("host", why);
            self.invocation.mark(|marks| marks.outcome = "answer-too-large");
            self.guest = None;
            return Poll::Ready(Some(Err(Error::HttpResponseBodySize(None))));
        };
        self.invocation.sent(bytes as usize);
        if bytes > 0
            && let Some(to_come) = &mut self.announced
        {
            *to_come = to_come.saturating_sub(bytes);
            let was_last = *to_come == 0;
            self.release_at_end(was_last);
        }
        if matches!(frame, Poll::Ready(None)) {
            // To the host's side of WASI a body that nobody writes to any more is a body that has ended.
            if self.invocation.is_cut() {
                return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
            }
            self.release_at_end(true);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
