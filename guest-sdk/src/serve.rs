//! From the exported `wasi:http` handler to the author's function, and back.

use crate::body::{Arriving, Body, Kind, Writer};
use crate::{Error, IntoResponse, Request, Response, Result, StatusCode};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use wasip2::http::types::{self as wasi, Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

/// Answers one request: what the `handler` attribute calls.
pub fn serve(request: IncomingRequest, out: ResponseOutparam, handler: impl AsyncFnOnce(Request) -> Response) {
    wstd::runtime::block_on(async {
        let response = match receive(request) {
            Ok(request) => handler(request).await,
            Err(error) => error.into_response(),
        };
        // Nobody is left to tell: the client has gone, or sees from the missing end that something failed.
        let _ = send(response, out).await;
    });
}

/// The same for a handler that does not look at the request: what it is need not cross the boundary.
pub fn serve_any(request: IncomingRequest, out: ResponseOutparam, handler: impl AsyncFnOnce(Request) -> Response) {
    drop(request);
    wstd::runtime::block_on(async {
        // As above.
        let _ = send(handler(Request::new(Body::empty())).await, out).await;
    });
}

fn receive(incoming: IncomingRequest) -> Result<Request> {
    let wrong = |error: &dyn std::fmt::Display| Error::bad_request(format!("the request makes no sense: {error}"));
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method(&incoming.method()).map_err(|error| wrong(&error))?;
    *request.uri_mut() = uri(&incoming).map_err(|error| wrong(&error))?;
    for (name, value) in incoming.headers().entries() {
        let name = HeaderName::try_from(name).map_err(|error| wrong(&error))?;
        request.headers_mut().append(name, HeaderValue::try_from(value).map_err(|error| wrong(&error))?);
    }
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let body = incoming.consume().expect("asked for once");
    *request.body_mut() = Body(Kind::Arriving(Arriving::new(body, length)));
    Ok(request)
}

fn method(method: &wasi::Method) -> Result<Method, http::method::InvalidMethod> {
    Ok(match method {
        wasi::Method::Get => Method::GET,
        wasi::Method::Head => Method::HEAD,
        wasi::Method::Post => Method::POST,
        wasi::Method::Put => Method::PUT,
        wasi::Method::Delete => Method::DELETE,
        wasi::Method::Connect => Method::CONNECT,
        wasi::Method::Options => Method::OPTIONS,
        wasi::Method::Trace => Method::TRACE,
        wasi::Method::Patch => Method::PATCH,
        wasi::Method::Other(name) => Method::from_bytes(name.as_bytes())?,
    })
}

fn uri(incoming: &IncomingRequest) -> Result<Uri, http::Error> {
    let path = incoming.path_with_query().unwrap_or_else(|| "/".into());
    let Some(authority) = incoming.authority() else {
        return Ok(Uri::try_from(path)?);
    };
    let scheme = match incoming.scheme() {
        Some(wasi::Scheme::Https) => "https".into(),
        Some(wasi::Scheme::Other(scheme)) => scheme,
        Some(wasi::Scheme::Http) | None => "http".to_owned(),
    };
    Uri::builder().scheme(scheme.as_str()).authority(authority).path_and_query(path).build()
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
    let mut writer = Writer::new(body.write().expect("asked for once"));
    response.into_body().write(&mut writer).await?;
    drop(writer);
    Ok(OutgoingBody::finish(body, None)?)
}

/// The headers in the host's form, with the length where it is known.
fn head(response: &mut Response) -> Result<Fields> {
    if let Some(length) = response.body().length() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    fields(response.headers())
}

fn fields(headers: &HeaderMap) -> Result<Fields> {
    let list: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    Fields::from_list(&list).map_err(|error| {
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the host refused the response's headers: {error}"))
    })
}
