//! Calls to servers that have models. Redirects are followed by hand, so that who asks is told to one server only
//! ([`Access`]). Addresses in messages are without queries, which may be the right to read.

use std::time::Duration;

use ureq::Body;
use ureq::http::{HeaderMap, Response, header};
use url::Url;

use super::access::{Access, Kind};
use crate::models::settings::{PullSettings, Secret};
use crate::sources::AuthoritiesError;
use crate::sources::auth::{self, Challenge};
use crate::sources::web::Agents;
pub(crate) use crate::sources::web::{is_local, may_lead, shown};

/// As many as browsers follow.
const MOST_REDIRECTS: usize = 10;

/// Why a server gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Nothing answers, or what answers breaks off.
    #[error("{url} cannot be fetched: {why}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What went wrong.
        why: Box<ureq::Error>,
    },
    /// The server refused.
    #[error("{url} answers {status}{detail}")]
    Refused {
        /// What was asked for.
        url: String,
        /// Its status.
        status: u16,
        /// What it said, after a colon.
        detail: String,
        /// When it may be asked again.
        retry_after: Option<Duration>,
    },
    /// It leads where one must not go.
    #[error("{url} leads {why}")]
    Astray {
        /// What was asked for.
        url: String,
        /// Where, and why not.
        why: String,
    },
    /// It wants a login in no way that is known here, or gives none.
    #[error("{url} wants to know who asks: {why}")]
    Login {
        /// What was asked for.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// Whom to trust cannot be read.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
}

impl WebError {
    /// Whether the same may succeed in a moment.
    pub fn passes(&self) -> bool {
        match self {
            Self::Unreachable { why, .. } => !matches!(**why, ureq::Error::BadUri(_) | ureq::Error::Tls(_)),
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// The status, if the server answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// Where.
    pub url: &'a Url,
    /// Who asks.
    pub access: &'a Access,
    /// From which byte, and to which, the last one included.
    pub range: Option<(u64, u64)>,
    /// All of it, if it is not this any more.
    pub if_range: Option<&'a str>,
    /// Which kinds of answers are understood.
    pub accept: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// All of `url`.
    pub fn new(url: &'a Url, access: &'a Access) -> Self {
        Self { url, access, range: None, if_range: None, accept: None }
    }
}

/// An answer, of whichever status.
pub struct Reply {
    /// Who answered in the end.
    pub url: Url,
    answer: Response<Body>,
}

impl Reply {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.answer.status().as_u16()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.answer.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// How long the body says it is.
    pub fn length(&self) -> Option<u64> {
        self.answer.body().content_length()
    }

    /// What changes when the file does.
    pub fn validator(&self) -> Option<String> {
        // A weak tag promises nothing about bytes.
        let tag = self.header("etag").filter(|tag| tag.starts_with('"'));
        tag.or_else(|| self.header("last-modified")).map(str::to_owned)
    }

    /// The body.
    pub fn into_reader(self) -> ureq::BodyReader<'static> {
        self.answer.into_body().into_reader()
    }

    /// The whole body, if it has `most` bytes at most.
    ///
    /// # Errors
    /// When it breaks off, or is longer.
    pub fn bytes(mut self, most: u64) -> Result<Vec<u8>, WebError> {
        let read = self.answer.body_mut().with_config().limit(most).read_to_vec();
        read.map_err(|why| WebError::Unreachable { url: shown(&self.url), why: why.into() })
    }

    /// Takes it as a refusal.
    pub fn refusal(mut self) -> WebError {
        let retry_after = self.header("retry-after").and_then(|value| value.trim().parse().ok());
        WebError::Refused {
            url: shown(&self.url),
            status: self.status(),
            detail: crate::sources::detail(&mut self.answer),
            retry_after: retry_after.map(|seconds: u64| Duration::from_secs(seconds.min(300))),
        }
    }
}

/// Makes calls.
#[derive(Clone)]
pub struct Web {
    agents: Agents,
}

impl Web {
    /// A client that trusts whom the environment says, and goes through its proxies.
    ///
    /// # Errors
    /// When the environment names certificate authorities that cannot be read.
    pub fn new(settings: &PullSettings) -> Result<Self, WebError> {
        let patience = settings.patience;
        let agents = Agents::new(|usual| {
            usual
                .max_redirects(0)
                .timeout_connect(Some(Duration::from_secs(20).min(patience)))
                .timeout_recv_response(Some(Duration::from_secs(60).min(patience)))
                .timeout_per_read(Some(Duration::from_secs(30).min(patience)))
                .max_idle_connections_per_host(settings.connections)
        })?;
        Ok(Self { agents })
    }

