//! Keys to the control API: who may do what, for which tenant.
//!
//! A key is 256 random bits, shown once. What is kept is its SHA-256: nobody can guess that many bits, so a hash that is
//! slow on purpose, as passwords need, would only slow down every call.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::names::Tenant;
use crate::records::{Records, RecordsError};

/// What a key allows; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See what is there.
    Read,
    /// Change the tenant's functions.
    Deploy,
    /// Do anything, for every tenant; make keys.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Read, Self::Deploy, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| "give read, deploy or admin".to_owned())
    }
}

/// A key, as recorded: everything but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// What it is called in the audit log and on the command line; says nothing about the key.
    pub id: String,
    /// What a person calls it.
    pub name: String,
    /// Whose functions it reaches.
    pub tenant: Tenant,
    /// What it allows.
    pub scope: Scope,
    /// Its SHA-256.
    pub hash: Digest,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
}

/// Why keys cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// No such key.
    #[error("no key has the id `{0}`; `hob keys list` shows those there are")]
    NotFound(String),
    /// A name that says nothing, or too much.
    #[error("`{0}` cannot name a key; use 1 to 100 printable characters")]
    Name(String),
    /// The system has no random numbers.
    #[error("no key can be made: {0}")]
    Random(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

/// The keys of a host.
pub struct Keys {
    records: Arc<Records>,
    known: RwLock<HashMap<Digest, KeyRecord>>,
}

impl Keys {
    /// The keys in `records`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn open(records: Arc<Records>) -> Result<Self, RecordsError> {
        let known = records.keys()?.into_iter().map(|key| (key.hash, key)).collect();
        Ok(Self { records, known: RwLock::new(known) })
    }

    /// Makes a key; this is the only time that it is seen.
    ///
    /// # Errors
    /// `Name`, `Random`, `Records`.
    pub fn create(&self, name: &str, tenant: Tenant, scope: Scope) -> Result<(KeyRecord, String), KeysError> {
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            return Err(KeysError::Name(name.chars().take(100).collect()));
        }
        let text = format!("hob_{}", random_hex(32)?);
        let created_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = KeyRecord {
            id: random_hex(6)?,
            name: name.to_owned(),
            tenant,
            scope,
            hash: Digest::of(text.as_bytes()),
            created_at,
        };
        self.records.put_key(&record)?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(record.hash, record.clone());
        Ok((record, text))
    }

    /// All keys, the oldest first.
    pub fn list(&self) -> Vec<KeyRecord> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<_> = known.values().cloned().collect();
        keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        keys
    }

    /// Makes a key worthless, from the next call on.
    ///
    /// # Errors
    /// `NotFound`, `Records`.
    pub fn revoke(&self, id: &str) -> Result<(), KeysError> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let hash = known.values().find(|key| key.id == id).map(|key| key.hash);
        let hash = hash.ok_or_else(|| KeysError::NotFound(id.chars().take(40).collect()))?;
        self.records.remove_key(id)?;
        known.remove(&hash);
        Ok(())
    }

    /// The record of a key. It is found by its hash: how long that takes says nothing about the key.
    pub fn find(&self, text: &str) -> Option<KeyRecord> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&Digest::of(text.as_bytes())).cloned()
    }
}

/// So many bytes from the system's generator, in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> io::Result<String> {
    use std::io::Read as _;
    let mut random = vec![0; bytes];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_as_hashes_and_can_be_revoked() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("hob.redb");
        let (record, text) = {
            let keys = Keys::open(Records::open(&path).unwrap().into()).unwrap();
            keys.create("ci", "acme".parse().unwrap(), Scope::Deploy).unwrap()
        };
        assert_eq!((text.len(), record.hash), (68, Digest::of(text.as_bytes())));
        let file = std::fs::read(&path).unwrap();
        assert!(!file.windows(64).any(|window| window == &text.as_bytes()[4..]), "the key itself is not kept");
        let keys = Keys::open(Records::open(&path).unwrap().into()).unwrap();
        assert_eq!(keys.find(&text), Some(record.clone()));
        assert_eq!(keys.find(&text[..67]), None);
        assert_eq!(keys.list(), std::slice::from_ref(&record));
        keys.revoke(&record.id).unwrap();
        assert_eq!(keys.find(&text), None);
        assert!(matches!(keys.revoke(&record.id), Err(KeysError::NotFound(_))));
        assert!(matches!(keys.create("a\nb", Tenant::default(), Scope::Read), Err(KeysError::Name(_))));
    }

    #[test]
    fn scopes_include_those_before_them() {
        assert!(Scope::Admin > Scope::Deploy && Scope::Deploy > Scope::Read);
        assert_eq!("deploy".parse(), Ok(Scope::Deploy));
        assert!("root".parse::<Scope>().is_err());
    }
}
