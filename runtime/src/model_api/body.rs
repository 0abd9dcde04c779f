//! Bodies: a request's as a whole, an answer's from JSON.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refused::Refused;
use crate::host::infer::beside;
use crate::request::{Body, BoxError};

/// How long a body may take to come: one of the usual limit then needs half a megabyte a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// All bodies that are not understood yet have room for so many of the largest.
const AT_ONCE: usize = 4;

/// Room for the bodies of requests.
pub(super) struct Bodies {
    room: Arc<Semaphore>,
    most: usize,
    patience: Duration,
}

/// A request's body; its room is free again when it was read.
pub(super) struct Given {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl Bodies {
    /// For bodies of `most` bytes.
    pub fn new(most: usize) -> Self {
        let room = most.saturating_mul(AT_ONCE).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(room)), most, patience: PATIENCE }
    }

    /// Reads a request's body.
    pub async fn read<B>(&self, body: B) -> Result<Given, Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let read = tokio::time::timeout(self.patience, self.collect(Box::pin(body))).await;
        read.unwrap_or_else(|_| Err(Refused::slow(self.patience)))
    }

    /// Room is taken as bytes come, not as they are announced: who sends nothing holds up nobody.
    async fn collect<B>(&self, mut body: B) -> Result<Given, Refused>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let taken = |bytes: usize| {
            let bytes = u32::try_from(bytes).map_err(|_| Refused::too_large(self.most))?;
            self.room.clone().try_acquire_many_owned(bytes).map_err(|_| Refused::crowded())
        };
        let (mut bytes, mut room) = (Vec::new(), taken(0)?);
        while let Some(frame) = body.frame().await {
            let broken =
                |error: B::Error| Refused::invalid(None, format!("the request's body did not come: {}", error.into()));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if bytes.len() + data.len() > self.most {
                return Err(Refused::too_large(self.most));
            }
            room.merge(taken(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok(Given { bytes, _room: room })
    }
}

impl Given {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What it says; a long one is read where it holds up nobody.
    pub async fn json<T: DeserializeOwned + Send + 'static>(self) -> Result<T, Refused> {
        let read = beside(self.len(), move || self.read()).await;
        read.map_err(|error| Refused::fault(format!("the request's body could not be read: {error}")))?
    }

    /// The same, on this thread.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, Refused> {
        if self.bytes.is_empty() {
            return Err(Refused::invalid(None, "missing request body"));
        }
        serde_json::from_slice(&self.bytes).map_err(|error| Refused::json(&error))
    }
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    whole(status, "application/json", value.to_string().into())
}

/// An answer in JSON that is written already.
pub(super) fn written(json: &'static str) -> Response<Body> {
    whole(StatusCode::OK, "application/json", Bytes::from_static(json.as_bytes()))
}

/// An answer in words.
pub(super) fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    whole(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn whole(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use tokio::sync::mpsc;

    use super::*;

    /// A body that comes piece by piece.
    struct Pieces(mpsc::Receiver<&'static [u8]>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
        }
    }

    fn status(read: Result<Given, Refused>) -> u16 {
        read.map_or_else(|refused| refused.status.as_u16(), |_| 200)
    }

    #[tokio::test]
    async fn room_is_taken_as_bytes_come_and_given_back_as_they_are_read() {
        let bodies = Bodies::new(4);
        let full = |bytes: &'static [u8]| Full::new(Bytes::from_static(bytes));
        assert_eq!(status(bodies.read(full(b"12345")).await), 413);
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(bodies.read(full(b"1234")).await.unwrap());
        }
        assert_eq!(status(bodies.read(full(b"1")).await), 503);
        assert_eq!(held.pop().unwrap().json::<u32>().await.unwrap(), 1234);
        assert_eq!(status(bodies.read(full(b"1")).await), 200);
        let empty = bodies.read(full(b"")).await.unwrap().json::<u32>().await.unwrap_err();
        assert_eq!((empty.status.as_u16(), &*empty.message), (400, "missing request body"));
    }

    #[tokio::test]
    async fn who_never_ends_is_told_so() {
        let (send, pieces) = mpsc::channel(1);
        send.send(&b"12"[..]).await.unwrap();
        let bodies = Bodies { patience: Duration::from_millis(1), ..Bodies::new(9) };
        assert_eq!(status(bodies.read(Pieces(pieces)).await), 408);
        drop(send);
    }
}
