//! All functions at one moment, and the routes that lead to them. Made anew for each change, read without a lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::request::Parts;
use http::{HeaderName, header};

use super::function::{Function, Revision};
use crate::config::RouteConfig;
use crate::names::{FunctionName, RevisionId};
use crate::request::RequestError;
use crate::request::router::{Found, Router};
use crate::traffic::{pick, spread, sticky};

/// The request header that names a revision.
pub const REVISION_HEADER: HeaderName = HeaderName::from_static("hob-revision");

/// Functions by name, and their routes.
#[derive(Default)]
pub struct Table {
    functions: BTreeMap<FunctionName, Arc<Function>>,
    router: Router<Entry>,
}

/// Revisions with their shares of requests, newest first.
type Shares = Vec<(Arc<Revision>, u8)>;

/// What a route leads to.
struct Entry {
    function: Arc<Function>,
    /// The revisions that have the route, newest first, with their shares.
    shares: Shares,
    sticky: Option<HeaderName>,
    requests: AtomicU64,
}

impl Table {
    /// The table of these functions.
    pub fn new(functions: BTreeMap<FunctionName, Arc<Function>>) -> Self {
        let mut router = Router::default();
        for function in functions.values() {
            for (route, shares) in routes(function) {
                router.add(&route, Entry::new(function.clone(), shares));
            }
        }
        Self { functions, router }
    }

    /// The same with `function` in place of the one of its name.
    pub fn with(&self, function: Function) -> Self {
        let mut functions = self.functions.clone();
        functions.insert(function.record.name.clone(), Arc::new(function));
        Self::new(functions)
    }

    /// The same without a function.
    pub fn without(&self, name: &FunctionName) -> Self {
        let mut functions = self.functions.clone();
        functions.remove(name);
        Self::new(functions)
    }

    /// A function.
    pub fn get(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }

    /// All functions, by name.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.values()
    }

    /// The first of `routes` that another function than `name` has, and that function.
    pub fn taken<'r>(&self, name: &FunctionName, routes: &'r [RouteConfig]) -> Option<(&'r RouteConfig, FunctionName)> {
        let others = self.functions.values().filter(|function| function.record.name != *name);
        others.flat_map(|function| function.wanted()).find_map(|revision| {
            let own = &revision.record.config.routes;
            let taken = routes.iter().find(|route| own.iter().any(|own| own.overlaps(route)))?;
            Some((taken, revision.function.clone()))
        })
    }

    /// The revision that is to answer a request.
    ///
    /// # Errors
    /// `NoRoute`, `NoRevision`, `OtherMethods`.
    pub fn find(&self, request: &Parts) -> Result<Arc<Revision>, RequestError> {
        let host = self.host(request);
        if let Some((function, id)) =
            host.as_deref().and_then(named).filter(|(name, _)| self.functions.contains_key(name))
        {
            return revision(&self.functions[&function], id);
        }
        let path = request.uri.path();
        let entry = match self.router.find(host.as_deref(), path, request.method.as_str()) {
            Found::To(entry) => entry,
            Found::OtherMethods(methods) => return Err(RequestError::OtherMethods(methods.join(", "))),
            Found::Nothing => return Err(RequestError::NoRoute(path.chars().take(200).collect())),
        };
        asked(&entry.function, request).unwrap_or_else(|| Ok(entry.choose(request)))
    }

    /// The revision that is to answer a request for a function by its name, wherever that has routes. `n` counts them.
    ///
    /// # Errors
    /// `NoFunction`, `NoRevision`, `BadRequest`.
    pub fn of_function(&self, name: &FunctionName, request: &Parts, n: u64) -> Result<Arc<Revision>, RequestError> {
        let function = self.functions.get(name).ok_or_else(|| RequestError::NoFunction(name.to_string()))?;
        match asked(function, request) {
            Some(revision) => revision,
            None => Ok(Entry::new(function.clone(), shares(function)).choose_nth(request, || n)),
        }
    }

    /// The request's host in lower case, without its port, if that can make a difference.
    fn host(&self, request: &Parts) -> Option<String> {
        let host = match request.uri.authority() {
            Some(authority) => authority.as_str(),
            None => request.headers.get(header::HOST)?.to_str().ok()?,
        };
        if !self.router.knows_hosts() && !host.contains("--") {
            return None;
        }
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let host = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        Some(host.trim_end_matches('.').to_ascii_lowercase())
    }
}

