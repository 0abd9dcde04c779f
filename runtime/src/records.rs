//! What is deployed, kept in one `redb` database. A change is one transaction: it survives the death of the process at
//! any moment whole, or leaves no trace.
//!
//! A function's record says how its requests are shared out; each revision has a record of its own, which never changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition, TableError};
use serde::{Deserialize, Serialize};

use crate::config::{Budget, FunctionConfig, Limits, RouteConfig};
use crate::digest::Digest;
use crate::keys::KeyRecord;
use crate::names::{FunctionName, ModelName, RevisionId, Route, Tenant};
use crate::traffic::Traffic;

/// Function name to its record as JSON.
const FUNCTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("functions");
/// Function name and number to the revision's record as JSON.
const REVISIONS: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("revisions");
/// Id to the key's record as JSON.
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");

/// Name to the tenant's quota as JSON.
const TENANTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tenants");

/// A function, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRecord {
    /// Its name, unique on this host.
    pub name: FunctionName,
    /// Whose it is.
    #[serde(default)]
    pub tenant: Tenant,
    /// The newest revision, in service or not.
    pub latest: RevisionId,
    /// How its requests are shared out.
    pub traffic: Traffic,
    /// How they were before: what a rollback goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Traffic>,
    /// How they will be once the models that this needs are resident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Traffic>,
}

/// One deployment of a function, as recorded; it never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// Its name within the function.
    pub id: RevisionId,
    /// The component it runs.
    pub component: Digest,
    /// Where the component came from, as it was named then.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What the component was made of, if it was made here: middleware, the outermost first, and the handler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartRecord>,
    /// What it is given and held to.
    #[serde(default)]
    pub config: FunctionConfig,
    /// When it was deployed, in seconds since 1970.
    pub deployed_at: u64,
}

/// A component that is a part of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRecord {
    /// Its digest.
    pub component: Digest,
    /// Where it came from, as it was named then.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

impl PartRecord {
    /// What to call it in a message.
    pub fn name(&self) -> String {
        if self.source.is_empty() { self.component.short() } else { self.source.clone() }
    }
}

/// The record of a function as it was before there were revisions.
#[derive(Deserialize)]
struct OldRecord {
    route: Route,
    component: Digest,
    #[serde(default)]
    models: Vec<ModelName>,
    limits: Option<OldLimits>,
    deployed_at: u64,
}

#[derive(Deserialize)]
struct OldLimits {
    wall_s: u32,
    memory_mib: u32,
}

impl OldRecord {
    fn revision(self) -> RevisionRecord {
        let limits = self.limits.map_or_else(Limits::default, |old| Limits {
            wall_ms: old.wall_s.saturating_mul(1000),
            memory_mib: old.memory_mib,
            ..Limits::default()
        });
        let routes = vec![RouteConfig::path(self.route)];
        let config = FunctionConfig { routes, models: self.models, limits, ..FunctionConfig::default() };
        let (component, deployed_at) = (self.component, self.deployed_at);
        RevisionRecord {
            id: RevisionId::FIRST,
            component,
            source: String::new(),
            parts: Vec::new(),
            config,
            deployed_at,
        }
    }
}

/// Why records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// Another process holds the database.
    #[error("another hob serves from {path}; stop it, or choose another directory with --data", path = path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// A record does not read back.
    #[error("the record of {what} in {path} is damaged: {source}", path = path.display())]
    Damaged {
        /// Which one.
        what: String,
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The database failed.
    #[error("the database {path} failed: {source}", path = path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: Box<redb::Error>,
    },
}

/// The records of one data directory; only one process can hold them.
pub struct Records {
    database: Database,
    path: PathBuf,
}

/// All functions with all their revisions, by name.
pub type All = BTreeMap<FunctionName, (FunctionRecord, Vec<RevisionRecord>)>;

