//! What a host shows of itself: numbers, and the lines of its functions.

use std::collections::HashMap;
use std::sync::Arc;

use super::Host;
use super::deploy::DeployError;
use crate::names::{FunctionName, Tenant};
use crate::telemetry::{Gauges, Load, UsageCounts, Watched, exposition};

impl Host {
    /// Its numbers, as Prometheus reads them: all of them, or those of one tenant's functions.
    pub fn metrics(&self, tenant: Option<&Tenant>) -> String {
        let table = self.table.load();
        let sees = |name: &FunctionName| {
            // A plugin is in no table: its numbers are the host's.
            tenant.is_none_or(|tenant| table.get(name).is_some_and(|function| function.record.tenant == *tenant))
        };
        let mut loads = HashMap::new();
        for function in table.functions() {
            let mut load = Load::default();
            for now in function.revisions.values().map(|revision| revision.load()) {
                load.running += now.running;
                load.queued += now.queued;
            }
            if load != Load::default() {
                loads.insert(function.record.name.clone(), load);
            }
        }
        let gauges = || {
            let engines = self.services.library.engines();
            Gauges { functions: table.functions().count(), models: engines.models(), engine: engines.stats() }
        };
        let mut tokens = self.usage.tokens();
        let seen = |name: &str| name.parse().map_or(tenant.is_none(), |name| sees(&name));
        tokens.retain(|(function, _), _| seen(function));
        let records = self.usage.billed_through().record;
        let usage = UsageCounts { tokens, records, lost: self.usage.lost(), waiting: self.usage.waiting() };
        exposition(&self.telemetry, sees, &loads, usage, tenant.is_none().then(gauges))
    }

    /// What is seen of a tenant's function.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn watch(&self, tenant: &Tenant, name: &FunctionName) -> Result<Arc<Watched>, DeployError> {
        let table = self.table.load();
        let function = table.get(name).filter(|function| function.record.tenant == *tenant);
        function.map(|_| self.telemetry.watch(name)).ok_or_else(|| DeployError::NotFound(name.clone()))
    }
}
