//! Why a call has no answer, in the words of each API: one table from causes to statuses.

use std::time::Duration;

use hob_gpu::Refusal;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::body;
use crate::models::JoinRefusal;
use crate::request::Body;

/// Whose client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `{"error":{"message","type","param","code"}}`.
    OpenAi,
    /// `{"error":"..."}`.
    Ollama,
    /// `{"type":"error","error":{"type","message"}}`.
    Anthropic,
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub status: StatusCode,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    retry_after: Option<Duration>,
    allow: Option<String>,
}

impl Refused {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None, allow: None }
    }

    /// Something in the request cannot be.
    pub fn invalid(param: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        Self { param: param.into().map(str::to_owned), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The request is no JSON, or has what it should not where it should not.
    pub fn json(error: &serde_json::Error) -> Self {
        Self::invalid(None, format!("the request's body cannot be read: {error}"))
    }

    pub fn too_large(most: usize) -> Self {
        let why = format!("the request's body has more than the {most} bytes that are taken");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    }

    /// Its body does not come.
    pub fn slow(patience: Duration) -> Self {
        let why = format!("the request's body did not come within {} s; send less, or faster", patience.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, why)
    }

    /// Others' bodies have all the room there is.
    pub fn crowded() -> Self {
        let why = "this host is reading as much as it may of other requests; ask again in a moment";
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    /// A call of an API that is not answered here.
    pub fn no_such_call(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let why = format!("there is no call {path} here; GET /v1/openapi.json says which there are");
        Self { code: Some("unknown_url"), ..Self::new(StatusCode::NOT_FOUND, why) }
    }

    pub fn key(message: &str) -> Self {
        let why = format!("{message}; make one with `hob keys create`");
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, why) }
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub fn no_blob() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such blob; send it with POST")
    }

    pub fn no_model(name: &str) -> Self {
        let name: String = name.chars().take(140).collect();
        let why = format!("model '{name}' not found; `hob models list` shows those that are here");
        Self { param: Some("model".into()), code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, why) }
    }

    pub fn method(wanted: &[Method]) -> Self {
        let allow = wanted.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let why = format!("this path takes {allow}");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, why) }
    }

    pub fn stopping() -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self {
            retry_after,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "this host is stopping; ask again in a moment")
        }
    }

    pub fn fault(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The disk is full, or as full as it may be.
    pub fn no_room(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, message)
    }

    /// More may be had later.
    pub fn busy(retry_after: Duration) -> Self {
        let why = format!("busy, or a budget is used up; try again in {} ms", retry_after.as_millis());
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, why)
        }
    }

    /// How the meter and the metrics call it.
    pub fn outcome(&self) -> &'static str {
        match self.status.as_u16() {
            413 => "too-large",
            429 => "too-many",
            503 => "busy",
            400..500 => "bad-request",
            _ => "failed",
        }
    }

    /// The body of an error, also in the middle of a stream.
    pub fn json_in(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => {
                let (param, code) = (&self.param, self.code);
                json!({ "error": { "message": self.message, "type": self.openai_type(), "param": param, "code": code } })
            }
            Dialect::Ollama => json!({ "error": self.message }),
            Dialect::Anthropic => {
                json!({ "type": "error", "error": { "type": self.anthropic_type(), "message": self.message } })
            }
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            503 => "server_error",
            _ => "api_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The answer as a whole.
    pub fn response(&self, dialect: Dialect) -> Response<Body> {
        let mut response = body::json(self.status, &self.json_in(dialect));
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000).max(1) as u64));
        }
        if let Some(allow) = self.allow.as_ref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooLong { .. } => {
                Self { code: Some("context_length_exceeded"), ..Self::invalid(None, refusal.to_string()) }
            }
            Refusal::Busy { retry_after } => Self::busy(retry_after),
            Refusal::Invalid(why) => Self::invalid(None, why),
            Refusal::Fault(_) => Self::fault(refusal.to_string()),
        }
    }
}

impl From<JoinRefusal> for Refused {
    fn from(refusal: JoinRefusal) -> Self {
        match refusal {
            JoinRefusal::NotFound(name) | JoinRefusal::NotGranted(name) => Self::no_model(&name),
            JoinRefusal::Busy(wait) => {
                let why = format!("there is no room for this model now; try again in {} ms", wait.as_millis());
                Self { retry_after: Some(wait), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
            }
            JoinRefusal::Fault(why) => Self::fault(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_all_four_fields_and_says_when_to_come_back() {
        let all = [
            (Refused::invalid("n", "x"), 400, "invalid_request_error"),
            (Refused::key("x"), 401, "authentication_error"),
            (Refused::forbidden("x"), 403, "permission_error"),
            (Refused::no_model("x"), 404, "invalid_request_error"),
            (Refused::no_such_call("/v1/files"), 404, "invalid_request_error"),
            (Refused::slow(Duration::from_secs(60)), 408, "invalid_request_error"),
            (Refused::too_large(3), 413, "invalid_request_error"),
            (Refused::busy(Duration::from_millis(1200)), 429, "rate_limit_error"),
            (JoinRefusal::Busy(Duration::from_millis(1200)).into(), 503, "server_error"),
            (Refused::stopping(), 503, "server_error"),
            (Refused::crowded(), 503, "server_error"),
            (Refusal::Fault("x".into()).into(), 500, "api_error"),
        ];
        for (refused, status, kind) in all {
            assert_eq!(refused.status, status);
            let error = &refused.json_in(Dialect::OpenAi)["error"];
            assert_eq!((&error["type"], error.as_object().unwrap().len()), (&kind.into(), 4), "{error}");
            let response = refused.response(Dialect::OpenAi);
            let wait = response.headers().get(header::RETRY_AFTER).map(|wait| wait.to_str().unwrap().to_owned());
            assert_eq!(wait.is_some(), [429, 503].contains(&status), "{error}");
            assert!(wait.is_none_or(|wait| wait == "2" || refused.message.contains("in a moment")), "{error}");
        }
    }
}
