//! The description of the model APIs that programs read, OpenAPI 3.1: `openapi.json` beside this file, as it is.
//!
//! `tests/clients/with_schemathesis.py` makes requests from it and holds the answers to it.

/// The document.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model_api::paths::{self, What};

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// A path as clients ask for it.
    fn asked(path: &str) -> String {
        path.replace("{model}", "smollm2:135m").replace("{digest}", "sha256:00")
    }

    #[test]
    fn every_call_is_described_with_its_methods() {
        let document = document();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let described = document["paths"].as_object().unwrap();
        for (path, operations) in described {
            let found = paths::find(&asked(path)).unwrap_or_else(|| panic!("{path} is not answered"));
            assert_ne!(found.what, What::Missing, "{path}");
            let methods: Vec<String> = operations.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
            let taken: Vec<_> =
                found.what.methods().iter().map(http::Method::as_str).filter(|m| *m != "HEAD").collect();
            assert_eq!(methods, taken, "{path}");
        }
        for (path, ..) in paths::CALLS {
            assert!(described.contains_key(*path), "{path} is not described");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        for part in DOCUMENT.split("\"#/").skip(1) {
            let place = part.split('"').next().unwrap();
            assert!(document.pointer(&format!("/{place}")).is_some_and(Value::is_object), "{place}");
        }
    }
}
