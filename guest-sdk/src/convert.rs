//! What a handler may take and give.

use crate::{Body, Error, Request, Response, Result, StatusCode, Tokens, sse};
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::{Serialize, de::DeserializeOwned};
use std::future::Future;

/// What a handler may take: made from the request, or refused with a status.
pub trait FromRequest: Sized {
    /// Makes the handler's argument.
    ///
    /// # Errors
    /// What the client is answered instead.
    fn from_request(request: Request) -> impl Future<Output = Result<Self>>;
}

/// What a handler may give.
pub trait IntoResponse {
    /// The response that stands for this value.
    fn into_response(self) -> Response;
}

/// JSON: as an argument the request's body, as an answer `application/json`.
///
/// A body that is not the JSON expected is answered with 400 and the line and column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Json<T>(pub T);

/// The query of the request's address, such as `?n=3&word=yes`, as a struct with fields `n` and `word`.
///
/// One that does not fit is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<T>(pub T);

/// A page: `text/html` in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Html<T>(pub T);

impl<T: DeserializeOwned> Query<T> {
    /// The query of a request whose body is still needed.
    ///
    /// # Errors
    /// Status 400 that says what does not fit.
    pub fn of(request: &Request) -> Result<Self> {
        let query = request.uri().query().unwrap_or_default();
        match serde_urlencoded::from_str(query) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Error::bad_request(format!("the query {query:?} does not fit: {error}"))),
        }
    }
}

impl FromRequest for Request {
    async fn from_request(request: Request) -> Result<Self> {
        Ok(request)
    }
}

impl<T: DeserializeOwned> FromRequest for Query<T> {
    async fn from_request(request: Request) -> Result<Self> {
        Self::of(&request)
    }
}

impl<T: DeserializeOwned> FromRequest for Json<T> {
    async fn from_request(request: Request) -> Result<Self> {
        request.into_body().json().await.map(Self)
    }
}

impl FromRequest for String {
    async fn from_request(request: Request) -> Result<Self> {
        request.into_body().text().await
    }
}

impl FromRequest for Vec<u8> {
    async fn from_request(request: Request) -> Result<Self> {
        request.into_body().bytes().await
    }
}

fn with_type(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for () {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl IntoResponse for StatusCode {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self;
        response
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Response {
        with_type("text/plain; charset=utf-8", self)
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        with_type("text/plain; charset=utf-8", self)
    }
}

impl IntoResponse for Vec<u8> {
    fn into_response(self) -> Response {
        with_type("application/octet-stream", self)
    }
}

impl<T: Into<Body>> IntoResponse for Html<T> {
    fn into_response(self) -> Response {
        with_type("text/html; charset=utf-8", self.0)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(text) => with_type("application/json", text),
            Err(error) => Error::from(error).into_response(),
        }
    }
}

impl IntoResponse for Tokens {
    fn into_response(self) -> Response {
        sse::tokens(self)
    }
}

impl<T: IntoResponse, E: Into<Error>> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(answer) => answer.into_response(),
            Err(error) => error.into().into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_carry_their_type() {
        assert_eq!("hello".into_response().headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(Json([1, 2]).into_response().headers()[CONTENT_TYPE], "application/json");
        assert_eq!(Html("<p>").into_response().headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(().into_response().status(), StatusCode::NO_CONTENT);
    }

    #[test]
    fn a_query_that_does_not_fit_is_refused() {
        #[derive(serde::Deserialize)]
        struct Count {
            n: u32,
        }
        let ask =
            |uri: &str| Query::<Count>::of(&http::Request::builder().uri(uri).body(Body::empty()).expect("a request"));
        assert_eq!(ask("/?n=3").expect("it fits").0.n, 3);
        let refusal = ask("/?n=three").err().expect("it does not fit");
        assert_eq!(refusal.status(), StatusCode::BAD_REQUEST);
        assert!(refusal.message().contains("n=three"));
    }
}
