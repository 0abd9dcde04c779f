//! Why a request got no answer from a guest, and what its client is told: the only table from errors to statuses.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};

use super::Body;

/// Why a request got no answer from a guest.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No function has this path.
    #[error("no function takes the path `{0}`; `hob list` shows the routes")]
    NoRoute(String),
    /// The function has no such revision.
    #[error("function `{function}` has no revision {revision}; `hob revisions {function}` shows those it has")]
    NoRevision {
        /// The function.
        function: String,
        /// What it does not have.
        revision: String,
    },
    /// The path has routes, none of which takes the method.
    #[error("its method is not among those that this path takes: {0}")]
    OtherMethods(String),
    /// The request itself cannot be passed on.
    #[error("the request cannot be passed on: {0}")]
    BadRequest(String),
    /// All instance slots are taken.
    #[error("all {0} instances are in use; try again")]
    Busy(u32),
    /// The function's component could not be loaded when the host started.
    #[error("function `{name}` is broken: {why}; deploy it again")]
    Broken {
        /// The function.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The guest did not answer in time.
    #[error("the function did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The guest trapped or exited. What it did is in the log only: it may be nobody's business outside.
    #[error("the function failed; the log has the cause under its id")]
    Failed,
    /// The guest returned without an answer.
    #[error("the function returned without an answer")]
    NoAnswer,
}

impl RequestError {
    /// Status, and a code for programs.
    fn table(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoRoute(_) => (StatusCode::NOT_FOUND, "no-route"),
            Self::NoRevision { .. } => (StatusCode::NOT_FOUND, "no-revision"),
            Self::OtherMethods(_) => (StatusCode::METHOD_NOT_ALLOWED, "method"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-request"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Broken { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "broken"),
            Self::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
            Self::NoAnswer => (StatusCode::INTERNAL_SERVER_ERROR, "no-answer"),
        }
    }

    /// A code for programs.
    pub fn code(&self) -> &'static str {
        self.table().1
    }

    /// What the client is told. `id` finds the invocation in the log.
    pub fn response(&self, id: Option<&str>) -> Response<Body> {
        let (status, code) = self.table();
        let text = serde_json::json!({ "error": { "code": code, "message": self.to_string(), "id": id } }).to_string();
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Self::OtherMethods(methods) = self {
            headers.insert(header::ALLOW, HeaderValue::from_str(methods).expect("methods are tokens"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
