//! Functions and their revisions in memory, and how they are shown.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use serde::{Deserialize, Serialize};

use crate::config::RouteConfig;
use crate::digest::Digest;
use crate::names::{FunctionName, ModelName, RevisionId, Tenant};
use crate::records::{FunctionRecord, RevisionRecord};
use crate::request::Callable;
use crate::telemetry::{Load, Telemetry, Watched};
use crate::traffic::Traffic;
use crate::usage::Owner;

/// A function as it is at one moment; a change makes a new one, around the same revisions.
#[derive(Clone)]
pub struct Function {
    /// Its record.
    pub record: FunctionRecord,
    /// Those that are kept.
    pub revisions: BTreeMap<RevisionId, Arc<Revision>>,
}

/// A revision: what it is, and, once it was called, what is called.
pub struct Revision {
    /// The function it belongs to.
    pub function: FunctionName,
    /// Its record.
    pub record: RevisionRecord,
    /// Whom its tokens are counted for.
    pub account: u64,
    /// Who pays.
    tenant: Tenant,
    /// Linked at the first call; gone again when its memory is needed, or it is out of service.
    callable: ArcSwapOption<Callable>,
    /// Why it cannot be called, once that is known for good.
    broken: OnceLock<String>,
    used: AtomicU64,
    /// What is seen of its function.
    watched: OnceLock<Arc<Watched>>,
    /// Its id, as answers say it.
    header: OnceLock<HeaderValue>,
    /// Who is billed; made when it is called.
    owner: OnceLock<Arc<Owner>>,
}

impl Function {
    /// A function of these records.
    pub fn new(record: FunctionRecord, revisions: Vec<RevisionRecord>) -> Self {
        let of = |revision: RevisionRecord| (revision.id, Arc::new(Revision::new(&record, revision)));
        let revisions = revisions.into_iter().map(of).collect();
        Self { record, revisions }
    }

    /// The revisions that take requests, or will once their models are resident.
    pub fn wanted(&self) -> impl Iterator<Item = &Arc<Revision>> {
        let wanted = |id: &RevisionId| self.record.traffic.has(*id) || self.pending(*id);
        self.revisions.iter().filter(move |(id, _)| wanted(id)).map(|(_, revision)| revision)
    }

    /// Whether no share of requests, and no rollback, leads to `id`.
    pub fn is_spare(&self, id: RevisionId) -> bool {
        let record = &self.record;
        let tables = [Some(&record.traffic), record.previous.as_ref(), record.pending.as_ref()];
        !tables.into_iter().flatten().any(|table| table.has(id))
    }

    fn pending(&self, id: RevisionId) -> bool {
        self.record.pending.as_ref().is_some_and(|pending| pending.has(id))
    }

    /// How it is shown.
    pub fn status(&self, warming: Option<&str>) -> FunctionStatus {
        let record = &self.record;
        let serving: Vec<_> = self.revisions.values().filter(|r| record.traffic.has(r.record.id)).collect();
        let newest = serving.last().map(|revision| &revision.record);
        let broken = serving.iter().find_map(|revision| revision.broken());
        let (state, why) = match (broken, &record.pending) {
            (Some(why), _) => (FunctionState::Broken, Some(why.to_owned())),
            (None, Some(pending)) => {
                let why = warming.map_or_else(|| format!("{pending} once its models are resident"), str::to_owned);
                (FunctionState::Warming, Some(why))
            }
            (None, None) => (FunctionState::Ready, None),
        };
        FunctionStatus {
            name: record.name.clone(),
            tenant: record.tenant.clone(),
            routes: newest.map(|revision| revision.config.routes.clone()).unwrap_or_default(),
            models: newest.map(|revision| revision.config.models.clone()).unwrap_or_default(),
            component: newest.map(|revision| revision.component),
            deployed_at: newest.map_or(0, |revision| revision.deployed_at),
            latest: record.latest,
            traffic: record.traffic.clone(),
            previous: record.previous.clone(),
            pending: record.pending.clone(),
            state,
            why,
        }
    }

    /// How its revisions are shown, newest first.
    pub fn revisions(&self) -> Vec<RevisionStatus> {
        let share = |id| self.record.traffic.shares().find(|(other, _)| *other == id).map_or(0, |(_, percent)| percent);
        let status = |revision: &Arc<Revision>| RevisionStatus {
            share: share(revision.record.id),
            state: match revision.broken() {
                Some(_) => RevisionState::Broken,
                None if self.pending(revision.record.id) => RevisionState::Warming,
                None if share(revision.record.id) > 0 => RevisionState::Serving,
                None => RevisionState::Idle,
            },
            why: revision.broken().map(str::to_owned),
            record: revision.record.clone(),
        };
        self.revisions.values().rev().map(status).collect()
    }
}