impl Records {
    /// Opens the database at `path`, and creates it if it is not there. Records of earlier versions become those of this one.
    ///
    /// # Errors
    /// `InUse` if another process has it.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let fault = |source: redb::Error| RecordsError::Database { path: path.to_owned(), source: Box::new(source) };
        let database = match Database::create(path) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => {
                return Err(RecordsError::InUse { path: path.parent().unwrap_or(path).to_owned() });
            }
            Err(error) => return Err(fault(error.into())),
        };
        let records = Self { database, path: path.to_owned() };
        records.renew()?;
        Ok(records)
    }

    /// All functions with all their revisions.
    ///
    /// # Errors
    /// `Damaged`, `Database`.
    pub fn all(&self) -> Result<All, RecordsError> {
        let read = self.database.begin_read().map_err(|error| self.fault(error))?;
        let mut all = All::new();
        let functions = match read.open_table(FUNCTIONS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(all),
            Err(error) => return Err(self.fault(error)),
        };
        for row in functions.iter().map_err(|error| self.fault(error))? {
            let (name, record) = row.map_err(|error| self.fault(error))?;
            let record: FunctionRecord = self.decode(|| function_in_words(name.value()), record.value())?;
            all.insert(record.name.clone(), (record, Vec::new()));
        }
        let revisions = match read.open_table(REVISIONS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(all),
            Err(error) => return Err(self.fault(error)),
        };
        // Both are in the order of names.
        let mut functions = all.values_mut().peekable();
        for row in revisions.iter().map_err(|error| self.fault(error))? {
            let (key, record) = row.map_err(|error| self.fault(error))?;
            let (name, number) = key.value();
            while functions.next_if(|(function, _)| function.name.as_str() < name).is_some() {}
            if let Some((_, revisions)) = functions.peek_mut().filter(|(function, _)| function.name.as_str() == name) {
                revisions.push(self.decode(|| format!("revision r{number} of function `{name}`"), record.value())?);
            }
        }
        Ok(all)
    }

    /// Records a function with a new revision, and forgets those that are `let_go`. On disk when this returns.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn deploy(
        &self,
        function: &FunctionRecord,
        revision: &RevisionRecord,
        let_go: &[RevisionId],
    ) -> Result<(), RecordsError> {
        self.deploy_all([(function, revision)], |name, revisions| {
            let_go.iter().try_for_each(|id| revisions.remove((name, id.number())).map(drop))
        })
    }

    /// Records many functions, each with its first revision, at once.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn import<'a>(
        &self,
        functions: impl IntoIterator<Item = (&'a FunctionRecord, &'a RevisionRecord)>,
    ) -> Result<(), RecordsError> {
        self.deploy_all(functions, |_, _| Ok(()))
    }

    fn deploy_all<'a>(
        &self,
        functions: impl IntoIterator<Item = (&'a FunctionRecord, &'a RevisionRecord)>,
        forget: impl Fn(&str, &mut Table<'_, (&'static str, u32), &'static [u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(FUNCTIONS).map_err(|error| self.fault(error))?;
            let mut revisions = write.open_table(REVISIONS).map_err(|error| self.fault(error))?;
            for (function, revision) in functions {
                let name = function.name.as_str();
                table.insert(name, encode(function).as_slice()).map_err(|error| self.fault(error))?;
                let key = (name, revision.id.number());
                revisions.insert(key, encode(revision).as_slice()).map_err(|error| self.fault(error))?;
                forget(name, &mut revisions).map_err(|error| self.fault(error))?;
            }
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// Records a function whose revisions are as they were. On disk when this returns.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn put(&self, function: &FunctionRecord) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(FUNCTIONS).map_err(|error| self.fault(error))?;
            table.insert(function.name.as_str(), encode(function).as_slice()).map_err(|error| self.fault(error))?;
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// Removes a function with all its revisions. One that is not there is gone already.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn remove(&self, name: &FunctionName) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut functions = write.open_table(FUNCTIONS).map_err(|error| self.fault(error))?;
            functions.remove(name.as_str()).map_err(|error| self.fault(error))?;
            let mut revisions = write.open_table(REVISIONS).map_err(|error| self.fault(error))?;
            let own = (name.as_str(), 0)..=(name.as_str(), u32::MAX);
            revisions.retain_in(own, |_, _| false).map_err(|error| self.fault(error))?;
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// All keys.
    ///
    /// # Errors
    /// `Damaged`, `Database`.
    pub fn keys(&self) -> Result<Vec<KeyRecord>, RecordsError> {
        let read = self.database.begin_read().map_err(|error| self.fault(error))?;
        let table = match read.open_table(KEYS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(self.fault(error)),
        };
        let rows = table.iter().map_err(|error| self.fault(error))?;
        rows.map(|row| {
            let (id, record) = row.map_err(|error| self.fault(error))?;
            self.decode(|| format!("key `{}`", id.value()), record.value())
        })
        .collect()
    }

    /// All tenants that have a quota.
    ///
    /// # Errors
    /// `Damaged`, `Database`.
    pub fn quotas(&self) -> Result<BTreeMap<Tenant, Budget>, RecordsError> {
        let read = self.database.begin_read().map_err(|error| self.fault(error))?;
        let table = match read.open_table(TENANTS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
            Err(error) => return Err(self.fault(error)),
        };
        let mut quotas = BTreeMap::new();
        for row in table.iter().map_err(|error| self.fault(error))? {
            let (name, record) = row.map_err(|error| self.fault(error))?;
            let quota = self.decode(|| format!("tenant `{}`", name.value()), record.value())?;
            if let Ok(name) = name.value().parse() {
                quotas.insert(name, quota);
            }
        }
        Ok(quotas)
    }

    /// Records a tenant's quota; the default one is none. On disk when this returns.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn put_quota(&self, tenant: &Tenant, quota: &Budget) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(TENANTS).map_err(|error| self.fault(error))?;
            if *quota == Budget::default() {
                table.remove(tenant.as_str()).map_err(|error| self.fault(error))?;
            } else {
                table.insert(tenant.as_str(), encode(quota).as_slice()).map_err(|error| self.fault(error))?;
            }
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// Records a key. On disk when this returns.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn put_key(&self, key: &KeyRecord) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(KEYS).map_err(|error| self.fault(error))?;
            table.insert(key.id.as_str(), encode(key).as_slice()).map_err(|error| self.fault(error))?;
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub fn remove_key(&self, id: &str) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(KEYS).map_err(|error| self.fault(error))?;
            table.remove(id).map_err(|error| self.fault(error))?;
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// Makes records of this version out of those of earlier ones, all in one transaction.
    fn renew(&self) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        let mut renewed = Vec::new();
        {
            let table = write.open_table(FUNCTIONS).map_err(|error| self.fault(error))?;
            for row in table.iter().map_err(|error| self.fault(error))? {
                let (name, record) = row.map_err(|error| self.fault(error))?;
                let text = record.value();
                if serde_json::from_slice::<FunctionRecord>(text).is_ok() {
                    continue;
                }
                let what = || function_in_words(name.value());
                // What is neither is reported when it is read.
                let Ok(old) = self.decode::<OldRecord>(what, text) else { continue };
                let name = name.value().parse::<FunctionName>();
                renewed.extend(name.map(|name| (FunctionRecord::first(name, Tenant::default()), old.revision())));
            }
        }
        if renewed.is_empty() {
            return write.abort().map_err(|error| self.fault(error));
        }
        drop(write);
        self.import(renewed.iter().map(|(function, revision)| (function, revision)))
    }

    fn decode<T: for<'a> Deserialize<'a>>(&self, what: impl Fn() -> String, text: &[u8]) -> Result<T, RecordsError> {
        serde_json::from_slice(text).map_err(|source| RecordsError::Damaged {
            what: what(),
            path: self.path.clone(),
            source,
        })
    }

    fn fault(&self, error: impl Into<redb::Error>) -> RecordsError {
        RecordsError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }
}

