//! Calls that no guest sees: what the model APIs do for a tenant goes through the same meter and budgets as a
//! function's invocations, and is listed among these.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use http::request::Parts;

use super::Host;
use crate::budget::Allowance;
use crate::config::{Budget, Priority};
use crate::names::{FunctionName, RevisionId, Tenant};
use crate::request::{Invocation, RequestError};
use crate::telemetry::{Trace, Watched};
use crate::usage::Owner;

/// The name under which such calls are metered and budgeted, and listed among invocations. No function can have it.
pub const MODEL_API: &str = "model-api";

/// One call, for as long as it goes on.
pub struct Called {
    /// What it is accounted as.
    pub invocation: Arc<Invocation>,
    /// What its tenant may use.
    pub allowance: Arc<Allowance>,
    /// Where its answer is counted.
    pub watched: Arc<Watched>,
    /// While it is there, the host is not drained.
    _running: Arc<()>,
}

impl Host {
    /// Begins a call for `tenant`; `None` if the host takes no more.
    pub fn call(&self, tenant: &Tenant, parts: &Parts, started: Instant) -> Option<Called> {
        if self.is_draining() {
            return None;
        }
        let function: FunctionName = MODEL_API.parse().expect("it is a name");
        let trace =
            self.trace(&parts.headers, || (format!("{} {function}", parts.method), parts.uri.path().to_owned()));
        let owner = Arc::new(Owner { function: function.clone(), revision: RevisionId::FIRST, tenant: tenant.clone() });
        let allowance = self.services.budgets.allowance(&owner, Budget::default(), Priority::Normal);
        let account = super::function::account_of(&function, tenant);
        let watched = self.telemetry.watch(&function);
        let invocation = Invocation::start(function, account, started, self.recent.clone());
        let tab = self.usage.begin(owner, invocation.number, started, invocation.meter.clone());
        let invocation = Arc::new(invocation.watched(watched.clone()).traced(trace).billed(tab));
        Some(Called { invocation, allowance, watched, _running: self.calls.clone() })
    }

    /// Whether such a request is for some function, be it that it names a revision or has a method that is not there.
    pub fn has_route(&self, parts: &Parts) -> bool {
        !matches!(self.table.load().find(parts), Err(RequestError::NoRoute(_)))
    }

    fn trace(&self, headers: &HeaderMap, called: impl FnOnce() -> (String, String)) -> Option<Trace> {
        Trace::begin(headers, called, self.exporter.as_ref())
    }
}
