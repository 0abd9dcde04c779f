//! From the exported `wasi:http` handler to the author's function, and back.

use crate::body::{Body, Kind, Writer};
use crate::{Error, IntoResponse, Request, Response, Result, StatusCode};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use std::pin::pin;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wstd::http::{Body as Bytes, BodyExt};

/// Answers one request: what the `handler` attribute calls.
pub fn serve(request: IncomingRequest, out: ResponseOutparam, handler: impl AsyncFnOnce(Request) -> Response) {
    wstd::runtime::block_on(async {
        let response = match wstd::http::request::try_from_incoming(request) {
            Ok(request) => handler(request.map(Body::from)).await,
            Err(error) => Error::bad_request(format!("{error:#}")).into_response(),
        };
        // Nobody is left to tell: the client has gone, or sees from the missing end that something failed.
        let _ = send(response, out).await;
    });
}

async fn send(mut response: Response, out: ResponseOutparam) -> Result<()> {
    let fields = head(&mut response).or_else(|error| {
        response = error.into_response();
        head(&mut response)
    })?;
    let outgoing = OutgoingResponse::new(fields);
    let status = response.status().as_u16();
    outgoing.set_status_code(status).expect("StatusCode is a valid status");
    let body = outgoing.body().expect("asked for once");
    ResponseOutparam::set(out, Ok(outgoing));
    let writer = Writer::new(body.write().expect("asked for once"));
    match response.into_body().0 {
        Kind::Bytes(bytes) => copy(bytes, writer).await?,
        Kind::Produced(producer) => producer.write(writer).await?,
    }
    Ok(OutgoingBody::finish(body, None)?)
}

/// The headers in the host's form, with the length where it is known.
fn head(response: &mut Response) -> Result<Fields> {
    if let Some(length) = response.body().known_length() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    fields(response.headers())
}

fn fields(headers: &HeaderMap) -> Result<Fields> {
    let list: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    Fields::from_list(&list).map_err(|error| {
        Error::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the host refused the response's headers: {error}"),
        )
    })
}

async fn copy(bytes: Bytes, mut out: Writer) -> Result<()> {
    let mut frames = pin!(bytes.into_boxed_body());
    while let Some(frame) = frames.frame().await {
        let frame = frame.map_err(|error| Error::bad_request(format!("{error:#}")))?;
        if let Some(data) = frame.data_ref() {
            out.write(data).await?;
        }
    }
    Ok(())
}
