//! What is deployed, kept in one `redb` database: a record a function, written in transactions that
//! survive the death of the process at any moment.

use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};
use serde::{Deserialize, Serialize};

use crate::config::Limits;
use crate::digest::Digest;
use crate::names::{FunctionName, ModelName, Route};

/// Function name to its record as JSON.
const FUNCTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("functions");

/// A deployed function, as recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionRecord {
    /// Its name, unique on this host.
    pub name: FunctionName,
    /// Where its requests come in, unique on this host.
    pub route: Route,
    /// The component it runs.
    pub component: Digest,
    /// The models it may use; the first is also its `default`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// What one invocation may use.
    #[serde(default)]
    pub limits: Limits,
    /// The rest of what it is given and held to.
    #[serde(default)]
    pub config: crate::config::FunctionConfig,
    /// When it was deployed, in seconds since 1970.
    pub deployed_at: u64,
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
    /// The route belongs to another function.
    #[error("route `{route}` is taken by function `{by}`; choose another route, or remove it with `hob rm {by}`")]
    RouteTaken {
        /// The route asked for.
        route: Route,
        /// The function that has it.
        by: FunctionName,
    },
    /// No such function.
    #[error("no function is called `{0}`; `hob list` shows those that are")]
    NotFound(FunctionName),
    /// A record does not read back.
    #[error("the record of function `{name}` in {path} is damaged: {source}", path = path.display())]
    Damaged {
        /// The function.
        name: String,
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

impl Records {
    /// Opens the database at `path`, and creates it if it is not there.
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
        Ok(Self { database, path: path.to_owned() })
    }

    /// All functions, by name.
    ///
    /// # Errors
    /// `Damaged`, `Database`.
    pub fn functions(&self) -> Result<Vec<FunctionRecord>, RecordsError> {
        let read = self.database.begin_read().map_err(|error| self.fault(error))?;
        let table = match read.open_table(FUNCTIONS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(self.fault(error)),
        };
        let rows = table.iter().map_err(|error| self.fault(error))?;
        rows.map(|row| {
            let (name, record) = row.map_err(|error| self.fault(error))?;
            self.decode(name.value(), record.value())
        })
        .collect()
    }

    /// Records `function`, in place of one of the same name. On disk when this returns.
    ///
    /// # Errors
    /// `RouteTaken`; then nothing has changed.
    pub fn put(&self, function: &FunctionRecord) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(FUNCTIONS).map_err(|error| self.fault(error))?;
            for row in table.iter().map_err(|error| self.fault(error))? {
                let (name, record) = row.map_err(|error| self.fault(error))?;
                let other = self.decode(name.value(), record.value())?;
                if other.route == function.route && other.name != function.name {
                    return Err(RecordsError::RouteTaken { route: function.route.clone(), by: other.name });
                }
            }
            let bytes = serde_json::to_vec(function).expect("a record has only string keys");
            table.insert(function.name.as_str(), bytes.as_slice()).map_err(|error| self.fault(error))?;
        }
        write.commit().map_err(|error| self.fault(error))
    }

    /// Removes a function.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, name: &FunctionName) -> Result<(), RecordsError> {
        let write = self.database.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut table = write.open_table(FUNCTIONS).map_err(|error| self.fault(error))?;
            let removed = table.remove(name.as_str()).map_err(|error| self.fault(error))?;
            if removed.is_none() {
                return Err(RecordsError::NotFound(name.clone()));
            }
        }
        write.commit().map_err(|error| self.fault(error))
    }

    fn decode(&self, name: &str, record: &[u8]) -> Result<FunctionRecord, RecordsError> {
        serde_json::from_slice(record).map_err(|source| RecordsError::Damaged {
            name: name.to_owned(),
            path: self.path.clone(),
            source,
        })
    }

    fn fault(&self, error: impl Into<redb::Error>) -> RecordsError {
        RecordsError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, route: &str) -> FunctionRecord {
        FunctionRecord {
            name: name.parse().unwrap(),
            route: route.parse().unwrap(),
            component: Digest::of(name.as_bytes()),
            models: vec!["smollm2:135m".parse().unwrap()],
            limits: Limits::default(),
            config: Default::default(),
            deployed_at: 1,
        }
    }

    #[test]
    fn records_survive_reopening_and_routes_are_unique() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("hob.redb");
        {
            let records = Records::open(&path).unwrap();
            assert_eq!(records.functions().unwrap(), []);
            records.put(&record("a", "/a")).unwrap();
            records.put(&record("b", "/b")).unwrap();
            assert!(matches!(records.put(&record("c", "/a")), Err(RecordsError::RouteTaken { .. })));
            records.put(&record("a", "/a2")).unwrap();
            records.put(&record("c", "/a")).unwrap();
            assert!(matches!(Records::open(&path), Err(RecordsError::InUse { .. })));
        }
        let records = Records::open(&path).unwrap();
        assert_eq!(records.functions().unwrap(), [record("a", "/a2"), record("b", "/b"), record("c", "/a")]);
        records.remove(&"b".parse().unwrap()).unwrap();
        assert!(matches!(records.remove(&"b".parse().unwrap()), Err(RecordsError::NotFound(_))));
    }
}
