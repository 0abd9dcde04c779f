//! From a path to the function whose route is its longest prefix.

use std::collections::HashMap;

use crate::names::Route;

/// Routes, each with what it leads to. Made anew for each change, read without a lock.
pub struct Router<T> {
    routes: HashMap<String, T>,
}

impl<T: Clone> Router<T> {
    /// A router of these routes.
    pub fn new(routes: impl IntoIterator<Item = (Route, T)>) -> Self {
        Self { routes: routes.into_iter().map(|(route, to)| (route.into(), to)).collect() }
    }

    /// What takes `path`. As many look-ups as the path has parts, however many routes there are.
    pub fn find(&self, path: &str) -> Option<T> {
        let mut prefix = path.trim_end_matches('/');
        loop {
            match prefix {
                "" => return self.routes.get("/").cloned(),
                _ => {
                    if let Some(to) = self.routes.get(prefix) {
                        return Some(to.clone());
                    }
                }
            }
            prefix = &prefix[..prefix.rfind('/')?];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let routes = ["/", "/chat", "/chat/admin"].map(|route| (route.parse().unwrap(), route));
        let router = Router::new(routes);
        for (path, route) in [
            ("/", "/"),
            ("/x", "/"),
            ("/chatter", "/"),
            ("/chat", "/chat"),
            ("/chat/", "/chat"),
            ("/chat/x/y", "/chat"),
            ("/chat/admin/x", "/chat/admin"),
        ] {
            assert_eq!(router.find(path), Some(route), "{path}");
        }
        let router = Router::new([("/chat".parse().unwrap(), ())]);
        assert_eq!(router.find("/"), None);
        assert_eq!(router.find("*"), None);
    }
}
