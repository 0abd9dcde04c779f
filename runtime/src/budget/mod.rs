//! Budgets: how many tokens, sequences and bytes of KV a function may use, and its tenant over all its functions.
//!
//! They are kept where tokens are made: each sequence has a [`Purse`], which the engine asks before each token. One that is
//! used up ends the generation there, with a reason of its own; a generation that would begin beyond it is refused as
//! busy. Minutes and days are those of UTC; what was taken of them is known again after a restart, from the meter.
//!
//! A token of a prompt counts when its generation is queued, and goes back if that is cancelled before it begins; a token of an
//! answer counts when it is made.

mod purse;
mod window;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hob_gpu::{Bill, Terms};
use serde::{Deserialize, Serialize};

use crate::config::{Budget, Priority};
use crate::names::{FunctionName, Tenant};
use crate::usage::{Owner, Report};
pub use purse::Purse;
use window::Window;

/// What has been taken by one who has a budget.
#[derive(Debug)]
struct Counts {
    minute: Window,
    day: Window,
    sequences: AtomicU64,
    kv_bytes: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let (sequences, kv_bytes) = Default::default();
        Self { minute: Window::new(60), day: Window::new(86_400), sequences, kv_bytes }
    }
}

impl Counts {
    /// Takes of both windows, or of none. What the one with less has left.
    fn take(&self, tokens: u64, minute: u64, day: u64, now: u64) -> Option<u64> {
        let of_minute = self.minute.take(tokens, minute, now)?;
        let of_day = self.day.take(tokens, day, now);
        if of_day.is_none() {
            self.minute.give_back(tokens, now);
        }
        Some(of_minute.min(of_day?))
    }

    fn give_back(&self, tokens: u64, now: u64) {
        self.minute.give_back(tokens, now);
        self.day.give_back(tokens, now);
    }
}

/// A budget, and what was taken of it.
#[derive(Clone, Debug)]
struct Holder {
    /// `function` or `tenant`.
    whose: &'static str,
    limits: Arc<ArcSwap<Budget>>,
    counts: Arc<Counts>,
}

impl Holder {
    fn new(whose: &'static str, limits: Budget, counts: Arc<Counts>) -> Self {
        Self { whose, limits: Arc::new(ArcSwap::from_pointee(limits)), counts }
    }
}

/// What a function's sequences are held to: its own budget, and its tenant's.
#[derive(Debug)]
pub struct Allowance {
    holders: [Holder; 2],
    priority: Priority,
    /// Whether the function stands for itself, not for its tenant.
    alone: bool,
}

impl Allowance {
    /// The terms on which a sequence is computed that has such a budget, asked for by a request that ends at `deadline`.
    pub fn terms(&self, bill: Option<Arc<Bill>>, budget: Purse, deadline: Instant) -> Terms {
        let [function, tenant] = self.holders.each_ref().map(|holder| holder.limits.load());
        let weight = if self.alone { function.weight } else { tenant.weight };
        let patience = Duration::from_millis(function.wait_ms.min(tenant.wait_ms).into());
        let start_by = Some(deadline.min(Instant::now() + patience));
        let priority = match self.priority {
            Priority::Low => hob_gpu::Priority::Low,
            Priority::Normal => hob_gpu::Priority::Normal,
            Priority::High => hob_gpu::Priority::High,
        };
        Terms { bill, budget: Some(Box::new(budget)), weight, priority, start_by }
    }

    /// Tokens that one request may take.
    fn request_tokens(&self) -> u64 {
        let [function, tenant] = &self.holders;
        function.limits.load().request_tokens.min(tenant.limits.load().request_tokens)
    }
}

/// What a tenant may use, and uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaUse {
    /// Tokens taken in the minute that runs.
    pub minute_tokens: u64,
    /// Tokens taken in the day that runs.
    pub day_tokens: u64,
    /// Sequences, running and waiting.
    pub sequences: u64,
    /// Bytes of KV that these hold.
    pub kv_bytes: u64,
}

/// All budgets of a host, and what was taken of them.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    functions: HashMap<FunctionName, Arc<Counts>>,
    tenants: HashMap<Tenant, Holder>,
}

/// Functions of which counts are kept, whether they are deployed or not; beyond that those go that mean nothing.
const MANY: usize = 4096;