impl FunctionRecord {
    /// A function with its first revision, which takes all requests.
    pub fn first(name: FunctionName, tenant: Tenant) -> Self {
        let (latest, traffic) = (RevisionId::FIRST, Traffic::all(RevisionId::FIRST));
        Self { name, tenant, latest, traffic, previous: None, pending: None }
    }
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has only string keys")
}

fn function_in_words(name: &str) -> String {
    format!("function `{name}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: u32) -> RevisionRecord {
        RevisionRecord {
            id: format!("r{number}").parse().unwrap(),
            component: Digest::of(&number.to_le_bytes()),
            parts: Vec::new(),
            source: String::new(),
            config: FunctionConfig { models: vec!["smollm2:135m".parse().unwrap()], ..FunctionConfig::default() },
            deployed_at: 1,
        }
    }

    fn function(name: &str) -> FunctionRecord {
        FunctionRecord::first(name.parse().unwrap(), Tenant::default())
    }

    #[test]
    fn records_survive_reopening() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("hob.redb");
        let (a, b) = (function("a"), function("b"));
        {
            let records = Records::open(&path).unwrap();
            assert!(records.all().unwrap().is_empty());
            records.deploy(&a, &revision(1), &[]).unwrap();
            records.deploy(&b, &revision(1), &[]).unwrap();
            records.deploy(&a, &revision(2), &[]).unwrap();
            records.deploy(&a, &revision(10), &[RevisionId::FIRST]).unwrap();
            assert!(matches!(Records::open(&path), Err(RecordsError::InUse { .. })));
        }
        let records = Records::open(&path).unwrap();
        let all = records.all().unwrap();
        assert_eq!(all[&a.name], (a.clone(), vec![revision(2), revision(10)]));
        assert_eq!(all[&b.name], (b.clone(), vec![revision(1)]));
        records.remove(&a.name).unwrap();
        records.remove(&a.name).unwrap();
        assert_eq!(records.all().unwrap().into_values().collect::<Vec<_>>(), [(b, vec![revision(1)])]);
        // A function of this name begins anew.
        records.deploy(&a, &revision(1), &[]).unwrap();
        assert_eq!(records.all().unwrap()[&a.name].1.len(), 1);
    }

    #[test]
    fn records_from_before_there_were_revisions_become_the_first_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("hob.redb");
        let digest = Digest::of(b"old");
        {
            let database = Database::create(&path).unwrap();
            let write = database.begin_write().unwrap();
            let old = format!(
                r#"{{"name":"chat","route":"/x","component":"{digest}","models":["a:b"],"limits":{{"wall_s":7,"memory_mib":64}},"deployed_at":5}}"#
            );
            write.open_table(FUNCTIONS).unwrap().insert("chat", old.as_bytes()).unwrap();
            write.commit().unwrap();
        }
        for _ in 0..2 {
            let all = Records::open(&path).unwrap().all().unwrap();
            let (record, revisions) = &all[&"chat".parse().unwrap()];
            assert_eq!(*record, function("chat"));
            let [revision] = revisions.as_slice() else { panic!("{revisions:?}") };
            assert_eq!((revision.component, revision.deployed_at), (digest, 5));
            assert_eq!((revision.config.limits.wall_ms, revision.config.limits.memory_mib), (7000, 64));
            assert_eq!(revision.config.routes[0].to_string(), "/x");
        }
    }

    #[test]
    fn a_damaged_record_is_named() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("hob.redb");
        {
            let database = Database::create(&path).unwrap();
            let write = database.begin_write().unwrap();
            write.open_table(FUNCTIONS).unwrap().insert("chat", &b"{}"[..]).unwrap();
            write.commit().unwrap();
        }
        let error = Records::open(&path).unwrap().all().unwrap_err().to_string();
        assert!(error.contains("function `chat`") && error.contains("hob.redb"), "{error}");
    }
}
