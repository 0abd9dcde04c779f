//! Where a function may send requests: `https://*.example.com`, `http://10.0.0.0/8:8080`.
//!
//! A rule names a scheme, a host and a port. The host is a name, `*.` and the end of names, `*` for all of them, an
//! address, or a network. A rule that names names says nothing about what these resolve to: whoever connects asks
//! [`EgressRule::names_address`] whether an address that is not public was meant.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::route::{HostPattern, is_host_name};

/// One place, or one kind of place, that requests may go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    scheme: EgressScheme,
    host: Host,
    /// `None` is any port.
    port: Option<u16>,
}

/// What is spoken there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressScheme {
    /// HTTP in the clear; port 80 unless said.
    Http,
    /// HTTP over TLS; port 443 unless said.
    Https,
    /// Bytes; the port must be said.
    Tcp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    Pattern(HostPattern),
    /// An address, or a network: so many leading bits.
    Network(IpAddr, u8),
}

/// A text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` does not say where requests may go: {why}; write SCHEME://HOST[:PORT], as in https://*.example.com or http://10.0.0.0/8:8080"
)]
pub struct EgressRuleError {
    /// As it was written.
    text: String,
    /// What is wrong with it.
    why: &'static str,
}

impl EgressScheme {
    /// The text before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }

    fn port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp => None,
        }
    }
}

impl EgressRule {
    /// Whether a request may be made to `host` - a name, or an address with or without brackets - as far as names go.
    pub fn allows(&self, scheme: EgressScheme, host: &str, port: u16) -> bool {
        if self.scheme != scheme || self.port.is_some_and(|own| own != port) {
            return false;
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        match (&self.host, host.parse::<IpAddr>()) {
            (Host::Any, _) => true,
            (Host::Pattern(pattern), Err(_)) => pattern.matches(&host),
            (Host::Network(network, bits), Ok(address)) => contains(*network, *bits, address),
            (Host::Pattern(_), Ok(_)) | (Host::Network(..), Err(_)) => false,
        }
    }

    /// What is spoken there.
    pub fn scheme(&self) -> EgressScheme {
        self.scheme
    }

    /// The port at which it allows `host`, if it does with `scheme`; some port, if it allows all.
    pub fn port_for(&self, scheme: EgressScheme, host: &str) -> Option<u16> {
        let port = self.port.unwrap_or(1);
        self.allows(scheme, host, port).then_some(port)
    }

    /// Whether it may lead into the host or its network: it names addresses, or what always stands for some.
    pub fn may_lead_inside(&self) -> bool {
        match &self.host {
            Host::Any => false,
            Host::Pattern(pattern) => pattern.as_str().rsplit('.').next() == Some("localhost"),
            Host::Network(..) => true,
        }
    }

    /// Whether it names `address` itself, or a network around it: only then may it be loopback, private or link-local.
    pub fn names_address(&self, scheme: EgressScheme, address: IpAddr, port: u16) -> bool {
        matches!(self.host, Host::Network(network, bits) if contains(network, bits, address))
            && self.scheme == scheme
            && self.port.is_none_or(|own| own == port)
    }
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let same = |a: u128, b: u128, width: u32| bits == 0 || (a ^ b) >> (width - u32::from(bits)) == 0;
    match (network, plain(address)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// An IPv4 address in IPv6's clothes is that IPv4 address.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

impl std::str::FromStr for EgressRule {
    type Err = EgressRuleError;

    fn from_str(text: &str) -> Result<Self, EgressRuleError> {
        parse(text).map_err(|why| EgressRuleError { text: text.chars().take(300).collect(), why })
    }
}

fn parse(text: &str) -> Result<EgressRule, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
    let scheme = match scheme {
        "http" => EgressScheme::Http,
        "https" => EgressScheme::Https,
        "tcp" => EgressScheme::Tcp,
        _ => return Err("the scheme is none of http, https, tcp"),
    };
    let (host, port) = split_port(rest)?;
    let port = match port {
        Some("*") => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0).ok_or("the port is none of 1 to 65535, *")?),
        None => Some(scheme.port().ok_or("tcp needs a port")?),
    };
    Ok(EgressRule { scheme, host: parse_host(host)?, port })
}

