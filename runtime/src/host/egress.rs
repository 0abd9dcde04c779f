//! Outgoing HTTP, and TCP ([`Tcp`]): only where the function's rules allow it, only to addresses that were checked.
//!
//! A rule names scheme, host and port. What the name resolves to is checked before it is connected to, and that very
//! address is connected to: a name cannot point somewhere else in between. Addresses inside (loopback, private,
//! link-local and their like) are refused unless a rule names them. Redirects are the guest's own affair, so each of
//! them is checked like any request.

mod addresses;
mod connect;
mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Request, Response, Uri};
use tokio::sync::Semaphore;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use self::addresses::is_public;
pub use self::connect::{Tls, TlsError};
pub use self::tcp::{NameError, Tcp};
use crate::config::{EgressRule, EgressScheme};
use crate::request::Invocation;
use crate::telemetry::TRACEPARENT;

/// Longest wait for a connection, TLS included, unless the guest asks for less.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer, or for the next part of its body, unless the guest asks for less. The
/// invocation's own limit is often nearer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where a function may send requests.
pub struct Egress {
    rules: Vec<EgressRule>,
    tls: Tls,
}

/// The place that a request is for.
struct Target {
    scheme: EgressScheme,
    /// A name or an address, without brackets.
    host: String,
    port: u16,
}

impl Egress {
    /// Requests may go where one of `rules` says.
    pub fn new(rules: Vec<EgressRule>, tls: Tls) -> Self {
        Self { rules, tls }
    }

    /// Whom connections trust.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    fn allows(&self, target: &Target) -> bool {
        self.rules.iter().any(|rule| rule.allows(target.scheme, &target.host, target.port))
    }

    fn allows_address(&self, target: &Target, address: IpAddr) -> bool {
        let Target { scheme, host, port } = target;
        is_public(address)
            || self.rules.iter().any(|rule| rule.names_address(*scheme, address, *port))
            || address.is_loopback()
                && host == "localhost"
                && self.rules.iter().any(|rule| names_localhost(rule, target))
    }

    /// Where to connect to: what the name resolves to, as far as that is allowed.
    async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, Error> {
        let addresses: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
            Ok(address) => vec![(address, target.port).into()],
            Err(_) => {
                tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(no_such_name)?.collect()
            }
        };
        if addresses.is_empty() {
            return Err(Error::DestinationNotFound);
        }
        let allowed: Vec<_> =
            addresses.into_iter().filter(|address| self.allows_address(target, address.ip())).collect();
        if allowed.is_empty() { Err(Error::DestinationIpProhibited) } else { Ok(allowed) }
    }
}

fn no_such_name(error: std::io::Error) -> Error {
    Error::DnsError { rcode: Some(error.to_string()), info_code: None }
}

/// A rule names `localhost` itself, rather than every host.
fn names_localhost(rule: &EgressRule, target: &Target) -> bool {
    rule.allows(target.scheme, "localhost", target.port) && !rule.allows(target.scheme, "another.invalid", target.port)
}

impl Target {
    fn of(uri: &Uri) -> Result<Self, Error> {
        let scheme = match uri.scheme_str() {
            Some("http") => EgressScheme::Http,
            Some("https") => EgressScheme::Https,
            _ => return Err(Error::HttpRequestUriInvalid),
        };
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(Error::HttpRequestUriInvalid);
        }
        let port = match (authority.port_u16(), scheme) {
            (Some(port), _) => port,
            (None, EgressScheme::Https) => 443,
            (None, _) => 80,
        };
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scheme, host, port } = self;
        match host.contains(':') {
            true => write!(f, "{}://[{host}]:{port}", scheme.as_str()),
            false => write!(f, "{}://{host}:{port}", scheme.as_str()),
        }
    }
}

/// An instance's way out.
pub struct Outgoing {
    egress: Arc<Egress>,
    connections: Arc<Semaphore>,
    /// For whom.
    pub invocation: Arc<Invocation>,
}

impl Outgoing {
    /// With so many connections at once.
    pub fn new(egress: Arc<Egress>, connections: u32, invocation: Arc<Invocation>) -> Self {
        Self { egress, connections: Arc::new(Semaphore::new(connections as usize)), invocation }
    }

