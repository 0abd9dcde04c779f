//! An answer that goes out as its tokens come. The body holds the generations: when the client leaves, hyper drops it, and they
//! are cancelled before the engine's next step.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::Sleep;

use super::refused::Refused;
use super::reply::{Reply, Said};
use crate::request::Body;

/// How long nothing may come before a line says that the connection lives.
const SILENCE: Duration = Duration::from_secs(15);

/// How an API writes an answer in pieces.
pub(super) trait Voice: Send + 'static {
    /// The kind of body.
    fn kind(&self) -> &'static str {
        "text/event-stream"
    }
    /// Before the first token.
    fn begin(&mut self, _reply: &Reply, _out: &mut Out) {}
    /// As more comes.
    fn say(&mut self, said: Said, reply: &Reply, out: &mut Out);
    /// After the last token.
    fn end(&mut self, reply: &Reply, out: &mut Out);
    /// Where something failed in the middle.
    fn fault(&mut self, refused: &Refused, out: &mut Out);
    /// What says that the connection lives; nothing where the protocol has nothing.
    fn silence(&self) -> &'static [u8] {
        b":\n\n"
    }
}

/// What is to go out.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    /// An event of a server-sent stream.
    pub fn event(&mut self, data: &Value) {
        self.text(&data.to_string());
    }

    /// An event that has a name.
    pub fn named(&mut self, name: &str, data: &Value) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.event(data);
    }

    /// A line of JSON.
    pub fn line(&mut self, data: &Value) {
        self.0.extend_from_slice(data.to_string().as_bytes());
        self.0.push(b'\n');
    }

    /// One whose data is no JSON.
    pub fn text(&mut self, data: &str) {
        self.0.extend_from_slice(b"data: ");
        self.0.extend_from_slice(data.as_bytes());
        self.0.extend_from_slice(b"\n\n");
    }
}

/// The answer that `voice` makes of `reply`.
pub(super) fn response(reply: Reply, voice: impl Voice) -> Response<Body> {
    let kind = voice.kind();
    let silence = Box::pin(tokio::time::sleep(SILENCE));
    let stream = Stream { reply: Some(reply), voice: Box::new(voice), begun: false, silence };
    let mut response = Response::new(stream.map_err(|never: std::convert::Infallible| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect answers before they pass them on are asked not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Stream {
    /// Until all was said.
    reply: Option<Reply>,
    voice: Box<dyn Voice>,
    begun: bool,
    silence: Pin<Box<Sleep>>,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(reply) = &mut this.reply else { return Poll::Ready(None) };
        let mut out = Out::default();
        if !std::mem::replace(&mut this.begun, true) {
            this.voice.begin(reply, &mut out);
        }
        let over = loop {
            match reply.poll_next(cx) {
                Poll::Ready(Ok(Some(said))) => this.voice.say(said, reply, &mut out),
                Poll::Ready(Ok(None)) => {
                    this.voice.end(reply, &mut out);
                    reply.call.done();
                    break true;
                }
                Poll::Ready(Err(refused)) => {
                    this.voice.fault(&refused, &mut out);
                    reply.call.called.invocation.mark(|marks| marks.outcome = refused.outcome());
                    break true;
                }
                Poll::Pending => break false,
            }
        };
        if out.0.is_empty() && !over && this.silence.as_mut().poll(cx).is_ready() {
            out.0.extend_from_slice(this.voice.silence());
        }
        if !out.0.is_empty() {
            reply.call.called.invocation.sent(out.0.len());
        }
        if over {
            this.reply = None;
        }
        match (out.0.is_empty(), over) {
            (true, true) => Poll::Ready(None),
            (true, false) => {
                // Its timer may have been the one that woke this.
                if this.silence.is_elapsed() {
                    this.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            (false, _) => {
                this.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                Poll::Ready(Some(Ok(Frame::data(out.0.into()))))
            }
        }
    }
}