impl Revision {
    /// A revision of a function.
    pub fn new(function: &FunctionRecord, mut record: RevisionRecord) -> Self {
        // There may be very many, and reading leaves room for more.
        record.config.routes.shrink_to_fit();
        Self {
            function: function.name.clone(),
            record,
            account: account(function),
            tenant: function.tenant.clone(),
            callable: ArcSwapOption::empty(),
            broken: OnceLock::new(),
            used: AtomicU64::new(0),
            watched: OnceLock::new(),
            header: OnceLock::new(),
            owner: OnceLock::new(),
        }
    }

    /// What is called, if it was called before. `now` is the components' clock.
    pub fn callable(&self, now: u64) -> Option<Arc<Callable>> {
        // A write for each request would only make the cores pass this line back and forth.
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
        self.callable.load_full()
    }

    /// Keeps what is called. When two come at once the first is kept.
    pub fn keep(&self, callable: Arc<Callable>) -> Arc<Callable> {
        let before = self.callable.compare_and_swap(&None::<Arc<Callable>>, Some(callable.clone()));
        before.as_ref().map_or(callable, Arc::clone)
    }

    /// Lets go of it; requests that run hold their own.
    pub fn let_go(&self) {
        self.callable.store(None);
    }

    /// Lets go of it unless a request runs. Whether it holds nothing now.
    pub fn let_go_if_idle(&self) -> bool {
        let idle = match &*self.callable.load() {
            // One for this place, one for the borrow at most.
            Some(callable) => Arc::strong_count(callable) <= 2,
            None => return true,
        };
        if idle {
            self.let_go();
        }
        idle
    }

    /// Where its requests are counted.
    pub fn watched(&self, telemetry: &Telemetry) -> &Arc<Watched> {
        self.watched.get_or_init(|| telemetry.watch(&self.function))
    }

    /// Its id, in the header of an answer.
    pub fn header(&self) -> HeaderValue {
        let made = || HeaderValue::try_from(self.record.id.to_string()).expect("it is a letter and digits");
        self.header.get_or_init(made).clone()
    }

    /// Who is billed for its invocations.
    pub fn owner(&self) -> Arc<Owner> {
        let make = || {
            let (function, revision, tenant) = (self.function.clone(), self.record.id, self.tenant.clone());
            Arc::new(Owner { function, revision, tenant })
        };
        self.owner.get_or_init(make).clone()
    }

    /// The requests it has now.
    pub fn load(&self) -> Load {
        let callable = self.callable.load();
        let (running, queued) = callable.as_ref().map_or((0, 0), |callable| callable.gate.load());
        Load { running: running.into(), queued: queued.into() }
    }

    /// When it was called last, by the components' clock.
    pub fn last_use(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Why it cannot be called.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Notes that it can never be called.
    pub fn break_for_good(&self, why: String) {
        // Two that find out at once say the same.
        let _ = self.broken.set(why);
    }
}

/// A function, as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FunctionStatus {
    /// Its name.
    pub name: FunctionName,
    /// Whose it is.
    pub tenant: Tenant,
    /// Where its requests come in; of the newest revision in service, as is what follows.
    pub routes: Vec<RouteConfig>,
    /// The models it may use.
    pub models: Vec<ModelName>,
    /// The component.
    pub component: Option<Digest>,
    /// When it was deployed, in seconds since 1970.
    pub deployed_at: u64,
    /// The newest revision, in service or not.
    pub latest: RevisionId,
    /// How requests are shared out.
    pub traffic: Traffic,
    /// What a rollback goes back to.
    #[serde(default)]
    pub previous: Option<Traffic>,
    /// What comes once its models are resident.
    #[serde(default)]
    pub pending: Option<Traffic>,
    /// How it is.
    pub state: FunctionState,
    /// More about that.
    #[serde(default)]
    pub why: Option<String>,
}

/// How a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FunctionState {
    /// It takes requests.
    Ready,
    /// It takes requests in earlier revisions, while the models of a new one are loaded.
    Warming,
    /// A revision in service cannot be called.
    Broken,
}

/// A revision, as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevisionStatus {
    /// Its record.
    #[serde(flatten)]
    pub record: RevisionRecord,
    /// Its share of requests, in percent.
    pub share: u8,
    /// How it is.
    pub state: RevisionState,
    /// More about that.
    #[serde(default)]
    pub why: Option<String>,
}

/// How a revision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevisionState {
    /// It takes a share of the requests.
    Serving,
    /// It will, once its models are resident.
    Warming,
    /// It takes only requests that name it.
    Idle,
    /// It cannot be called.
    Broken,
}

/// Whom a function's tokens are counted for: its tenant; under the default tenant each function stands for itself.
pub(super) fn account(function: &FunctionRecord) -> u64 {
    account_of(&function.name, &function.tenant)
}

/// The same of what is no function, but counts as one.
pub(super) fn account_of(name: &FunctionName, tenant: &Tenant) -> u64 {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    match *tenant == Tenant::default() {
        true => name.as_str().hash(&mut hasher),
        false => ("tenant", tenant.as_str()).hash(&mut hasher),
    }
    hasher.finish()
}