    fn send(&self, mut request: Request<WasiBody>, options: RequestOptions) -> impl Future<Output = Answered> + use<> {
        let (egress, connections, invocation) =
            (self.egress.clone(), self.connections.clone(), self.invocation.clone());
        // A guest that says itself what it belongs to may know better.
        if let Some(trace) = invocation.trace.as_ref().filter(|_| !request.headers().contains_key(TRACEPARENT)) {
            request.headers_mut().insert(TRACEPARENT, trace.header());
        }
        async move {
            let target = Target::of(request.uri())?;
            let refused = |why: &str| {
                let Invocation { function, id, .. } = &*invocation;
                tracing::info!(%function, %id, "a request to {target} was refused: {why}");
                invocation.print("host", format!("a request to {target} was refused: {why}"));
            };
            if !egress.allows(&target) {
                refused("no rule of `egress` allows it");
                return Err(Error::HttpRequestDenied);
            }
            let permit = connections.try_acquire_owned().map_err(|_| {
                refused("the function holds as many connections as `limits.connections` allows");
                Error::ConnectionLimitReached
            })?;
            let wait = options.connect_timeout.map_or(CONNECT, |asked| asked.min(CONNECT));
            let connected = tokio::time::timeout(wait, async {
                let addresses = egress.resolve(&target).await.inspect_err(|error| {
                    if matches!(error, Error::DestinationIpProhibited) {
                        refused("its address is not public, and no rule of `egress` names it");
                    }
                })?;
                connect::connect(&target, &addresses, &egress.tls).await
            });
            let stream = connected.await.map_err(|_| Error::ConnectionTimeout)??;
            connect::exchange(stream, request, options, permit).await
        }
    }
}

/// What goes on after the head of an answer: the connection.
pub type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;

type Answered = Result<(Response<WasiBody>, Io), Error>;

/// What wasi:http asks its host: with a way out, or without.
pub struct Hooks(pub Option<Outgoing>);

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Io,
    ) -> Box<dyn Future<Output = Answered> + Send> {
        match &self.0 {
            Some(outgoing) => Box::new(outgoing.send(request, options.unwrap_or_default())),
            // Not linked without a rule; this stands behind it should that ever change.
            None => Box::new(async { Err(Error::HttpRequestDenied) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(rules: &[&str]) -> Egress {
        Egress::new(rules.iter().map(|rule| rule.parse().unwrap()).collect(), Tls::new(&[]).unwrap())
    }

    #[test]
    fn targets_of_requests() {
        let target = |uri: &str| Target::of(&uri.parse().unwrap()).map(|target| target.to_string());
        assert_eq!(target("http://A.example/x").unwrap(), "http://a.example:80");
        assert_eq!(target("https://a.example.:8443/x").unwrap(), "https://a.example:8443");
        assert_eq!(target("http://[::1]:8080/").unwrap(), "http://[::1]:8080");
        for bad in ["http://good.example@evil.example/", "/no-host", "ftp://a.example/"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_do_not_lead_inside() {
        let resolve = |rules: &[&str], uri: &str| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(egress(rules).resolve(&Target::of(&uri.parse().unwrap()).unwrap()))
        };
        let prohibited = |rules: &[&str], uri: &str| matches!(resolve(rules, uri), Err(Error::DestinationIpProhibited));
        assert!(prohibited(&["http://*:*"], "http://localhost:80/"), "a rule for all names is none for loopback");
        assert!(prohibited(&["http://*:*"], "http://127.0.0.1:80/"));
        // Other ways to write 127.0.0.1, which resolvers take.
        assert!(prohibited(&["http://*:*"], "http://2130706433/") && prohibited(&["http://*:*"], "http://0x7f.1/"));
        assert!(prohibited(&["http://*:*"], "http://[::ffff:127.0.0.1]/"));
        assert!(
            resolve(&["http://localhost:8080"], "http://localhost:8080/").unwrap().iter().all(|a| a.ip().is_loopback())
        );
        assert!(prohibited(&["http://localhost:8080"], "http://localhost:8081/"));
        assert!(resolve(&["http://10.0.0.0/8"], "http://10.1.2.3/").is_ok());
        assert!(prohibited(&["http://10.0.0.0/8", "http://*"], "http://192.168.0.1/"));
    }
}
