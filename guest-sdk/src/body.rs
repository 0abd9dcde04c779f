//! The bytes of a request or a response: in memory, arriving, or made as they are sent.

use crate::{Error, Result, StatusCode};
use serde::de::DeserializeOwned;
use std::{fmt, future::Future, pin::Pin};
use wasip2::http::types::IncomingBody;
use wstd::io::{AsyncInputStream, AsyncOutputStream};

/// The bytes of a request or a response.
///
/// A request's body can be the body of a response: `Response::new(request.into_body())` sends it back as it arrives.
#[derive(Debug)]
pub struct Body(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    /// In memory.
    Bytes(Vec<u8>),
    /// Sent by the client, as far as it has come.
    Arriving(Arriving),
    /// Made by the function while it is sent.
    Produced(Producer),
}

/// A body on its way from the client.
#[derive(Debug)]
pub(crate) struct Arriving {
    // First, so that it is dropped before the body that it belongs to.
    stream: AsyncInputStream,
    _body: IncomingBody,
    length: Option<u64>,
}

/// Writes a body from beginning to end.
pub(crate) struct Producer(Box<dyn FnOnce(&mut Writer) -> Written<'_>>);

type Written<'w> = Pin<Box<dyn Future<Output = Result<()>> + 'w>>;

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
        Self(Kind::Produced(Producer(Box::new(|out| Box::pin(async move { produce(out).await })))))
    }

    /// All the bytes.
    ///
    /// # Errors
    /// Status 413 past [`MOST_BYTES`](Self::MOST_BYTES), 400 if the client stopped half-way.
    pub async fn bytes(self) -> Result<Vec<u8>> {
        match self.0 {
            Kind::Bytes(bytes) => Ok(bytes),
            Kind::Arriving(arriving) => arriving.bytes().await,
            Kind::Produced(_) => Err(Error::new(StatusCode::INTERNAL_SERVER_ERROR, "a produced body can only be sent")),
        }
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
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.0 {
            Kind::Bytes(bytes) => Some(bytes.len() as u64),
            Kind::Arriving(arriving) => arriving.length,
            Kind::Produced(_) => None,
        }
    }

    pub(crate) async fn write(self, out: &mut Writer) -> Result<()> {
        match self.0 {
            Kind::Bytes(bytes) => out.write(bytes).await,
            Kind::Arriving(arriving) => arriving.copy(out).await,
            Kind::Produced(Producer(produce)) => produce(out).await,
        }
    }
}

impl Arriving {
    /// A piece is as much as has come, up to this.
    const PIECE_BYTES: usize = 64 << 10;

    pub(crate) fn new(body: IncomingBody, length: Option<u64>) -> Self {
        let stream = AsyncInputStream::new(body.stream().expect("asked for once"));
        Self { stream, _body: body, length }
    }

    async fn bytes(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; Self::PIECE_BYTES];
        loop {
            match self.read(&mut piece).await? {
                [] => return Ok(bytes),
                piece if bytes.len() + piece.len() > Body::MOST_BYTES => return Err(too_large()),
                piece => bytes.extend_from_slice(piece),
            }
        }
    }

    async fn copy(self, out: &mut Writer) -> Result<()> {
        let mut piece = vec![0; Self::PIECE_BYTES];
        loop {
            match self.read(&mut piece).await? {
                [] => return Ok(()),
                piece => out.write(piece).await?,
            }
        }
    }

    /// What has come, in `piece`; empty at the end.
    async fn read<'p>(&self, piece: &'p mut [u8]) -> Result<&'p [u8]> {
        let read = self.stream.read(piece).await;
        let read = read.map_err(|error| Error::bad_request(format!("the body broke off: {error}")))?;
        Ok(&piece[..read])
    }
}

fn too_large() -> Error {
    let most = Body::MOST_BYTES >> 20;
    Error::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {most} MiB; send it in parts"))
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
body_from!(&str, String, &[u8], Vec<u8>);

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