impl Budgets {
    /// What a revision's sequences are held to.
    pub fn allowance(&self, owner: &Owner, limits: Budget, priority: Priority) -> Arc<Allowance> {
        let mut known = self.known();
        let function = Holder::new("function", limits, known.function(&owner.function));
        let tenant = known.tenant(&owner.tenant).clone();
        Arc::new(Allowance { holders: [function, tenant], priority, alone: owner.tenant == Tenant::default() })
    }

    /// From now on a tenant is held to `limits`.
    pub fn set(&self, tenant: &Tenant, limits: Budget) {
        self.known().tenant(tenant).limits.store(Arc::new(limits));
    }

    /// What a tenant uses now.
    pub fn used(&self, tenant: &Tenant) -> QuotaUse {
        let counts = self.known().tenant(tenant).counts.clone();
        let now = now();
        QuotaUse {
            minute_tokens: counts.minute.used(now),
            day_tokens: counts.day.used(now),
            sequences: counts.sequences.load(Relaxed),
            kv_bytes: counts.kv_bytes.load(Relaxed),
        }
    }

    /// Takes up what was taken of the minute that began at `since`, in seconds since 1970, before this host started.
    pub fn take_up_minute(&self, since: u64, taken: &[(Tenant, FunctionName, u64)]) {
        let mut known = self.known();
        for (tenant, function, tokens) in taken {
            known.function(function).minute.add(*tokens, since);
            known.tenant(tenant).counts.minute.add(*tokens, since);
        }
    }

