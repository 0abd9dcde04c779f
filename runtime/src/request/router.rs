//! From a request's host, path and method to what takes it.
//!
//! The most exact host wins: a name, then the longest `*.` pattern, then any host. Under it the longest path prefix
//! wins, of those that take the method.

use std::collections::HashMap;

use crate::config::RouteConfig;

/// Routes, each with what it leads to. Made anew for each change, read without a lock.
pub struct Router<T> {
    any: Paths<T>,
    names: HashMap<String, Paths<T>>,
    /// By what follows `*.`.
    wildcards: HashMap<String, Paths<T>>,
}

/// Path prefixes, each with the methods it takes, all if none is named.
struct Paths<T>(HashMap<String, Vec<(Vec<String>, T)>>);

/// What a request leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'r, T> {
    /// This.
    To(&'r T),
    /// There are routes with its path, for these methods only.
    OtherMethods(Vec<&'r str>),
    /// There is no route with its path.
    Nothing,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self { any: Paths::default(), names: HashMap::new(), wildcards: HashMap::new() }
    }
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Router<T> {
    /// Adds a route.
    pub fn add(&mut self, route: &RouteConfig, to: T) {
        let paths = match &route.host {
            None => &mut self.any,
            Some(host) => match host.wildcard() {
                None => self.names.entry(host.as_str().to_owned()).or_default(),
                Some(parent) => self.wildcards.entry(parent.to_owned()).or_default(),
            },
        };
        let here = paths.0.entry(route.path.to_string()).or_default();
        // Nearly always the only one, and there may be very many.
        here.reserve_exact(1);
        here.push((route.methods.clone(), to));
    }

    /// Whether some route names a host.
    pub fn knows_hosts(&self) -> bool {
        !(self.names.is_empty() && self.wildcards.is_empty())
    }

    /// What takes a request to `host`, in lower case without its port. As many look-ups as host and path have parts,
    /// however many routes there are.
    pub fn find<'r>(&'r self, host: Option<&str>, path: &str, method: &str) -> Found<'r, T> {
        let mut others = Vec::new();
        for paths in self.candidates(host) {
            if let Some(found) = paths.find(path, method, &mut others) {
                return Found::To(found);
            }
        }
        others.sort_unstable();
        others.dedup();
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }

    /// The paths to look at, the most exact host first.
    fn candidates<'r, 'h>(&'r self, host: Option<&'h str>) -> impl Iterator<Item = &'r Paths<T>> + use<'r, 'h, T> {
        let host = host.filter(|_| self.knows_hosts());
        let name = host.and_then(|host| self.names.get(host));
        let parents = host.into_iter().flat_map(|host| host.match_indices('.').map(|(at, _)| &host[at + 1..]));
        let wildcards = parents.filter_map(|parent| self.wildcards.get(parent));
        name.into_iter().chain(wildcards).chain([&self.any])
    }
}

impl<T> Paths<T> {
    fn find<'r>(&'r self, path: &str, method: &str, others: &mut Vec<&'r str>) -> Option<&'r T> {
        let mut prefix = path.trim_end_matches('/');
        loop {
            let here = if prefix.is_empty() { "/" } else { prefix };
            for (methods, to) in self.0.get(here).into_iter().flatten() {
                if methods.is_empty() || methods.iter().any(|own| takes(own, method)) {
                    return Some(to);
                }
                others.extend(methods.iter().map(String::as_str));
            }
            if prefix.is_empty() {
                return None;
            }
            prefix = &prefix[..prefix.rfind('/')?];
        }
    }
}

/// What is there to be got is there to be asked about.
fn takes(own: &str, method: &str) -> bool {
    own == method || own == "GET" && method == "HEAD"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GET,PUT host/path`, each part but the path optional.
    fn route(text: &str) -> RouteConfig {
        let (methods, place) = text.split_once(' ').unwrap_or(("", text));
        let (host, path) = place.split_at(place.find('/').unwrap());
        RouteConfig {
            host: (!host.is_empty()).then(|| host.parse().unwrap()),
            path: path.parse().unwrap(),
            methods: methods.split(',').filter(|method| !method.is_empty()).map(str::to_owned).collect(),
        }
    }

    fn router<'a>(routes: &[&'a str]) -> Router<&'a str> {
        let mut router = Router::default();
        routes.iter().for_each(|text| router.add(&route(text), *text));
        router
    }

    #[test]
    fn the_longest_prefix_wins() {
        let router = router(&["/", "/chat", "/chat/admin"]);
        for (path, route) in [
            ("/", "/"),
            ("/x", "/"),
            ("/chatter", "/"),
            ("/chat", "/chat"),
            ("/chat/", "/chat"),
            ("/chat/x/y", "/chat"),
            ("/chat/admin/x", "/chat/admin"),
        ] {
            assert_eq!(router.find(None, path, "GET"), Found::To(&route), "{path}");
        }
        let router = self::router(&["/chat"]);
        assert_eq!(router.find(None, "/", "GET"), Found::Nothing);
        assert_eq!(router.find(None, "*", "GET"), Found::Nothing);
    }

    #[test]
    fn the_most_exact_host_wins() {
        let router = router(&["/a", "x.example.com/", "*.example.com/a", "*.x.example.com/a"]);
        for (host, path, route) in [
            (Some("x.example.com"), "/a", "x.example.com/"),
            (Some("y.example.com"), "/a", "*.example.com/a"),
            (Some("y.x.example.com"), "/a", "*.x.example.com/a"),
            (Some("z.y.x.example.com"), "/a", "*.x.example.com/a"),
            (Some("example.com"), "/a", "/a"),
            (Some("other"), "/a", "/a"),
            (None, "/a", "/a"),
        ] {
            assert_eq!(router.find(host, path, "GET"), Found::To(&route), "{host:?}");
        }
        assert_eq!(router.find(Some("y.example.com"), "/b", "GET"), Found::Nothing);
    }

    #[test]
    fn methods_choose_between_routes() {
        let router = router(&["GET /a", "POST,PUT /a", "GET /a/b"]);
        assert_eq!(router.find(None, "/a", "GET"), Found::To(&"GET /a"));
        assert_eq!(router.find(None, "/a", "HEAD"), Found::To(&"GET /a"));
        assert_eq!(router.find(None, "/a", "PUT"), Found::To(&"POST,PUT /a"));
        assert_eq!(router.find(None, "/a/b", "PUT"), Found::To(&"POST,PUT /a"), "a shorter prefix that takes it");
        assert_eq!(router.find(None, "/a/b", "DELETE"), Found::OtherMethods(vec!["GET", "POST", "PUT"]));
    }
}
