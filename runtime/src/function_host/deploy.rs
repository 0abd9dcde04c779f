//! What changes a host: upload, deploy, share out, roll back, remove. One change at a time; each is on disk before it
//! is in force, and one that is refused leaves everything as it was.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Host;
use super::function::{Function, FunctionStatus, Revision, RevisionStatus};
use super::table::Table;
use crate::compose::{self, ComposeError, Part};
use crate::config::{FunctionConfig, RouteConfig, Secrets};
use crate::digest::Digest;
use crate::instance::component::{self, ComponentError};
use crate::models::store::StoreError;
use crate::names::{FunctionName, RevisionId, Tenant};
use crate::records::{FunctionRecord, PartRecord, RecordsError, RevisionRecord};
use crate::traffic::Traffic;

/// Revisions that are kept of a function, beside those that take requests or that a rollback leads to.
pub const KEPT_REVISIONS: usize = 20;

/// Why a host is not changed. Everything is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The component.
    #[error("component {digest} cannot be deployed: {source}", digest = .digest.short())]
    Component {
        /// Which one.
        digest: Digest,
        /// Why.
        source: ComponentError,
    },
    /// Its middleware.
    #[error(transparent)]
    Middleware(#[from] ComposeError),
    /// It was never uploaded.
    #[error("component {0} is not here; upload it first")]
    NotUploaded(Digest),
    /// What was uploaded is not what was announced.
    #[error("the upload's digest is {got}, not {expected}; it was changed on the way, send it again")]
    WrongDigest {
        /// As announced.
        expected: Digest,
        /// As received.
        got: Digest,
    },
    /// A model it asks for.
    #[error(transparent)]
    Model(#[from] StoreError),
    /// Its configuration.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// A route belongs to another function.
    #[error("route `{route}` is taken by function `{by}`; choose another route, or remove it with `hob rm {by}`")]
    RouteTaken {
        /// The route asked for.
        route: RouteConfig,
        /// The function that has it.
        by: FunctionName,
    },
    /// A route belongs to another tenant's function, whose name is nobody else's business.
    #[error("route `{0}` is taken by another tenant; choose another route")]
    RouteTakenElsewhere(RouteConfig),
    /// The function belongs to somebody else.
    #[error("function `{0}` belongs to another tenant; choose another name")]
    NotYours(FunctionName),
    /// No such function.
    #[error("no function is called `{0}`; `hob list` shows those that are")]
    NotFound(FunctionName),
    /// No such revision.
    #[error("function `{function}` has no revision {revision}; `hob revisions {function}` shows those it has")]
    NoRevision {
        /// The function.
        function: FunctionName,
        /// What it does not have.
        revision: RevisionId,
    },
    /// There is nothing to go back to.
    #[error("function `{0}` has nothing to go back to: its traffic was never changed")]
    NoPrevious(FunctionName),
    /// A first revision must take requests.
    #[error("this is the first revision of `{0}`: it takes all traffic; deploy it without --no-traffic")]
    FirstWithoutTraffic(FunctionName),
    /// The database.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The disk.
    #[error("it cannot be kept: {0}; is the disk full?")]
    Disk(#[from] std::io::Error),
}

/// What to deploy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// An uploaded component.
    pub component: Digest,
    /// What the function is given and held to.
    #[serde(default)]
    pub config: FunctionConfig,
    /// The values of the secrets that `config` names.
    #[serde(default, skip_serializing_if = "Secrets::is_empty")]
    pub secrets: Secrets,
    /// Where the component came from, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Uploaded components that requests pass before it, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub middleware: Vec<PartRecord>,
    /// Whether the new revision is to take all requests. If not it takes those that name it.
    #[serde(default = "yes")]
    pub traffic: bool,
}

impl DeployRequest {
    /// A component with its configuration, to take all requests.
    pub fn new(component: Digest, config: FunctionConfig) -> Self {
        Self {
            component,
            config,
            secrets: Secrets::default(),
            source: String::new(),
            middleware: Vec::new(),
            traffic: true,
        }
    }
}

impl DeployRequest {
    /// Its middleware, and the component.
    fn all(&self) -> impl Iterator<Item = PartRecord> + '_ {
        let own = PartRecord { component: self.component, source: self.source.clone() };
        self.middleware.iter().cloned().chain([own])
    }

    /// What a revision says it was made of: nothing, if it is one component.
    fn parts(&self) -> Vec<PartRecord> {
        if self.middleware.is_empty() { Vec::new() } else { self.all().collect() }
    }
}

fn yes() -> bool {
    true
}

/// What a deployment came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deployed {
    /// The new revision.
    pub revision: RevisionId,
    /// The function now.
    pub function: FunctionStatus,
}

