//! What tenants may use: set, shown, and known again after a restart.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::deploy::DeployError;
use super::{Host, HostError};
use crate::budget::{Budgets, QuotaUse, this_minute, today};
use crate::config::Budget;
use crate::names::Tenant;
use crate::records::Records;
use crate::usage::{Query, Usage};

/// A tenant, as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// Its name.
    pub name: Tenant,
    /// What it may use, over all its functions.
    pub quota: Budget,
    /// What it uses.
    pub used: QuotaUse,
}

/// Takes up what was set, and what was taken of the day and the minute that run.
pub(super) fn take_up(budgets: &Budgets, records: &Records, usage: &Usage) -> Result<(), HostError> {
    for (tenant, quota) in records.quotas()? {
        budgets.set(&tenant, quota);
    }
    budgets.take_up(&usage.report(&Query { since: Some(today()), ..Query::default() })?);
    let since = this_minute();
    budgets.take_up_minute(since, &usage.tokens_since(since)?);
    Ok(())
}

impl Host {
    /// All tenants that have functions, keys or a quota.
    ///
    /// # Errors
    /// `Records`.
    pub fn tenants(&self) -> Result<Vec<TenantStatus>, DeployError> {
        let quotas = self.records.quotas()?;
        let mut names: BTreeSet<Tenant> = quotas.keys().cloned().collect();
        names.extend(self.table.load().functions().map(|function| function.record.tenant.clone()));
        names.extend(self.keys.list().into_iter().map(|key| key.tenant));
        let status = |name: Tenant| {
            let quota = quotas.get(&name).copied().unwrap_or_default();
            let used = self.services.budgets.used(&name);
            TenantStatus { name, quota, used }
        };
        Ok(names.into_iter().map(status).collect())
    }

    /// Holds a tenant to `quota` from now on, also what runs; the default one holds it to nothing.
    ///
    /// # Errors
    /// `Config`, `Records`; then all is as it was.
    pub fn set_quota(&self, tenant: &Tenant, quota: Budget) -> Result<(), DeployError> {
        let mistakes: Vec<_> = quota.settings().iter().filter_map(|setting| setting.mistake()).collect();
        if !mistakes.is_empty() {
            return Err(DeployError::Config(mistakes));
        }
        let _changing = self.changing();
        self.records.put_quota(tenant, &quota)?;
        self.services.budgets.set(tenant, quota);
        Ok(())
    }
}