impl Entry {
    fn new(function: Arc<Function>, mut shares: Shares) -> Self {
        shares.shrink_to_fit();
        let sticky = shares.first().and_then(|(newest, _)| newest.record.config.sticky.as_deref()?.parse().ok());
        Self { function, shares, sticky, requests: AtomicU64::new(0) }
    }

    /// The revision whose turn it is, or that the sticky header's value leads to.
    fn choose(&self, request: &Parts) -> Arc<Revision> {
        self.choose_nth(request, || self.requests.fetch_add(1, Ordering::Relaxed))
    }

    fn choose_nth(&self, request: &Parts, n: impl FnOnce() -> u64) -> Arc<Revision> {
        if let [(only, _)] = self.shares.as_slice() {
            return only.clone();
        }
        let value = self.sticky.as_ref().and_then(|header| request.headers.get(header));
        let point = match value {
            Some(value) => sticky(self.function.record.name.as_str(), value.as_bytes()),
            None => spread(n()),
        };
        pick(&self.shares, point).expect("a route is there for the revisions that have it").clone()
    }
}

/// The revision that a request names in a header.
fn asked(function: &Function, request: &Parts) -> Option<Result<Arc<Revision>, RequestError>> {
    let id = request.headers.get(REVISION_HEADER)?.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || RequestError::BadRequest(format!("{REVISION_HEADER}: write a revision, as in r7"));
    Some(id.ok_or_else(wrong).and_then(|id| revision(function, id)))
}

fn revision(function: &Function, id: RevisionId) -> Result<Arc<Revision>, RequestError> {
    let found = function.revisions.get(&id).cloned();
    found.ok_or_else(|| RequestError::NoRevision {
        function: function.record.name.to_string(),
        revision: id.to_string(),
    })
}

/// The function and revision that a host such as `r7--chat.example.com` names.
fn named(host: &str) -> Option<(FunctionName, RevisionId)> {
    let label = host.split('.').next()?;
    let (revision, function) = label.split_once("--")?;
    Some((function.parse().ok()?, revision.parse().ok()?))
}

/// The revisions of a function that take requests, newest first.
fn shares(function: &Function) -> Shares {
    let share = |(id, percent)| Some((function.revisions.get(&id)?.clone(), percent));
    function.record.traffic.shares().filter_map(share).collect()
}

/// A function's routes, those for some methods first, each with the revisions that have it and their shares.
fn routes(function: &Function) -> Vec<(RouteConfig, Shares)> {
    let shares = shares(function);
    let mut routes: Vec<RouteConfig> = Vec::new();
    for (revision, _) in &shares {
        for route in &revision.record.config.routes {
            if !routes.contains(route) {
                routes.push(route.clone());
            }
        }
    }
    routes.sort_by_key(|route| route.methods.is_empty());
    let having = |route: &RouteConfig| {
        let has = |revision: &Revision| revision.record.config.routes.iter().any(|own| covers(own, route));
        shares.iter().filter(|(revision, _)| has(revision)).cloned().collect()
    };
    routes
        .into_iter()
        .map(|route| {
            let shares = having(&route);
            (route, shares)
        })
        .collect()
}

