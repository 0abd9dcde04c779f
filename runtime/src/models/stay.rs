//! How long callers wish models to stay: what the operator has said goes before it, and it is forgotten when a model goes.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hob_gpu::Policy;

/// How long a model stays after it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// So long.
    Idle(Duration),
    /// Whether anybody uses it or not.
    Forever,
}

/// What callers wished last, by digest.
#[derive(Debug, Default)]
pub(super) struct Stays(Mutex<HashMap<String, Stay>>);

impl Stays {
    /// Notes a wish.
    pub fn set(&self, digest: String, stay: Stay) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, stay);
    }

    /// The operator's policy, with what a caller wished where that says nothing.
    pub fn over(&self, digest: &str, policy: Policy) -> Policy {
        if policy.pinned || policy.idle.is_some() {
            return policy;
        }
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest) {
            Some(Stay::Idle(idle)) => Policy { idle: Some(*idle), ..policy },
            Some(Stay::Forever) => Policy { pinned: true, ..policy },
            None => policy,
        }
    }

    /// Forgets wishes for models that are not in memory.
    pub fn keep_only(&self, present: &HashSet<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|digest, _| present.contains(digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_goes_first_and_wishes_end_with_the_model() {
        let stays = Stays::default();
        stays.set("a".into(), Stay::Idle(Duration::from_secs(5)));
        let said = |seconds| Policy { idle: Some(Duration::from_secs(seconds)), ..Policy::default() };
        assert_eq!(stays.over("a", Policy::default()), said(5));
        assert_eq!(stays.over("a", said(9)), said(9));
        stays.set("a".into(), Stay::Forever);
        assert!(stays.over("a", Policy::default()).pinned);
        stays.keep_only(&HashSet::new());
        assert_eq!(stays.over("a", Policy::default()), Policy::default());
    }
}
