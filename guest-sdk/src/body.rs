//! The bytes of a request or a response: in memory, arriving, or made as they are sent.

use crate::{Error, Result, StatusCode};
use serde::de::DeserializeOwned;
use std::{fmt, future::Future, pin::Pin};
use wstd::http::{Body as Bytes, BodyExt};
use wstd::io::AsyncOutputStream;

/// The bytes of a request or a response.
///
/// A request's body can be the body of a response: `Response::new(request.into_body())` sends it back as it arrives.
#[derive(Debug)]
pub struct Body(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    /// In memory, or arriving from the client.
    Bytes(Bytes),
    /// Made by the function while it is sent.
    Produced(Producer),
}

/// Writes a body from beginning to end.
pub(crate) struct Producer(Box<dyn FnOnce(Writer) -> Written>);

type Written = Pin<Box<dyn Future<Output = Result<()>>>>;

impl Body {
    /// Most bytes that [`bytes`](Self::bytes), [`text`](Self::text) and [`json`](Self::json) hold in memory: 16 MiB.
    pub const MOST_BYTES: usize = 16 << 20;

    /// A body of no bytes.
    pub fn empty() -> Self {
        Self::from("")
    }

    /// A body that `produce` writes piece by piece, each sent at once.
    ///
    /// If it gives an error, the answer breaks off there and the client sees an incomplete body. If the client leaves,
    /// writing fails, and the host may end the instance.
    ///
    /// ```no_run
    /// # use hob_sdk::{Body, Response, sleep};
    /// # use std::time::Duration;
    /// let response = Response::new(Body::produce(async |out| {
    ///     for number in 1..=3 {
    ///         out.write(format!("{number}\n")).await?;
    ///         sleep(Duration::from_secs(1)).await;
    ///     }
    ///     Ok(())
    /// }));
    /// ```
    pub fn produce(produce: impl AsyncFnOnce(&mut Writer) -> Result<()> + 'static) -> Self {
        let boxed = |mut out| -> Written { Box::pin(async move { produce(&mut out).await }) };
        Self(Kind::Produced(Producer(Box::new(boxed))))
    }

    /// All the bytes.
    ///
    /// # Errors
    /// Status 413 past [`MOST_BYTES`](Self::MOST_BYTES), 400 if the client stopped half-way.
    pub async fn bytes(self) -> Result<Vec<u8>> {
        let mut frames = self.arriving()?.into_boxed_body();
        let mut bytes = Vec::new();
        while let Some(frame) = frames.frame().await {
            let frame = frame.map_err(|error| Error::bad_request(format!("reading the body: {error:#}")))?;
            let piece = frame.data_ref().map_or(&[][..], |data| data);
            if bytes.len() + piece.len() > Self::MOST_BYTES {
                return Err(too_large());
            }
            bytes.extend_from_slice(piece);
        }
        Ok(bytes)
    }

    /// All the bytes as text.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and 400 if they are not UTF-8.
    pub async fn text(self) -> Result<String> {
        let bytes = self.bytes().await?;
        String::from_utf8(bytes).map_err(|error| Error::bad_request(format!("the body is not text: {error}")))
    }

    /// All the bytes, read as JSON.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and 400 that says where it is not the JSON expected.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::bad_request(format!("the body is not the JSON expected: {error}")))
    }

    /// How many bytes there are, where that is known before they are sent.
    pub(crate) fn known_length(&self) -> Option<u64> {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.content_length(),
            Kind::Produced(_) => None,
        }
    }

    fn arriving(self) -> Result<Bytes> {
        match self.0 {
            Kind::Bytes(bytes) => Ok(bytes),
            Kind::Produced(_) => Err(Error::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a produced body can only be sent",
            )),
        }
    }
}

fn too_large() -> Error {
    let most = Body::MOST_BYTES >> 20;
    Error::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is over {most} MiB; send it in parts"),
    )
}

impl Producer {
    pub(crate) async fn write(self, out: Writer) -> Result<()> {
        (self.0)(out).await
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Producer")
    }
}

macro_rules! body_from {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Body {
            fn from(bytes: $kind) -> Self {
                Self(Kind::Bytes(bytes.into()))
            }
        }
    )*};
}
body_from!(&str, String, &[u8], Vec<u8>, Bytes);

/// Where a produced body is written.
#[derive(Debug)]
pub struct Writer(AsyncOutputStream);

impl Writer {
    pub(crate) fn new(out: wasip2::io::streams::OutputStream) -> Self {
        Self(AsyncOutputStream::new(out))
    }

    /// Sends these bytes now, and waits while the client is slower than the function.
    ///
    /// # Errors
    /// The client has left.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let bytes = bytes.as_ref();
        if !bytes.is_empty() {
            self.0.write_all(bytes).await?;
            self.0.flush().await?;
        }
        Ok(())
    }
}
