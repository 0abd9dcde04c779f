//! What a handler's `?` makes of an error: a status and a line of JSON for the client.

use crate::{Body, IntoResponse, ModelError, Response, StatusCode};
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use std::{fmt, time::Duration};

/// A result whose error is an answer to the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that is an answer: a status, a word for programs and a sentence for people.
///
/// The client gets `{"error":{"code":"busy","message":"the host is busy; retry in 250 ms"}}`. Every
/// [`std::error::Error`] becomes one with `?`: a [`ModelError`] with the status it names, any other with 500 and
/// its own message, so [`Error::new`] is the way to say something else to the client.
///
/// Like other errors of this kind it does not itself implement `std::error::Error`.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    code: String,
    message: String,
    retry_after: Option<Duration>,
    /// The methods to use instead.
    allowed: Option<&'static str>,
}

impl Error {
    /// An error with this status; its code is the status in words, such as `bad-request`.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let code = status.canonical_reason().unwrap_or("error").to_lowercase().replace(' ', "-");
        Self { status, code, message: message.into(), retry_after: None, allowed: None }
    }

    /// The request makes no sense: status 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is nothing at this path: status 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// This path takes only these methods, named as in `GET, POST`: status 405.
    pub fn method_not_allowed(allowed: &'static str) -> Self {
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("this address takes {allowed}"));
        Self { allowed: Some(allowed), ..error }
    }

    /// The same error under another code, for programs that tell errors apart.
    pub fn with_code(self, code: impl Into<String>) -> Self {
        Self { code: code.into(), ..self }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// A word for programs, such as `busy` or `bad-request`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// A sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long the client should wait before it tries again; sent as `retry-after` in whole seconds.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "code": self.code, "message": self.message })
    }

    fn of_model(error: &ModelError) -> Self {
        let (status, code) = match error {
            ModelError::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            ModelError::NotGranted(_) => (StatusCode::FORBIDDEN, "not-granted"),
            ModelError::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            ModelError::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-long"),
            ModelError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            ModelError::Fault(_) => (StatusCode::INTERNAL_SERVER_ERROR, "fault"),
        };
        let retry_after = match error {
            ModelError::Busy { retry_after } => Some(*retry_after),
            _ => None,
        };
        Self { status, code: code.into(), message: error.to_string(), retry_after, allowed: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let error: &(dyn std::error::Error + 'static) = &error;
        match error.downcast_ref::<ModelError>() {
            Some(error) => Self::of_model(error),
            None => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.to_json() });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up: 0 would mean "at once".
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000) as u64));
        }
        if let Some(methods) = self.allowed {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: ModelError) -> (u16, String) {
        let error = Error::from(error);
        (error.status().as_u16(), error.code().to_owned())
    }

    #[test]
    fn each_refusal_has_its_status() {
        assert_eq!(of(ModelError::NotFound("m".into())), (404, "not-found".into()));
        assert_eq!(of(ModelError::NotGranted("m".into())), (403, "not-granted".into()));
        assert_eq!(of(ModelError::TooLong { needed: 9, available: 8 }), (413, "too-long".into()));
        assert_eq!(of(ModelError::Invalid("no".into())), (400, "invalid".into()));
        assert_eq!(of(ModelError::Fault("no".into())), (500, "fault".into()));
    }

    #[test]
    fn busy_says_when_to_retry() {
        let busy = ModelError::Busy { retry_after: Duration::from_millis(1200) };
        let response = Error::from(busy).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
    }

    #[test]
    fn a_wrong_method_names_the_right_ones() {
        let response = Error::method_not_allowed("GET, POST").into_response();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()[ALLOW], "GET, POST");
    }

    #[test]
    fn any_other_error_is_ours_to_fix() {
        let error = Error::from("x".parse::<u32>().expect_err("not a number"));
        assert_eq!((error.status().as_u16(), error.code()), (500, "internal-server-error"));
        assert_eq!(error.message(), "invalid digit found in string");
    }

    #[test]
    fn the_code_is_the_status_in_words() {
        assert_eq!(Error::bad_request("no").code(), "bad-request");
        assert_eq!(Error::method_not_allowed("no").with_code("read-only").code(), "read-only");
    }
}