/// `host:port`, where a host with colons of its own stands in brackets, its network's length behind them.
fn split_port(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    if text.starts_with('[') {
        let close = text.find(']').ok_or("a bracket is not closed")?;
        let colon = text[close..].find(':').map(|at| close + at);
        return Ok(colon.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..]))));
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => Err("an IPv6 address stands in brackets"),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_host(text: &str) -> Result<Host, &'static str> {
    if text == "*" {
        return Ok(Host::Any);
    }
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address = match address.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner
            .and_then(|inner| inner.parse::<Ipv6Addr>().ok())
            .map(|v6| plain(v6.into()))
            .ok_or("no such address")?,
        None => match (address.parse::<std::net::Ipv4Addr>(), bits) {
            (Ok(v4), _) => v4.into(),
            (Err(_), None) if is_host_name(text.strip_prefix("*.").unwrap_or(text)) => {
                return text.parse().map(Host::Pattern).map_err(|_| "that is no host");
            }
            (Err(_), _) => return Err("that is no host"),
        },
    };
    let width: u8 = if address.is_ipv4() { 32 } else { 128 };
    let bits =
        bits.map_or(Ok(width), |bits| bits.parse().ok().filter(|bits| *bits <= width).ok_or("no such network"))?;
    Ok(Host::Network(address, bits))
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.as_str())?;
        match &self.host {
            Host::Any => f.write_str("*")?,
            Host::Pattern(pattern) => pattern.fmt(f)?,
            Host::Network(IpAddr::V4(address), 32) => address.fmt(f)?,
            Host::Network(IpAddr::V4(address), bits) => write!(f, "{address}/{bits}")?,
            Host::Network(IpAddr::V6(address), 128) => write!(f, "[{address}]")?,
            Host::Network(IpAddr::V6(address), bits) => write!(f, "[{address}]/{bits}")?,
        }
        match self.port {
            None => f.write_str(":*"),
            port if port == self.scheme.port() => Ok(()),
            Some(port) => write!(f, ":{port}"),
        }
    }
}

impl TryFrom<String> for EgressRule {
    type Error = EgressRuleError;

    fn try_from(text: String) -> Result<Self, EgressRuleError> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> String {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EgressScheme::{Http, Https, Tcp};

    #[test]
    fn what_is_allowed() {
        for (rule, scheme, host, port, allowed) in [
            ("https://api.example.com", Https, "API.example.com", 443, true),
            ("https://api.example.com", Https, "api.example.com.", 443, true),
            ("https://api.example.com", Https, "api.example.com", 8443, false),
            ("https://api.example.com", Http, "api.example.com", 443, false),
            ("https://*.example.com:*", Https, "a.b.example.com", 1, true),
            ("https://*.example.com", Https, "example.com", 443, false),
            ("https://*.example.com", Https, "example.com.evil.org", 443, false),
            ("http://*", Http, "anything", 80, true),
            ("http://10.0.0.0/8:8080", Http, "10.1.2.3", 8080, true),
            ("http://10.0.0.0/8:8080", Http, "11.1.2.3", 8080, false),
            ("http://10.0.0.0/8:8080", Http, "[::ffff:10.1.2.3]", 8080, true),
            ("http://[fd00::]/8:80", Http, "[fd12::1]", 80, true),
            ("http://0.0.0.0/0", Http, "1.2.3.4", 80, true),
            ("http://0.0.0.0/0", Http, "name", 80, false),
            ("tcp://db:5432", Tcp, "db", 5432, true),
        ] {
            let parsed: EgressRule = rule.parse().unwrap();
            assert_eq!(parsed.allows(scheme, host, port), allowed, "{rule} {host} {port}");
            assert_eq!(parsed.to_string().parse::<EgressRule>().unwrap(), parsed, "{rule}");
        }
    }

    #[test]
    fn addresses_that_are_meant() {
        let rule = |text: &str| text.parse::<EgressRule>().unwrap();
        let loopback = "127.0.0.1".parse().unwrap();
        assert!(rule("http://127.0.0.1:8080").names_address(Http, loopback, 8080));
        assert!(!rule("http://127.0.0.1:8080").names_address(Http, loopback, 8081));
        assert!(!rule("http://*:*").names_address(Http, loopback, 8080), "a name says nothing about addresses");
        let inside = |text: &str| rule(text).may_lead_inside();
        assert!(inside("http://10.0.0.0/8") && inside("http://localhost") && inside("http://a.localhost"));
        assert!(!inside("https://*") && !inside("https://example.com"));
    }

    #[test]
    fn what_is_no_rule() {
        for bad in [
            "example.com",
            "ftp://x",
            "http://",
            "http://x:0",
            "http://x:99999",
            "tcp://x",
            "http://::1",
            "http://[::1",
            "http://10.0.0.0/33",
            "http://x/8",
            "http://a b",
            "https://*.*.x",
            "http://[1.2.3.4]",
        ] {
            let error = bad.parse::<EgressRule>().expect_err(bad).to_string();
            assert!(error.contains(bad) && error.contains("SCHEME://HOST"), "{error}");
        }
    }
}
