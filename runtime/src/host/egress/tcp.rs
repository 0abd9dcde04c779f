//! TCP for guests that speak something else than HTTP (`wasi:sockets`), where a rule of scheme `tcp` allows it.
//!
//! A guest asks for the address of a name, if a rule allows the name, and connects to that address, if a rule allows the
//! name it got it for, or the address itself; what is not public must be named by a rule, as for HTTP. It binds
//! nothing, listens to nobody and sends no datagrams.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

use super::{Egress, Target};
use crate::config::EgressScheme;
use crate::request::Invocation;

/// Most names that an instance can ask the addresses of; those asked for before stay.
const MAX_NAMES: usize = 64;
/// Longest name, as DNS has it.
const MAX_NAME: usize = 253;

/// Why a name has no address for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It is no name.
    Invalid,
    /// No rule allows it, or none of its addresses.
    Denied,
    /// Nobody knows it.
    Unknown,
}

/// An instance's sockets.
pub struct Tcp {
    egress: Arc<Egress>,
    /// Connections that one invocation may open.
    most: u32,
    opened: AtomicU32,
    /// The addresses that it was told, with the names that it asked for.
    told: Mutex<HashMap<String, Vec<IpAddr>>>,
    invocation: Mutex<Arc<Invocation>>,
}

impl Tcp {
    /// Sockets for an instance, if any rule is for them.
    pub fn new(egress: &Arc<Egress>, connections: u32, invocation: &Arc<Invocation>) -> Option<Arc<Self>> {
        let is_for_tcp = egress.rules.iter().any(|rule| rule.scheme() == EgressScheme::Tcp);
        is_for_tcp.then(|| {
            Arc::new(Self {
                egress: egress.clone(),
                most: connections,
                opened: AtomicU32::new(0),
                told: Mutex::default(),
                invocation: Mutex::new(invocation.clone()),
            })
        })
    }

    /// Lets the guest connect where the rules say.
    pub fn open(self: &Arc<Self>, wasi: &mut WasiCtxBuilder) {
        let tcp = self.clone();
        wasi.allow_tcp(true).socket_addr_check(move |address, reason| {
            let allowed = match reason {
                // What every connection begins with: the system chooses its own end.
                SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
                SocketAddrUse::TcpConnect => tcp.admit(address),
                _ => false,
            };
            Box::pin(async move { allowed })
        });
    }

    /// From now on it connects for another invocation.
    pub fn renew(&self, invocation: Arc<Invocation>) {
        *self.invocation.lock().unwrap_or_else(PoisonError::into_inner) = invocation;
        self.opened.store(0, Ordering::Relaxed);
    }

    /// The addresses of a name, as far as a rule lets anybody connect to them.
    ///
    /// # Errors
    /// See [`NameError`].
    pub(crate) async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let host = name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() || host.len() > MAX_NAME {
            return Err(NameError::Invalid);
        }
        if let Ok(address) = host.parse() {
            // Nothing is asked of anybody; whether it may be connected to is said when it is.
            return Ok(vec![address]);
        }
        let ports: Vec<u16> =
            self.egress.rules.iter().filter_map(|rule| rule.port_for(EgressScheme::Tcp, &host)).collect();
        if ports.is_empty() {
            self.refused(&format!("the name {host}"), "no rule of `egress` with tcp allows it");
            return Err(NameError::Denied);
        }
        let addresses = match tokio::net::lookup_host((host.as_str(), 0)).await {
            Ok(addresses) => addresses.map(|address| address.ip().to_canonical()),
            Err(_) => return Err(NameError::Unknown),
        };
        let reaches = |address: &IpAddr| {
            let target = |port| Target { scheme: EgressScheme::Tcp, host: host.clone(), port };
            ports.iter().any(|port| self.egress.allows_address(&target(*port), *address))
        };
        let addresses: Vec<IpAddr> = addresses.filter(reaches).collect();
        if addresses.is_empty() {
            self.refused(&format!("the name {host}"), "its address is not public, and no rule of `egress` names it");
            return Err(NameError::Denied);
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MAX_NAMES && !told.contains_key(&host) {
            return Err(NameError::Denied);
        }
        told.insert(host, addresses.clone());
        Ok(addresses)
    }

    /// Whether a connection may be opened; it counts.
    fn admit(&self, address: SocketAddr) -> bool {
        let target = format!("tcp://{address}");
        if !self.allows(address) {
            self.refused(&target, "no rule of `egress` with tcp allows it");
            return false;
        }
        if self.opened.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.refused(&target, "the invocation opened as many as `limits.connections` allows");
            return false;
        }
        true
    }

    fn allows(&self, address: SocketAddr) -> bool {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let allows = |host: &str| {
            let target = Target { scheme: EgressScheme::Tcp, host: host.to_owned(), port };
            self.egress.allows(&target) && self.egress.allows_address(&target, ip)
        };
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        allows(&ip.to_string()) || told.iter().any(|(name, addresses)| addresses.contains(&ip) && allows(name))
    }

    fn refused(&self, what: &str, why: &str) {
        let invocation = self.invocation.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Invocation { function, id, .. } = &*invocation;
        tracing::info!(%function, %id, "{what} was refused: {why}");
        invocation.print("host", format!("{what} was refused: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tls;
    use super::*;

    fn tcp(rules: &[&str]) -> Option<Arc<Tcp>> {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let egress = Arc::new(Egress::new(rules, Tls::new(&[]).unwrap()));
        Tcp::new(&egress, 3, &Arc::new(Invocation::none("f".parse().unwrap())))
    }

    fn look_up(tcp: &Tcp, name: &str) -> Result<Vec<IpAddr>, NameError> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(tcp.look_up(name))
    }

    #[test]
    fn only_where_a_rule_says() {
        assert!(tcp(&["https://example.com"]).is_none(), "rules for HTTP open no sockets");
        let rules = tcp(&["tcp://10.0.0.0/8:5432", "tcp://*:6379", "http://127.0.0.1:80"]).unwrap();
        let allows = |address: &str| rules.allows(address.parse().unwrap());
        assert!(allows("10.1.2.3:5432") && allows("[::ffff:10.1.2.3]:5432") && allows("1.1.1.1:6379"));
        for bad in
            ["10.1.2.3:5433", "11.1.2.3:5432", "127.0.0.1:80", "127.0.0.1:6379", "169.254.169.254:6379", "[::1]:6379"]
        {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_looked_up_before_their_addresses_are_connected_to() {
        let rules = tcp(&["tcp://localhost:5432"]).unwrap();
        let address = "127.0.0.1:5432".parse().unwrap();
        assert!(!rules.allows(address), "nobody asked for the name yet");
        assert!(look_up(&rules, "LOCALHOST.").unwrap().iter().all(IpAddr::is_loopback));
        assert!(rules.allows(address) && !rules.allows("127.0.0.1:5433".parse().unwrap()));
        assert_eq!(look_up(&rules, "example.com"), Err(NameError::Denied));
        assert_eq!(look_up(&rules, ""), Err(NameError::Invalid));
        // A name that leads inside is none to a rule for all names.
        assert_eq!(look_up(&tcp(&["tcp://*:*"]).unwrap(), "localhost"), Err(NameError::Denied));
    }

    #[test]
    fn connections_are_counted() {
        let rules = tcp(&["tcp://127.0.0.1:1"]).unwrap();
        let admitted = || (0..5).filter(|_| rules.admit("127.0.0.1:1".parse().unwrap())).count();
        assert_eq!(admitted(), 3);
        rules.renew(Arc::new(Invocation::none("f".parse().unwrap())));
        assert_eq!(admitted(), 3);
    }
}