/// Whether every request of `route` is one of `own`.
fn covers(own: &RouteConfig, route: &RouteConfig) -> bool {
    let every = !route.methods.is_empty() && route.methods.iter().all(|method| own.methods.contains(method));
    own.host == route.host && own.path == route.path && (own.methods.is_empty() || every)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FunctionConfig;
    use crate::digest::Digest;
    use crate::names::Tenant;
    use crate::records::{FunctionRecord, RevisionRecord};
    use crate::traffic::Traffic;

    /// A function whose revisions have these paths, newest last.
    fn function(name: &str, traffic: &[&str], revisions: &[&[&str]]) -> Arc<Function> {
        let mut record = FunctionRecord::first(name.parse().unwrap(), Tenant::default());
        record.traffic = Traffic::parse(traffic.iter().copied()).unwrap();
        let revisions = revisions.iter().zip(1..).map(|(paths, number)| RevisionRecord {
            id: format!("r{number}").parse().unwrap(),
            component: Digest::of(b""),
            parts: Vec::new(),
            source: String::new(),
            config: FunctionConfig {
                routes: paths.iter().map(|path| RouteConfig::path(path.parse().unwrap())).collect(),
                sticky: Some("x-user".into()),
                ..FunctionConfig::default()
            },
            deployed_at: 0,
        });
        Arc::new(Function::new(record, revisions.collect()))
    }

    fn table(functions: &[Arc<Function>]) -> Table {
        Table::new(functions.iter().map(|function| (function.record.name.clone(), function.clone())).collect())
    }

    fn find(table: &Table, uri: &str, headers: &[(&str, &str)]) -> Result<String, String> {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let found = table.find(&parts).map_err(|error| error.to_string())?;
        Ok(format!("{} {}", found.function, found.record.id))
    }

    #[test]
    fn shares_are_kept_and_a_new_route_goes_to_the_revision_that_has_it() {
        let table = table(&[function("chat", &["r1=90", "r2=10"], &[&["/a"], &["/a", "/b"]])]);
        let to_new = (0..1000).filter(|_| find(&table, "/a", &[]).unwrap() == "chat r2").count();
        assert!((98..=102).contains(&to_new), "{to_new}");
        assert!((0..100).all(|_| find(&table, "/b", &[]).unwrap() == "chat r2"));
        let user = |n: u32| find(&table, "/a", &[("x-user", &n.to_string())]).unwrap();
        let sticky: Vec<_> = (0..200).map(user).collect();
        assert_eq!(sticky, (0..200).map(user).collect::<Vec<_>>(), "the same user, the same revision");
        assert!(sticky.contains(&"chat r1".into()) && sticky.contains(&"chat r2".into()));
    }

    #[test]
    fn each_revision_has_a_name_of_its_own() {
        let table = table(&[function("chat", &["r2=100"], &[&["/a"], &["/a"]])]);
        assert_eq!(find(&table, "/a", &[]).unwrap(), "chat r2");
        assert_eq!(find(&table, "/a", &[("hob-revision", "r1")]).unwrap(), "chat r1");
        for host in ["r1--chat.example.com", "R1--Chat.localhost:8080", "r1--chat"] {
            assert_eq!(find(&table, "/any", &[("host", host)]).unwrap(), "chat r1", "{host}");
        }
        assert_eq!(find(&table, "http://r1--chat.example.com:8080/x", &[]).unwrap(), "chat r1");
        assert!(find(&table, "/a", &[("hob-revision", "r9")]).unwrap_err().contains("no revision r9"));
        assert!(find(&table, "/a", &[("hob-revision", "nine")]).unwrap_err().contains("as in r7"));
        assert!(find(&table, "/x", &[("host", "r9--chat.x")]).unwrap_err().contains("no revision r9"));
        assert!(find(&table, "/x", &[("host", "r1--other.x")]).unwrap_err().contains("no function"));
    }

    #[test]
    fn routes_of_others_are_taken() {
        let one = function("one", &["r1=100"], &[&["/a", "/b"]]);
        let table = table(std::slice::from_ref(&one));
        let wanted = [RouteConfig::path("/x".parse().unwrap()), RouteConfig::path("/b".parse().unwrap())];
        let (route, by) = table.taken(&"two".parse().unwrap(), &wanted).unwrap();
        assert_eq!((route.to_string().as_str(), by.as_str()), ("/b", "one"));
        assert!(table.taken(&"one".parse().unwrap(), &wanted).is_none(), "its own are no conflict");
        assert!(table.taken(&"two".parse().unwrap(), &wanted[..1]).is_none());
    }
}
