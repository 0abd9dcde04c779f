//! Calls to servers elsewhere: whom to trust, which way to take, and which addresses are this machine's.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use url::{Host, Url};

/// Whom to trust cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{variable} names no certificate authorities: {why}")]
pub struct AuthoritiesError {
    /// The variable.
    variable: &'static str,
    /// What is wrong.
    why: String,
}

/// A client, and the same past all proxies for what is on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Agents {
    far: Agent,
    near: Agent,
}

impl Agents {
    /// Clients that trust whom the environment says and go through its proxies; `adjust` changes what is usual.
    ///
    /// # Errors
    /// When the environment names certificate authorities that cannot be read.
    pub fn new(
        adjust: impl Fn(ConfigBuilder<AgentScope>) -> ConfigBuilder<AgentScope>,
    ) -> Result<Self, AuthoritiesError> {
        let tls = TlsConfig::builder().root_certs(authorities()?).build();
        let config = || {
            let usual = Agent::config_builder()
                .tls_config(tls.clone())
                .http_status_as_error(false)
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_per_read(Some(Duration::from_secs(30)))
                .user_agent(concat!("hob/", env!("CARGO_PKG_VERSION")));
            adjust(usual)
        };
        Ok(Self { far: config().build().into(), near: config().proxy(None).build().into() })
    }

    /// The one for an address.
    pub fn of(&self, url: &Url) -> &Agent {
        if is_local(url) { &self.near } else { &self.far }
    }
}

/// Whom to trust: the system's authorities, which `SSL_CERT_FILE` and `SSL_CERT_DIR` replace, or those that Python's tools
/// are told of.
fn authorities() -> Result<RootCerts, AuthoritiesError> {
    let said = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if said("SSL_CERT_FILE").or_else(|| said("SSL_CERT_DIR")).is_some() {
        return Ok(RootCerts::PlatformVerifier);
    }
    for variable in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        // It may name a folder, which only OpenSSL reads.
        let Some(path) = said(variable).map(std::path::PathBuf::from).filter(|path| !path.is_dir()) else { continue };
        let wrong = |why: String| AuthoritiesError { variable, why };
        let text = std::fs::read(&path).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
        let items: Vec<_> = ureq::tls::parse_pem(&text).filter_map(Result::ok).collect();
        let certificates: Vec<_> = items
            .into_iter()
            .filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(wrong(format!("{} has no certificate in PEM form", path.display())));
        }
        return Ok(RootCerts::Specific(Arc::new(certificates)));
    }
    Ok(RootCerts::PlatformVerifier)
}

/// A registry's address: in the clear on this machine, else over TLS.
pub(crate) fn registry(host: &str) -> Result<Url, url::ParseError> {
    let clear: Url = format!("http://{host}").parse()?;
    if is_local(&clear) { Ok(clear) } else { format!("https://{host}").parse() }
}

/// Whether nobody but this machine can answer at an address: so much may be said there in the clear.
pub(crate) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether an address may lead to this machine, in whichever way it is written: others must not lead us there.
pub(crate) fn leads_here(url: &Url) -> bool {
    let here = |address: IpAddr| {
        let address = address.to_canonical();
        address.is_loopback() || address.is_unspecified()
    };
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => here(address.into()),
        Some(Host::Ipv6(address)) => here(address.into()),
        None => false,
    }
}

/// Whether what a server says may lead from one address to another; why not, as the end of a sentence.
pub(crate) fn may_lead(from: &Url, to: &Url) -> Result<(), String> {
    let place = shown(to);
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(format!("from https to {place}, where anybody could answer")),
        _ => return Err(format!("to {place}, which is no web address")),
    }
    match leads_here(to) && !is_local(from) {
        true => Err(format!("to this machine itself, {place}")),
        false => Ok(()),
    }
}

/// An address for people: without login, query and fragment.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_shown_without_what_opens_doors() {
        assert_eq!(shown(&url("https://u:p@h:1/a?sig=s#f")), "https://h:1/a");
    }

    #[test]
    fn what_is_on_this_machine() {
        for local in ["http://127.1.2.3/", "http://localhost:1/", "http://[::1]:2/", "http://2130706433/"] {
            assert!(is_local(&url(local)) && leads_here(&url(local)), "{local}");
        }
        for far in [
            "http://localhost.example/",
            "http://127.evil.example/",
            "http://127.0.0.1.nip.example/",
            "http://10.0.0.1/",
            "http://localhost@evil.example/",
            "http://evil.example/#@localhost",
        ] {
            assert!(!is_local(&url(far)) && !leads_here(&url(far)), "{far}");
        }
        for near in ["http://0.0.0.0/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://a.localhost/"] {
            assert!(!is_local(&url(near)) && leads_here(&url(near)), "{near}");
        }
    }

    #[test]
    fn registries_are_spoken_to_in_the_clear_on_this_machine_only() {
        assert_eq!(registry("localhost:5000").unwrap().as_str(), "http://localhost:5000/");
        for far in ["ghcr.io", "127.evil.example", "0.0.0.0:5000"] {
            assert_eq!(registry(far).unwrap().scheme(), "https", "{far}");
        }
    }

    #[test]
    fn servers_lead_nobody_astray() {
        let lead = |from: &str, to: &str| may_lead(&url(from), &url(to));
        assert!(lead("https://a/", "https://b/").is_ok() && lead("http://127.0.0.1:1/", "http://localhost:2/").is_ok());
        assert!(lead("https://a/", "http://b/").unwrap_err().contains("anybody could answer"));
        assert!(lead("http://a/", "ftp://b/").unwrap_err().contains("no web address"));
        assert!(lead("https://a/", "https://[::ffff:127.0.0.1]/").unwrap_err().contains("this machine"));
    }
}
