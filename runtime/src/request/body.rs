//! Bodies, counted: a request's on its way in, an answer's on its way out.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, yield_now};
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

/// Most bytes of an answer's body that are taken in before it begins.
const AHEAD_BYTES: usize = 16 << 10;
/// How often all other tasks of a thread have a turn before an answer begins without the end of its body, and for how long. A turn takes a
/// microsecond where nobody computes, and a millisecond where tens of requests are answered at once.
const AHEAD_TURNS: u32 = 40;
const AHEAD_TIME: Duration = Duration::from_millis(2);

/// An answer's body of which the beginning is here. Mostly it is all: a guest that is asked for a few bytes has written them a turn later,
/// and then the answer goes out at once, with its length, not in chunks that cost a system call and a packet each.
pub(super) struct Gathered {
    ahead: VecDeque<Frame<Bytes>>,
    /// What comes then: more of the body, the error that it ended with, or nothing.
    rest: Rest,
    /// What was known of its length before.
    hint: SizeHint,
}

enum Rest {
    More(AnswerBody),
    Error(Option<Error>),
    Nothing,
}

impl Gathered {
    /// What there is of `body` soon. A guest that takes its time is not waited for.
    pub async fn new(body: AnswerBody) -> Self {
        Self::within(AHEAD_TIME, body).await
    }

    async fn within(time: Duration, mut body: AnswerBody) -> Self {
        let hint = body.size_hint();
        let (mut ahead, mut bytes, mut turns, mut waits) = (VecDeque::new(), 0, 0, None);
        // Comes when others of the thread have had their turns; the body wakes the task sooner than that, if it can, and then it counts, too.
        let mut turn = pin!(yield_now());
        while bytes <= AHEAD_BYTES {
            let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(Some(frame)),
                Poll::Pending => {
                    let since = *waits.get_or_insert_with(Instant::now);
                    if turn.as_mut().poll(cx).is_ready() {
                        turns += 1;
                        if turns >= AHEAD_TURNS || since.elapsed() >= time {
                            return Poll::Ready(None);
                        }
                        turn.set(yield_now());
                        let _ = turn.as_mut().poll(cx);
                    }
                    Poll::Pending
                }
            });
            match frame.await {
                None => break,
                Some(None) => return Self { ahead, rest: Rest::Nothing, hint },
                Some(Some(Err(error))) => return Self { ahead, rest: Rest::Error(Some(error)), hint },
                Some(Some(Ok(frame))) => {
                    bytes += frame.data_ref().map_or(0, Bytes::len);
                    ahead.push_back(frame);
                }
            }
        }
        Self { ahead, rest: Rest::More(body), hint }
    }
}

impl http_body::Body for Gathered {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        if let Some(frame) = self.ahead.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Rest::More(body) => Pin::new(body).poll_frame(cx),
            Rest::Error(error) => Poll::Ready(error.take().map(Err)),
            Rest::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty()
            && match &self.rest {
                Rest::More(body) => body.is_end_stream(),
                Rest::Error(error) => error.is_none(),
                Rest::Nothing => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            // With a length, HTTP/1.1 has no room for trailers.
            Rest::Nothing if self.ahead.iter().all(Frame::is_data) => {
                SizeHint::with_exact(self.ahead.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum())
            }
            Rest::More(body) if self.ahead.is_empty() => body.size_hint(),
            _ => self.hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use http_body_util::BodyExt as _;

    /// A body of these frames, with so many turns of others before each.
    struct Script {
        frames: VecDeque<Result<Frame<Bytes>, Error>>,
        turns: u32,
        waited: u32,
    }

    impl http_body::Body for Script {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
            if self.waited < self.turns {
                self.waited += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.waited = 0;
            Poll::Ready(self.frames.pop_front())
        }
    }

    /// A body that says nothing, and wakes nobody.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
            Poll::Pending
        }
    }

    #[test]
    fn a_body_that_wakes_nobody_is_waited_for_no_longer() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let invocation = Arc::new(Invocation::none("f".parse().unwrap()));
        let held = Held::new(None, oneshot::channel().0);
        let body = AnswerBody::new(Silent.boxed_unsync(), Some(held), (1 << 20, None), invocation);
        let body = runtime.block_on(async {
            // As a task, beside another one.
            let other = tokio::spawn(async {
                loop {
                    yield_now().await;
                }
            });
            let body = tokio::spawn(Gathered::new(body)).await.unwrap();
            other.abort();
            body
        });
        assert!(body.ahead.is_empty() && matches!(body.rest, Rest::More(_)));
    }

    fn data(text: impl Into<Bytes>) -> Result<Frame<Bytes>, Error> {
        Ok(Frame::data(text.into()))
    }

    /// What was known when the answer began, and all that came.
    fn read(frames: Vec<Result<Frame<Bytes>, Error>>, turns: u32) -> (Option<u64>, usize, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let script = Script { frames: frames.into(), turns, waited: 0 };
            let invocation = Arc::new(Invocation::none("f".parse().unwrap()));
            let held = Held::new(None, oneshot::channel().0);
            let body = AnswerBody::new(script.boxed_unsync(), Some(held), (1 << 20, None), invocation);
            // Turns are counted here; how long they take is the machine's.
            let mut body = Gathered::within(Duration::from_secs(3600), body).await;
            let (length, ahead, mut all) = (body.size_hint().exact(), body.ahead.len(), String::new());
            loop {
                match body.frame().await {
                    None => break,
                    Some(Err(_)) => all += "!",
                    Some(Ok(frame)) if frame.is_trailers() => all += "t",
                    Some(Ok(frame)) => all += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
                }
            }
            assert!(length.is_none() || body.is_end_stream());
            (length, ahead, all)
        })
    }

    #[test]
    fn a_short_answer_goes_out_whole_with_its_length() {
        assert_eq!(read(vec![data("abc")], 0), (Some(3), 1, "abc".into()));
        assert_eq!(read(vec![data("ab"), data("cd")], 1), (Some(4), 2, "abcd".into()));
        assert_eq!(read(vec![], 1), (Some(0), 0, String::new()));
    }

    #[test]
    fn what_takes_its_time_is_not_waited_for() {
        assert_eq!(read(vec![data("abc"), data("d")], AHEAD_TURNS + 1), (None, 0, "abcd".into()));
        assert_eq!(read(vec![data("abc"), data("d")], AHEAD_TURNS), (None, 1, "abcd".into()));
        let long = "x".repeat(AHEAD_BYTES);
        let (length, ahead, all) = read((0..5).map(|_| data(long.clone())).collect(), 0);
        assert_eq!((length, ahead, all.len()), (None, 2, 5 * AHEAD_BYTES), "a long one is not kept");
    }

    #[test]
    fn time_ends_the_wait_as_well() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let script = Script { frames: vec![data("abc")].into(), turns: 2, waited: 0 };
        let invocation = Arc::new(Invocation::none("f".parse().unwrap()));
        let held = Held::new(None, oneshot::channel().0);
        let body = AnswerBody::new(script.boxed_unsync(), Some(held), (1 << 20, None), invocation);
        let body = runtime.block_on(Gathered::within(Duration::ZERO, body));
        assert!(body.ahead.is_empty() && matches!(body.rest, Rest::More(_)));
    }

    #[test]
    fn errors_and_trailers_come_and_no_length_is_promised() {
        assert_eq!(read(vec![data("ab"), Err(Error::HttpResponseIncomplete)], 0), (None, 1, "ab!".into()));
        let trailers = Ok(Frame::trailers(HeaderMap::new()));
        assert_eq!(read(vec![data("ab"), trailers], 0), (None, 2, "abt".into()));
    }
}
