//! Who asks, and from where: keys, and the pages of browsers.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body;
use super::refused::Refused;
use crate::function_host::Host;
use crate::keys::Scope;
use crate::names::Tenant;
use crate::request::Body;

/// Who needs a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// Everybody, unless only this machine can reach the listener.
    Auto,
    /// Everybody.
    Required,
    /// Nobody; whoever has one is counted under its tenant.
    Optional,
}

impl std::str::FromStr for KeyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "required" => Ok(Self::Required),
            "optional" => Ok(Self::Optional),
            _ => Err("give auto, required or optional".into()),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Who pays.
    pub tenant: Tenant,
    /// May change which models there are.
    pub manages: bool,
}

impl Caller {
    /// The holder of the request's key. Where none is needed, clients send whatever they were configured with;
    /// whoever has none manages models only from this machine.
    ///
    /// `trusted`: no page asks, or one that the operator has named. Functions of this machine's tenants serve pages, too.
    pub fn of(headers: &HeaderMap, host: &Host, needed: bool, trusted: bool) -> Result<Self, Refused> {
        let given = key(headers);
        let known = given.and_then(|given| host.keys().find(given));
        match (known, given) {
            (Some(key), _) => Ok(Self { tenant: key.tenant, manages: key.scope == Scope::Admin }),
            // One of ours that is none any more must not go on under another name.
            (None, Some(given)) if given.starts_with("hob_") => Err(Refused::key("this key is not known")),
            (None, _) if needed => Err(Refused::key("this needs a key, as `Authorization: Bearer`")),
            (None, _) => Ok(Self { tenant: Tenant::default(), manages: trusted }),
        }
    }
}

fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = || {
        let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = given.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    };
    // Anthropic's clients.
    bearer().or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// The page that a browser sends a request for. A page could otherwise make its visitor's browser use, or delete, what only
/// this machine can reach.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// No page, or a browser that does not say.
    None,
    /// One that may use models.
    Allowed {
        /// What it is.
        origin: HeaderValue,
        /// The operator has named it: it may do what programs of this machine may.
        named: bool,
    },
    /// One that may not.
    Refused(String),
}

impl Origin {
    /// `allowed` are origins, `*` all of them.
    pub fn of(headers: &HeaderMap, allowed: &[String]) -> Self {
        let Some(origin) = headers.get(header::ORIGIN) else { return Self::None };
        let text = origin.to_str().unwrap_or_default();
        let listed = allowed.iter().any(|allowed| allowed == "*" || allowed.trim_end_matches('/') == text);
        match listed || is_here(text) {
            true => Self::Allowed { origin: origin.clone(), named: listed },
            false => Self::Refused(text.chars().take(200).collect()),
        }
    }

    /// Whether no page asks, or one that the operator has named.
    pub fn is_trusted(&self, headers: &HeaderMap) -> bool {
        match self {
            // Browsers leave the origin out of what they take for harmless, and say whence it comes in another header.
            Self::None => headers.get("sec-fetch-site").is_none_or(|site| site == "none"),
            Self::Allowed { named, .. } => *named,
            Self::Refused(_) => false,
        }
    }

    /// Lets the page read the answer.
    pub fn mark(&self, headers: &mut HeaderMap) {
        if let Self::Allowed { origin, .. } = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            let seen = HeaderValue::from_static("x-request-id, x-hob-invocation, retry-after");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, seen);
            headers.insert(header::VARY, HeaderValue::from_static("origin"));
        }
    }

    /// The answer to a browser that asks whether the page may ask.
    pub fn preflight(&self, asked: &HeaderMap) -> Response<Body> {
        let mut response = body::text(StatusCode::NO_CONTENT, "");
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        let methods = HeaderValue::from_static("GET, HEAD, POST, DELETE, OPTIONS");
        headers.insert(header::ALLOW, methods.clone());
        if let Self::Allowed { .. } = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
            let usual = HeaderValue::from_static("authorization, content-type, x-api-key");
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(usual));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        }
        response
    }
}

/// Whether an origin is a page, or a program's window, of this machine.
fn is_here(origin: &str) -> bool {
    let Some((scheme, host)) = origin.split_once("://") else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    match scheme {
        "http" | "https" => matches!(name, "localhost" | "127.0.0.1" | "[::1]") || name.ends_with(".localhost"),
        "app" | "file" | "tauri" | "vscode-webview" | "vscode-file" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_may_and_others_may_not() {
        for good in
            ["http://localhost", "http://localhost:3000", "https://127.0.0.1:8", "http://[::1]:5", "app://obsidian"]
        {
            assert!(is_here(good), "{good}");
        }
        for bad in
            ["http://evil.example", "http://localhost.evil.example", "null", "http://127.0.0.1.evil.example:80", ""]
        {
            assert!(!is_here(bad), "{bad}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(Origin::of(&headers, &[]), Origin::None);
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://ui.example"));
        assert!(matches!(Origin::of(&headers, &[]), Origin::Refused(from) if from == "https://ui.example"));
        for list in ["*", "https://ui.example", "https://ui.example/"] {
            assert!(matches!(Origin::of(&headers, &[list.into()]), Origin::Allowed { named: true, .. }), "{list}");
        }
    }

    #[test]
    fn only_pages_that_were_named_are_trusted() {
        let trusted = |name: &'static str, value: &'static str, named: &[String]| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            Origin::of(&headers, named).is_trusted(&headers)
        };
        assert!(Origin::None.is_trusted(&HeaderMap::new()));
        assert!(!trusted("origin", "http://localhost:8080", &[]));
        assert!(trusted("origin", "http://localhost:8080", &["http://localhost:8080".into()]));
        for site in ["cross-site", "same-site", "same-origin"] {
            assert!(!trusted("sec-fetch-site", site, &[]), "{site}");
        }
        assert!(trusted("sec-fetch-site", "none", &[]));
    }

    #[test]
    fn keys_come_in_either_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(key(&headers), None);
        headers.insert("x-api-key", HeaderValue::from_static("a"));
        assert_eq!(key(&headers), Some("a"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("bearer b"));
        assert_eq!(key(&headers), Some("b"));
    }
}