impl Host {
    /// Keeps an uploaded component. Blocks while it writes.
    ///
    /// # Errors
    /// `WrongDigest`, `Component` if it is none, `Disk`.
    pub fn upload(&self, expected: Digest, bytes: &[u8]) -> Result<(), DeployError> {
        let got = Digest::of(bytes);
        if got != expected {
            return Err(DeployError::WrongDigest { expected, got });
        }
        component::check_kind(bytes).map_err(|source| DeployError::Component { digest: got, source })?;
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(got, Instant::now());
        Ok(self.data.write(&self.data.component(&got), bytes)?)
    }

    /// Makes a revision of a function, and the function if it is the first. Blocks while it compiles.
    ///
    /// It takes requests at once, or when the models it names are resident; those that run end in the revision that
    /// they began in.
    ///
    /// # Errors
    /// See [`DeployError`].
    pub fn deploy(&self, tenant: &Tenant, name: FunctionName, request: DeployRequest) -> Result<Deployed, DeployError> {
        let component = self.checked(tenant, &name, &request)?;
        let _changing = self.changing();
        let table = self.table.load_full();
        let old = table.get(&name);
        // Again: another change may have come between.
        self.check_place(&table, tenant, &name, &request)?;
        if !self.data.component(&component).exists() {
            return Err(DeployError::NotUploaded(component));
        }
        let parts = request.parts();
        let DeployRequest { config, secrets, source, traffic, .. } = request;
        let id = old.map_or(RevisionId::FIRST, |old| old.record.latest.next());
        let deployed_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let revision = RevisionRecord { id, component, source, parts, config, deployed_at };
        let mut function = match old {
            Some(old) => Function::clone(old),
            None => Function::new(FunctionRecord::first(name.clone(), tenant.clone()), Vec::new()),
        };
        function.record.latest = id;
        function.revisions.insert(id, Revision::new(&function.record, revision.clone()).into());
        if old.is_some() && traffic {
            self.share_out(&mut function, Traffic::all(id));
        }
        let let_go = spare(&function, id);
        let dropped: Vec<_> = let_go.iter().filter_map(|id| function.revisions.remove(id)).collect();
        if old.is_none() {
            // What another of this name kept, if its end was cut short.
            self.services.stores.forget(&name)?;
        }
        if !secrets.is_empty() {
            let text = serde_json::to_vec(&secrets).expect("secrets have only string keys");
            self.data.write(&self.data.secrets(&name, id), &text)?;
        }
        self.records.deploy(&function.record, &revision, &let_go)?;
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&component);
        let table = self.put(table.with(function), &name);
        self.sweep(&table, &dropped);
        let function = table.get(&name).expect("it was put there");
        self.have_ready(function, id);
        Ok(Deployed { revision: id, function: self.status_of(function) })
    }

    /// Maps what was deployed: it is about to be called, and would be mapped and linked by its first request. Idle for some
    /// minutes, it is let go of like all others.
    fn have_ready(&self, function: &Function, id: RevisionId) {
        if let Some(revision) = function.revisions.get(&id)
            && revision.callable(self.components.clock()).is_none()
            && let Err(why) = self.make(revision)
        {
            // Its first request tries again, and says why not.
            tracing::debug!(function = %revision.function, why, "not mapped ahead");
        }
    }

    /// What [`Host::deploy`] would refuse, without deploying. Blocks while it compiles.
    ///
    /// # Errors
    /// See [`DeployError`].
    pub fn check(&self, tenant: &Tenant, name: &FunctionName, request: &DeployRequest) -> Result<(), DeployError> {
        self.checked(tenant, name, request).map(drop)
    }

    /// The component that is to be called, once nothing speaks against it.
    fn checked(&self, tenant: &Tenant, name: &FunctionName, request: &DeployRequest) -> Result<Digest, DeployError> {
        let mut mistakes = self.mistakes(&request.config, &request.secrets);
        if name.as_str() == super::MODEL_API {
            mistakes.push(format!("the model APIs are counted as `{name}`; choose another name"));
        }
        if request.config.routes.is_empty() {
            mistakes.push("it has no route, so that nothing can reach it".into());
        }
        self.refuse_mistakes(mistakes, &request.config)?;
        self.check_place(&self.table.load(), tenant, name, request)?;
        let digest = self.whole(request)?;
        match self.components.link(&digest, request.config.grants(), None) {
            Ok(_) => Ok(digest),
            Err(source) => Err(DeployError::Component { digest, source }),
        }
    }

    /// The component with its middleware before it. Made anew each time: that takes less than compiling it does, once.
    fn whole(&self, request: &DeployRequest) -> Result<Digest, DeployError> {
        let component = request.component;
        if let Some(missing) =
            request.all().map(|part| part.component).find(|digest| !self.data.component(digest).exists())
        {
            return Err(DeployError::NotUploaded(missing));
        }
        if request.middleware.is_empty() {
            return Ok(component);
        }
        let read = |part: PartRecord| -> Result<Part, DeployError> {
            Ok(Part { name: part.name(), bytes: std::fs::read(self.data.component(&part.component))? })
        };
        let mut parts = request.all().map(read).collect::<Result<Vec<_>, _>>()?;
        let handler = parts.pop().expect("the component itself is the last");
        let bytes = compose::chain(parts, handler)?;
        let digest = Digest::of(&bytes);
        self.upload(digest, &bytes)?;
        Ok(digest)
    }

    /// Shares a function's requests out anew; at once, or when the models that this needs are resident.
    ///
    /// # Errors
    /// `NotFound`, `NoRevision`, `RouteTaken`, `Records`.
    pub fn set_traffic(
        &self,
        tenant: &Tenant,
        name: &FunctionName,
        traffic: Traffic,
    ) -> Result<FunctionStatus, DeployError> {
        self.change(tenant, name, |host, function| {
            host.share_out(function, traffic);
            Ok(())
        })
    }

    /// Goes back to how requests were shared out before the last change, at once. A change that is not yet in force is
    /// given up instead.
    ///
    /// # Errors
    /// `NotFound`, `NoPrevious`, `RouteTaken`, `Records`.
    pub fn rollback(&self, tenant: &Tenant, name: &FunctionName) -> Result<FunctionStatus, DeployError> {
        self.change(tenant, name, |_, function| {
            let record = &mut function.record;
            if record.pending.take().is_none() {
                let previous = record.previous.take().ok_or_else(|| DeployError::NoPrevious(name.clone()))?;
                record.previous = Some(std::mem::replace(&mut record.traffic, previous));
            }
            Ok(())
        })
    }

    /// Takes a function out of service, with all its revisions and what it kept between requests. Requests that run go on to their end.
    ///
    /// # Errors
    /// `NotFound`, `Records`.
    pub fn remove(&self, tenant: &Tenant, name: &FunctionName) -> Result<(), DeployError> {
        let _changing = self.changing();
        let table = self.table.load_full();
        let function = own(&table, tenant, name)?;
        self.records.remove(name)?;
        let table = self.put(table.without(name), name);
        if let Err(error) = self.services.stores.forget(name) {
            tracing::warn!(function = %name, %error, "what it kept could not be removed");
        }
        self.telemetry.forget(name);
        let dropped: Vec<_> = function.revisions.values().cloned().collect();
        dropped.iter().for_each(|revision| revision.let_go());
        self.sweep(&table, &dropped);
        Ok(())
    }

    /// A function's revisions, newest first.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn revisions(&self, tenant: &Tenant, name: &FunctionName) -> Result<Vec<RevisionStatus>, DeployError> {
        Ok(own(&self.table.load(), tenant, name)?.revisions())
    }

    /// Puts `pending` into force, if it still is what is wanted.
    pub(super) fn take_over(&self, name: &FunctionName, pending: &Traffic) -> Result<(), DeployError> {
        let _changing = self.changing();
        let table = self.table.load_full();
        let Some(function) = table.get(name).filter(|function| function.record.pending.as_ref() == Some(pending))
        else {
            return Ok(());
        };
        let mut function = Function::clone(function);
        let record = &mut function.record;
        record.pending = None;
        record.previous = Some(std::mem::replace(&mut record.traffic, pending.clone()));
        self.records.put(record)?;
        self.put(table.with(function), name);
        tracing::info!(function = %name, traffic = %pending, "models are resident: takes over");
        Ok(())
    }

    /// Changes a function's record.
    fn change(
        &self,
        tenant: &Tenant,
        name: &FunctionName,
        change: impl FnOnce(&Self, &mut Function) -> Result<(), DeployError>,
    ) -> Result<FunctionStatus, DeployError> {
        let _changing = self.changing();
        let table = self.table.load_full();
        let mut function = Function::clone(own(&table, tenant, name)?);
        change(self, &mut function)?;
        let wanted = function.record.pending.as_ref().unwrap_or(&function.record.traffic);
        for (revision, _) in wanted.shares() {
            let missing = || DeployError::NoRevision { function: name.clone(), revision };
            let revision = function.revisions.get(&revision).ok_or_else(missing)?;
            check_routes(&table, tenant, name, &revision.record.config.routes)?;
        }
        self.records.put(&function.record)?;
        let table = self.put(table.with(function), name);
        Ok(self.status_of(table.get(name).expect("it was put there")))
    }

    /// Sets how requests are to be shared out: at once, if all that needs is resident.
    fn share_out(&self, function: &mut Function, wanted: Traffic) {
        let record = &mut function.record;
        record.pending = None;
        if record.traffic == wanted {
            return;
        }
        let here = wanted
            .shares()
            .filter_map(|(id, _)| function.revisions.get(&id))
            .flat_map(|revision| &revision.record.config.models)
            .all(|model| self.services.library.is_resident(model));
        if here {
            record.previous = Some(std::mem::replace(&mut record.traffic, wanted));
        } else {
            record.pending = Some(wanted);
        }
    }

    /// Puts a new table into force; it differs from the one before in `name`.
    fn put(&self, table: Table, name: &FunctionName) -> std::sync::Arc<Table> {
        let table = std::sync::Arc::new(table);
        self.table.store(table.clone());
        self.warming.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(function) = table.get(name) {
            // Those out of service drain: requests that run hold what they run in, and nobody else does.
            let out = function.revisions.values().filter(|revision| !function.record.traffic.has(revision.record.id));
            out.for_each(|revision| revision.let_go());
            if let Some(pending) = &function.record.pending {
                self.warm(function, pending.clone());
            }
        }
        table
    }

    /// Refuses a configuration with mistakes, or with models that are not here.
    pub(super) fn refuse_mistakes(&self, mistakes: Vec<String>, config: &FunctionConfig) -> Result<(), DeployError> {
        if !mistakes.is_empty() {
            return Err(DeployError::Config(mistakes));
        }
        config.models.iter().try_for_each(|model| Ok(self.services.library.store().get(model).map(drop)?))
    }

    /// Everything that is wrong with a configuration on this host.
    pub(super) fn mistakes(&self, config: &FunctionConfig, secrets: &Secrets) -> Vec<String> {
        let mut mistakes = config.mistakes();
        if config.limits.memory_mib > self.pool.memory_mib {
            let (asked, most) = (config.limits.memory_mib, self.pool.memory_mib);
            mistakes.push(format!("`limits.memory_mib` is {asked}; this host allows 1 to {most}"));
        }
        for directory in config.directories.iter().filter(|directory| !directory.host.is_dir()) {
            mistakes.push(format!("{} is not a directory of this host", directory.host.display()));
        }
        let given = |name: &&String| secrets.reveal(name).is_some();
        mistakes.extend(
            config.secrets.iter().filter(|name| !given(name)).map(|name| format!("secret `{name}` has no value")),
        );
        let named = |name: &&str| config.secrets.iter().any(|own| own == name);
        mistakes
            .extend(secrets.names().filter(|name| !named(name)).map(|name| format!("`{name}` is not in `secrets`")));
        mistakes
    }

    fn check_place(
        &self,
        table: &Table,
        tenant: &Tenant,
        name: &FunctionName,
        request: &DeployRequest,
    ) -> Result<(), DeployError> {
        match table.get(name) {
            Some(function) if function.record.tenant != *tenant => return Err(DeployError::NotYours(name.clone())),
            None if !request.traffic => return Err(DeployError::FirstWithoutTraffic(name.clone())),
            _ => {}
        }
        check_routes(table, tenant, name, &request.config.routes)
    }

    pub(super) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tenant's function. Another's is as good as not there.
fn own<'t>(
    table: &'t Table,
    tenant: &Tenant,
    name: &FunctionName,
) -> Result<&'t std::sync::Arc<Function>, DeployError> {
    let function = table.get(name).filter(|function| function.record.tenant == *tenant);
    function.ok_or_else(|| DeployError::NotFound(name.clone()))
}

fn check_routes(
    table: &Table,
    tenant: &Tenant,
    name: &FunctionName,
    routes: &[RouteConfig],
) -> Result<(), DeployError> {
    match table.taken(name, routes) {
        Some((route, by)) if own(table, tenant, &by).is_err() => Err(DeployError::RouteTakenElsewhere(route.clone())),
        Some((route, by)) => Err(DeployError::RouteTaken { route: route.clone(), by }),
        None => Ok(()),
    }
}

/// The revisions to forget: the oldest that nothing leads to, beyond those that are kept; never the `newest`.
fn spare(function: &Function, newest: RevisionId) -> Vec<RevisionId> {
    let spare: Vec<_> =
        function.revisions.keys().copied().filter(|id| *id != newest && function.is_spare(*id)).collect();
    spare[..spare.len().saturating_sub(KEPT_REVISIONS)].to_vec()
}