    /// Asks, and follows where the server leads.
    ///
    /// # Errors
    /// When nobody answers, or an answer leads astray.
    pub fn get(&self, call: &Call<'_>) -> Result<Reply, WebError> {
        let (mut url, mut asked) = (call.url.clone(), false);
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.once(&url, call)?;
            match answer.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => url = next(&url, answer.headers())?,
                401 if !asked && self.authorize(&url, call.access, answer.headers())? => asked = true,
                _ => return Ok(Reply { url, answer }),
            }
        }
        Err(WebError::Astray { url: shown(call.url), why: "on and on, in a circle".into() })
    }

    /// The whole answer to a question, which is a success and has `most` bytes at most; asked three times if need be.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn read(&self, call: &Call<'_>, most: u64) -> Result<(Vec<u8>, HeaderMap), WebError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let read = self.get(call).and_then(|reply| match reply.status() {
                200 => {
                    let headers = reply.answer.headers().clone();
                    reply.bytes(most).map(|bytes| (bytes, headers))
                }
                _ => Err(reply.refusal()),
            });
            match read {
                Err(error) if tries < 3 && error.passes() && !is_local(call.url) => {
                    std::thread::sleep(Duration::from_millis(500 * tries));
                }
                read => return read,
            }
        }
    }

    fn once(&self, url: &Url, call: &Call<'_>) -> Result<Response<Body>, WebError> {
        let mut request = self.agents.of(url).get(url.as_str());
        if let Some(secret) = call.access.header(url) {
            request = request.header(header::AUTHORIZATION, secret.reveal());
        }
        if let Some(accept) = call.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some((first, last)) = call.range {
            request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            if let Some(tag) = call.if_range {
                request = request.header(header::IF_RANGE, tag);
            }
        }
        if call.accept.is_none() {
            // A file is wanted as it is: what is counted and hashed is what travels.
            request = request.header(header::ACCEPT_ENCODING, "identity");
        }
        request.call().map_err(|why| WebError::Unreachable { url: shown(url), why: why.into() })
    }

    /// Answers a registry's challenge. `false` if nobody could.
    fn authorize(&self, url: &Url, access: &Access, headers: &HeaderMap) -> Result<bool, WebError> {
        let Kind::Registry { host, token } = &*access.kind else { return Ok(false) };
        if url.origin() != access.origin {
            return Ok(false);
        }
        let wrong = |why: String| WebError::Login { url: shown(url), why };
        let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|value| Challenge::parse(value.to_str().ok()?));
        let Some(challenge) = challenge else { return Ok(false) };
        let login = auth::login(host);
        let answer = auth::answer(&self.agents, url, &challenge, login.as_deref()).map_err(wrong)?;
        let secret = answer.and_then(|header| Secret::new(&header));
        let some = secret.is_some();
        *token.lock().expect("nobody panics with it") = secret;
        Ok(some)
    }
}

/// Where an answer leads.
fn next(url: &Url, headers: &HeaderMap) -> Result<Url, WebError> {
    let astray = |why: String| WebError::Astray { url: shown(url), why };
    let place = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let place = place.ok_or_else(|| astray("elsewhere, and does not say where".into()))?;
    let mut to = url.join(place).map_err(|error| astray(format!("to what is no URL: {error}")))?;
    may_lead(url, &to).map_err(astray)?;
    // A login that a server puts into an address is not ours.
    let _ = (to.set_username(""), to.set_password(None));
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn to(from: &str, place: &str) -> Result<String, String> {
        let headers = HeaderMap::from_iter([(header::LOCATION, place.parse().unwrap())]);
        next(&url(from), &headers).map(|url| url.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn redirects_lead_on_or_are_refused() {
        assert_eq!(to("https://a/x/y", "/z?q=1").unwrap(), "https://a/z?q=1");
        assert_eq!(to("https://a/x/y", "z").unwrap(), "https://a/x/z");
        assert_eq!(to("http://a/", "https://u:p@b/c").unwrap(), "https://b/c", "no login comes from a server");
        assert!(to("https://a/", "http://b/").unwrap_err().contains("from https"));
        assert!(to("https://a/", "file:///etc/passwd").unwrap_err().contains("no web address"));
        assert!(to("https://a/", "https://localhost:9/").unwrap_err().contains("this machine"));
        assert!(to("http://a/", "http://[::1]:9/").unwrap_err().contains("this machine"));
        assert_eq!(to("http://127.0.0.1:1/", "http://localhost:2/").unwrap(), "http://localhost:2/");
    }
}
