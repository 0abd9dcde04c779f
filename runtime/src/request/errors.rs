//! Why a request got no answer from a guest, and what its client is told: the only table from errors to statuses.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};

use super::Body;

/// Why a request got no answer from a guest.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// No function has this path.
    #[error("no function takes the path `{0}`; `hob list` shows the routes")]
    NoRoute(String),
    /// Nothing has this name.
    #[error("no function is called `{0}`; `hob list` shows those that are")]
    NoFunction(String),
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
    /// Its body is larger than the function takes.
    #[error(
        "the request's body has more than the {0} bytes that the function takes; send less, or raise `limits.request_bytes`"
    )]
    TooLarge(u64),
    /// Its headers are larger than the function takes.
    #[error(
        "the request's headers have {bytes} bytes; the function takes {most}; send less, or raise `limits.header_bytes`"
    )]
    HeadersTooLarge {
        /// What they have.
        bytes: usize,
        /// What is taken.
        most: u32,
    },
    /// The function runs and queues as many requests as it may.
    #[error("{running} requests of this function run and up to {queued} wait: {why}; try again")]
    TooMany {
        /// Most that run.
        running: u32,
        /// Most that wait.
        queued: u32,
        /// Why this one could not.
        why: &'static str,
    },
    /// The host takes no more work.
    #[error("this host is stopping; ask another, or again in a moment")]
    Stopping,
    /// All instance slots of the host are taken.
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
    #[error("the function was not done within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// The guest computed for as long as it may.
    #[error("the function used up its {} ms of processor time", .0.as_millis())]
    Cpu(Duration),
    /// The guest announced a larger answer than it may give.
    #[error("the function's answer has more than the {0} bytes that it may send; raise `limits.response_bytes`")]
    AnswerTooLarge(u64),
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
            Self::NoFunction(_) => (StatusCode::NOT_FOUND, "no-function"),
            Self::NoRevision { .. } => (StatusCode::NOT_FOUND, "no-revision"),
            Self::OtherMethods(_) => (StatusCode::METHOD_NOT_ALLOWED, "method"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-request"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::HeadersTooLarge { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large"),
            Self::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too-many"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Self::Broken { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "broken"),
            Self::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
            Self::Cpu(_) => (StatusCode::GATEWAY_TIMEOUT, "cpu"),
            Self::AnswerTooLarge(_) => (StatusCode::BAD_GATEWAY, "answer-too-large"),
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
        if let Some(id) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(super::INVOCATION, id);
        }
        if let Self::OtherMethods(methods) = self {
            headers.insert(header::ALLOW, HeaderValue::from_str(methods).expect("methods are tokens"));
        }
        if matches!(self, Self::Busy(_) | Self::TooMany { .. } | Self::Stopping) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