    /// Takes up what was taken of the day before this host started, as the meter knows it.
    pub fn take_up(&self, today: &Report) {
        let (mut known, now) = (self.known(), now());
        for row in &today.rows {
            let tokens = row.totals.prompt_tokens + row.totals.generated_tokens;
            let (Ok(function), Ok(tenant)) = (row.function.parse(), row.tenant.parse()) else { continue };
            if tokens > 0 {
                known.function(&function).day.add(tokens, now);
                known.tenant(&tenant).counts.day.add(tokens, now);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn function(&mut self, name: &FunctionName) -> Arc<Counts> {
        if self.functions.len() >= MANY && !self.functions.contains_key(name) {
            let now = now();
            self.functions.retain(|_, counts| Arc::strong_count(counts) > 1 || counts.day.used(now) > 0);
        }
        self.functions.entry(name.clone()).or_default().clone()
    }

    fn tenant(&mut self, name: &Tenant) -> &Holder {
        let new = || Holder::new("tenant", Budget::default(), Arc::default());
        self.tenants.entry(name.clone()).or_insert_with(new)
    }
}

/// When the day that runs began, in seconds since 1970.
pub fn today() -> u64 {
    let now = now();
    now - now % 86_400
}

/// When the minute that runs began, in seconds since 1970.
pub fn this_minute() -> u64 {
    let now = now();
    now - now % 60
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_gpu::{Budget as _, Grant, Refusal};

    fn owner(function: &str) -> Owner {
        let (function, tenant) = (function.parse().unwrap(), "acme".parse().unwrap());
        Owner { function, revision: crate::names::RevisionId::FIRST, tenant }
    }

    fn allowance(budgets: &Budgets, function: &str, limits: Budget) -> Arc<Allowance> {
        budgets.allowance(&owner(function), limits, Priority::Normal)
    }

    #[test]
    fn terms_are_those_of_the_account() {
        let budgets = Budgets::default();
        let limits = Budget { weight: 30, wait_ms: 5000, ..Budget::default() };
        budgets.set(&"acme".parse().unwrap(), Budget { weight: 700, wait_ms: 60_000, ..Budget::default() });
        let terms = |owner: &Owner, seconds| {
            let allowance = budgets.allowance(owner, limits, Priority::Low);
            let deadline = Instant::now() + Duration::from_secs(seconds);
            let terms = allowance.terms(None, purse(&allowance), deadline);
            assert_eq!(terms.priority, hob_gpu::Priority::Low);
            (terms.weight, terms.start_by.unwrap().saturating_duration_since(Instant::now()).as_secs_f64().round())
        };
        assert_eq!(terms(&owner("f"), 20), (700, 5.0), "its tenant's weight, the shorter wait");
        assert_eq!(
            terms(&Owner { tenant: Tenant::default(), ..owner("f") }, 2),
            (30, 2.0),
            "its own, and its deadline"
        );
    }

    fn purse(allowance: &Arc<Allowance>) -> Purse {
        Purse::new(allowance.clone(), Arc::default(), |_| {})
    }

    fn taken(purse: &mut Purse) -> u64 {
        let mut taken = 0;
        loop {
            match purse.take() {
                Grant::Token => taken += 1,
                Grant::LastToken => return taken + 1,
                Grant::Nothing => return taken,
            }
        }
    }

    #[test]
    fn a_day_is_shared_by_all_functions_of_a_tenant() {
        let budgets = Budgets::default();
        budgets.set(&"acme".parse().unwrap(), Budget { day_tokens: 1000, ..Budget::default() });
        let [one, two] =
            ["one", "two"].map(|name| allowance(&budgets, name, Budget { day_tokens: 600, ..Budget::default() }));
        let mut first = purse(&one);
        first.open(100, 1).unwrap();
        first.begin();
        assert_eq!(taken(&mut first), 500, "what its function may");
        let mut second = purse(&two);
        second.open(100, 1).unwrap();
        second.begin();
        assert_eq!(taken(&mut second), 300, "what is left to its tenant");
        assert_eq!(second.take(), Grant::Nothing);
        assert_eq!(budgets.used(&"acme".parse().unwrap()).day_tokens, 1000, "what was refused was not taken");
        let refused = purse(&two).open(1, 1).unwrap_err();
        assert!(matches!(refused, Refusal::Busy { retry_after } if retry_after.as_secs() <= 86_400), "{refused}");
        // More is granted, and it goes on.
        budgets.set(&"acme".parse().unwrap(), Budget { day_tokens: 1010, ..Budget::default() });
        assert_eq!(taken(&mut second), 10);
    }

    #[test]
    fn a_refused_or_cancelled_sequence_leaves_nothing_behind() {
        let budgets = Budgets::default();
        let limits = Budget {
            request_tokens: 50,
            minute_tokens: 100,
            day_tokens: 80,
            sequences: 2,
            kv_bytes: 1000,
            ..Budget::default()
        };
        let allowance = allowance(&budgets, "f", limits);
        let tenant = "acme".parse().unwrap();
        let request: Arc<AtomicU64> = Arc::default();
        let of_request = |told: Arc<Mutex<String>>| {
            Purse::new(allowance.clone(), request.clone(), move |why| *told.lock().unwrap() = why)
        };
        let told = Arc::new(Mutex::new(String::new()));
        for (prompt, kv, why) in [(50, 1, "50 tokens"), (1, 1001, "1000 bytes of KV")] {
            let refusal = of_request(told.clone()).open(prompt, kv).unwrap_err();
            assert!(matches!(refusal, Refusal::TooLong { .. }), "{refusal}");
            assert!(told.lock().unwrap().contains(why), "{told:?}");
        }
        let mut held: Vec<_> = (0..2).map(|_| of_request(told.clone())).collect();
        held[0].open(20, 600).unwrap();
        held[1].open(20, 400).unwrap();
        assert!(matches!(purse(&allowance).open(1, 1), Err(Refusal::Busy { .. })), "a third sequence");
        assert!(matches!(of_request(told.clone()).open(10, 1), Err(Refusal::TooLong { needed: 11, available: 10 })));
        held.pop();
        assert!(matches!(purse(&allowance).open(1, 401), Err(Refusal::Busy { .. })), "more KV");
        assert!(held[0].hold(1000) && !held[0].hold(1001) && held[0].hold(10));
        assert_eq!(budgets.used(&tenant), QuotaUse { minute_tokens: 20, day_tokens: 20, sequences: 1, kv_bytes: 10 });
        held.clear();
        assert_eq!(budgets.used(&tenant), QuotaUse { minute_tokens: 0, day_tokens: 0, sequences: 0, kv_bytes: 0 });
        assert_eq!(request.load(Relaxed), 0);
        // What has begun stays taken.
        let mut begun = of_request(told);
        begun.open(20, 1).unwrap();
        begun.begin();
        assert_eq!(taken(&mut begun), 30);
        drop(begun);
        let day = budgets.used(&tenant);
        assert_eq!((day.day_tokens, day.minute_tokens, request.load(Relaxed)), (50, 50, 50));
        assert!(matches!(purse(&allowance).open(40, 1), Err(Refusal::Busy { .. })), "the day has 30 left");
    }
}
