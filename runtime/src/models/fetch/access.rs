//! Who asks: a login or a token belongs to an [`Access`], and an access to one origin. Wherever a server sends us, nothing
//! of it goes along.

use std::sync::{Arc, Mutex};

use url::{Origin, Url};

use crate::models::settings::Secret;
use crate::sources::auth;

/// Who asks, and whom that may be told.
#[derive(Clone, Debug)]
pub struct Access {
    pub(super) origin: Origin,
    pub(super) kind: Arc<Kind>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Nobody,
    /// The value of the `authorization` header.
    Header(Secret),
    /// A registry, which gives a token for a login, or for nothing.
    Registry {
        host: String,
        token: Mutex<Option<Secret>>,
    },
}

impl Access {
    /// Nobody in particular.
    pub fn nobody() -> Self {
        Self { origin: Origin::new_opaque(), kind: Kind::Nobody.into() }
    }

    /// Whoever holds `token`, to the server of `url`.
    pub fn token(url: &Url, token: Option<&Secret>) -> Self {
        match token.and_then(|token| Secret::new(&format!("Bearer {}", token.reveal()))) {
            Some(header) => Self { origin: url.origin(), kind: Kind::Header(header).into() },
            None => Self::nobody(),
        }
    }

    /// The login that an address carries, taken out of it.
    pub fn from_url(url: &mut Url) -> Self {
        if url.username().is_empty() && url.password().is_none() {
            return Self::nobody();
        }
        let plain = |text: &str| percent_decoded(text);
        let login = format!("{}:{}", plain(url.username()), plain(url.password().unwrap_or_default()));
        let origin = url.origin();
        // Cannot fail: it has a host.
        let _ = (url.set_username(""), url.set_password(None));
        let header = Secret::new(&format!("Basic {}", auth::base64(login.as_bytes())));
        Self { origin, kind: header.map_or(Kind::Nobody, Kind::Header).into() }
    }

    /// A login at the registry of `url`, asked for when it wants one; it is kept under the name `host`.
    pub fn registry(url: &Url, host: &str) -> Self {
        let host = host.to_owned();
        Self { origin: url.origin(), kind: Kind::Registry { host, token: Mutex::default() }.into() }
    }

    /// Whether anything was told to the server.
    pub fn is_somebody(&self) -> bool {
        !matches!(*self.kind, Kind::Nobody)
    }

    pub(super) fn header(&self, url: &Url) -> Option<Secret> {
        if url.origin() != self.origin {
            return None;
        }
        match &*self.kind {
            Kind::Nobody => None,
            Kind::Header(header) => Some(header.clone()),
            Kind::Registry { token, .. } => token.lock().expect("nobody panics with it").clone(),
        }
    }
}

/// `%40` is `@`.
fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn who_asks_is_told_to_one_server_only() {
        let token = Secret::new("t").unwrap();
        let access = Access::token(&url("https://hub.example/x"), Some(&token));
        assert_eq!(access.header(&url("https://hub.example/y")).unwrap().reveal(), "Bearer t");
        for other in ["http://hub.example/", "https://hub.example:8443/", "https://cdn.hub.example/", "https://evil/"] {
            assert!(access.header(&url(other)).is_none(), "{other}");
        }
        let mut index = url("https://us%40er:p%3Aw@index.example/simple/");
        let access = Access::from_url(&mut index);
        assert_eq!(index.as_str(), "https://index.example/simple/");
        let expected = format!("Basic {}", auth::base64(b"us@er:p:w"));
        assert_eq!(access.header(&index).unwrap().reveal(), expected);
        assert!(!format!("{access:?}").contains("Basic"));
        assert!(!Access::from_url(&mut url("https://x/")).is_somebody());
    }
}
