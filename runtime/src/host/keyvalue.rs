//! `wasi:keyvalue`, 0.2.0-draft and, in `draft2`, 0.2.0-draft2: what a function keeps between requests.
//!
//! Each function has a database of its own in the data directory, opened when it is first used: one that writes all
//! the time makes nobody wait but itself. What a call has written is on disk when it returns. Sizes are bounded.

mod draft2;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};

use super::State;
use crate::names::FunctionName;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/wasi-keyvalue",
        world: "imports",
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        imports: { default: async | trappable },
    });
}
use bindings::wasi::keyvalue::{atomics, batch, store as wit};

/// Longest name of a bucket, or of a key, in bytes.
const MAX_KEY: usize = 1024;
/// Largest value, in bytes.
const MAX_VALUE: usize = 4 << 20;
/// Most bytes of keys and values that one function keeps.
const MAX_KEPT: u64 = 256 << 20;
/// Keys in one answer of `list-keys`.
const KEYS_AT_ONCE: usize = 1000;
/// Memory that one open database uses for pages.
const CACHE_BYTES: usize = 4 << 20;

/// Bucket and key to value.
const VALUES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("values");
/// The bytes kept, under `""`.
const KEPT: TableDefinition<'_, &str, u64> = TableDefinition::new("kept");

/// What all functions of a host keep.
pub struct Stores {
    folder: PathBuf,
    open: Mutex<HashMap<FunctionName, Weak<Database>>>,
}

/// What one function keeps.
#[derive(Clone)]
pub struct Namespace {
    stores: Arc<Stores>,
    function: FunctionName,
    /// Open once it was used.
    database: Arc<Mutex<Option<Arc<Database>>>>,
}

/// A named part of what a function keeps, open to one instance.
#[derive(Clone)]
pub struct Bucket {
    database: Arc<Database>,
    name: Arc<str>,
}

impl Stores {
    /// Databases in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, open: Mutex::default() }
    }

    /// What `function` keeps.
    pub fn namespace(self: &Arc<Self>, function: &FunctionName) -> Namespace {
        Namespace { stores: self.clone(), function: function.clone(), database: Arc::default() }
    }

    /// Forgets what `function` kept: the next of its name, whoever deploys it, begins with nothing.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget(&self, function: &FunctionName) -> std::io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(function);
        match std::fs::remove_file(self.path(function)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, function: &FunctionName) -> PathBuf {
        self.folder.join(format!("{function}.redb"))
    }

    /// Two revisions of a function that run side by side share one database.
    fn database(&self, function: &FunctionName) -> Result<Arc<Database>, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = open.get(function).and_then(Weak::upgrade) {
            return Ok(database);
        }
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let path = self.path(function);
        let database = Arc::new(Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?);
        open.insert(function.clone(), Arc::downgrade(&database));
        Ok(database)
    }
}

impl Namespace {
    fn open(&self, name: &str) -> Result<Bucket, String> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match &*database {
            Some(database) => database.clone(),
            None => database.insert(self.stores.database(&self.function)?).clone(),
        };
        Ok(Bucket { database, name: name.into() })
    }
}

/// A change to one key.
enum Change {
    Set(String, Vec<u8>),
    Delete(String),
}

impl Bucket {
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, String> {
        let read = self.database.begin_read().map_err(failed)?;
        let table = match read.open_table(VALUES) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(vec![None; keys.len()]),
            Err(error) => return Err(failed(error)),
        };
        let get = |key: &String| {
            let value = table.get((&*self.name, key.as_str())).map_err(failed)?;
            Ok(value.map(|value| value.value().to_vec()))
        };
        keys.iter().map(get).collect()
    }

    /// Makes all of the changes, or none.
    fn change(&self, changes: &[Change]) -> Result<(), String> {
        let write = self.database.begin_write().map_err(failed)?;
        {
            let mut values = write.open_table(VALUES).map_err(failed)?;
            let mut sizes = write.open_table(KEPT).map_err(failed)?;
            let mut kept = sizes.get("").map_err(failed)?.map_or(0, |kept| kept.value());
            for change in changes {
                let (key, old) = match change {
                    Change::Set(key, value) => {
                        kept += (key.len() + value.len()) as u64;
                        (key, values.insert((&*self.name, key.as_str()), value.as_slice()).map_err(failed)?)
                    }
                    Change::Delete(key) => (key, values.remove((&*self.name, key.as_str())).map_err(failed)?),
                };
                kept -= old.map_or(0, |old| (key.len() + old.value().len()) as u64);
            }
            // If not, it is dropped without a commit: nothing has changed.
            fits(kept)?;
            sizes.insert("", kept).map_err(failed)?;
        }
        write.commit().map_err(failed)
    }

    fn keys(&self, skip: usize) -> Result<wit::KeyResponse, String> {
        let read = self.database.begin_read().map_err(failed)?;
        let none = wit::KeyResponse { keys: Vec::new(), cursor: None };
        let table = match read.open_table(VALUES) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(none),
            Err(error) => return Err(failed(error)),
        };
        let mut keys = Vec::new();
        for row in table.range((&*self.name, "")..).map_err(failed)?.skip(skip) {
            let (key, _) = row.map_err(failed)?;
            let (bucket, key) = key.value();
            if bucket != &*self.name {
                break;
            }
            if keys.len() == KEYS_AT_ONCE {
                return Ok(wit::KeyResponse { keys, cursor: Some((skip + KEYS_AT_ONCE) as u64) });
            }
            keys.push(key.to_owned());
        }
        Ok(wit::KeyResponse { keys, cursor: None })
    }

    /// Adds to a number that is kept as decimal digits; none is zero.
    fn add<N>(&self, key: &str, add: impl FnOnce(N) -> Option<N>) -> Result<N, String>
    where
        N: std::str::FromStr + ToString + Default,
    {
        check_key(key)?;
        self.update(key, |old| {
            let number = match old {
                Some(old) => std::str::from_utf8(old).ok().and_then(|text| text.parse::<N>().ok()),
                None => Some(N::default()),
            };
            let number = number.ok_or_else(|| format!("the value of `{key}` is not a number in decimal digits"))?;
            let sum = add(number).ok_or_else(|| format!("`{key}` would be more than 64 bits hold"))?;
            Ok((Some(sum.to_string().into_bytes()), sum))
        })
    }

    /// Puts in the place of a value what `next` makes of it, if anything, while nobody else writes.
    fn update<T>(
        &self,
        key: &str,
        next: impl FnOnce(Option<&[u8]>) -> Result<(Option<Vec<u8>>, T), String>,
    ) -> Result<T, String> {
        let write = self.database.begin_write().map_err(failed)?;
        let answer = {
            let mut values = write.open_table(VALUES).map_err(failed)?;
            let old = values.get((&*self.name, key)).map_err(failed)?.map(|old| old.value().to_vec());
            let (new, answer) = next(old.as_deref())?;
            // Dropped without a commit: nothing has changed.
            let Some(new) = new else { return Ok(answer) };
            values.insert((&*self.name, key), new.as_slice()).map_err(failed)?;
            let mut sizes = write.open_table(KEPT).map_err(failed)?;
            let kept = sizes.get("").map_err(failed)?.map_or(0, |kept| kept.value());
            let kept = kept + new.len() as u64 + if old.is_none() { key.len() as u64 } else { 0 };
            let kept = kept - old.as_ref().map_or(0, Vec::len) as u64;
            fits(kept)?;
            sizes.insert("", kept).map_err(failed)?;
            answer
        };
        write.commit().map_err(failed)?;
        Ok(answer)
    }
}

/// Checks what a function would keep in all.
fn fits(kept: u64) -> Result<(), String> {
    if kept <= MAX_KEPT {
        return Ok(());
    }
    Err(format!("the function would keep {kept} bytes; {MAX_KEPT} are allowed, delete something"))
}

fn failed(error: impl std::fmt::Display) -> String {
    tracing::warn!(%error, "a function's store failed");
    "the store failed; the host's log has the cause".into()
}

/// Checks a key or the name of a bucket.
fn check_key(key: &str) -> Result<(), String> {
    match key.len() {
        0..=MAX_KEY => Ok(()),
        bytes => Err(format!("a key of {bytes} bytes; at most {MAX_KEY} are taken")),
    }
}

fn check_value(value: &[u8]) -> Result<(), String> {
    match value.len() {
        0..=MAX_VALUE => Ok(()),
        bytes => Err(format!("a value of {bytes} bytes; at most {MAX_VALUE} are taken")),
    }
}

/// Links it.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    wit::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    atomics::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    batch::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    draft2::link(linker)
}

/// What a call answers: an error of the store is the guest's to handle.
type Answer<T> = Result<Result<T, wit::Error>>;

/// Runs what waits for a disk on a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await?;
    Ok(done.map_err(wit::Error::Other))
}

impl State {
    async fn change(&mut self, bucket: &Resource<Bucket>, changes: Vec<Change>) -> Answer<()> {
        let bucket = self.table.get(bucket)?.clone();
        blocking(move || {
            for change in &changes {
                match change {
                    Change::Set(key, value) => check_key(key).and_then(|()| check_value(value))?,
                    Change::Delete(key) => check_key(key)?,
                }
            }
            bucket.change(&changes)
        })
        .await
    }

    async fn look_up(&mut self, bucket: &Resource<Bucket>, keys: Vec<String>) -> Answer<Vec<Option<Vec<u8>>>> {
        let bucket = self.table.get(bucket)?.clone();
        blocking(move || bucket.get(&keys)).await
    }
}

impl wit::Host for State {
    async fn open(&mut self, name: String) -> Answer<Resource<Bucket>> {
        let namespace = self.granted.store.clone();
        match blocking(move || check_key(&name).and_then(|()| namespace.open(&name))).await? {
            Ok(bucket) => Ok(Ok(self.table.push(bucket)?)),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl wit::HostBucket for State {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        let values = self.look_up(&bucket, vec![key]).await?;
        Ok(values.map(|values| values.into_iter().next().flatten()))
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        self.change(&bucket, vec![Change::Set(key, value)]).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        self.change(&bucket, vec![Change::Delete(key)]).await
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        let values = self.look_up(&bucket, vec![key]).await?;
        Ok(values.map(|values| values.iter().any(Option::is_some)))
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<wit::KeyResponse> {
        let bucket = self.table.get(&bucket)?.clone();
        let skip = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        blocking(move || bucket.keys(skip)).await
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for State {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        let bucket = self.table.get(&bucket)?.clone();
        blocking(move || bucket.add(&key, |number: u64| number.checked_add(delta))).await
    }
}

impl batch::Host for State {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let values = self.look_up(&bucket, keys.clone()).await?;
        let pair = |(key, value): (String, Option<Vec<u8>>)| value.map(|value| (key, value));
        Ok(values.map(|values| keys.into_iter().zip(values).map(pair).collect()))
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        self.change(&bucket, values.into_iter().map(|(key, value)| Change::Set(key, value)).collect()).await
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        self.change(&bucket, keys.into_iter().map(Change::Delete).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &[u8]) -> Change {
        Change::Set(key.into(), value.into())
    }

    #[test]
    fn what_is_kept_survives_and_is_bounded() {
        let home = tempfile::tempdir().unwrap();
        let open = |function: &str, bucket: &str| {
            let stores = Arc::new(Stores::new(home.path().join("stores")));
            stores.namespace(&function.parse().unwrap()).open(bucket).unwrap()
        };
        let add = |bucket: &Bucket, delta| bucket.add("n", |n: u64| n.checked_add(delta));
        {
            let bucket = open("a", "b");
            assert_eq!(bucket.get(&["k".into()]).unwrap(), [None]);
            bucket.change(&[set("k", b"v"), set("l", b"w")]).unwrap();
            assert_eq!(add(&bucket, 3).unwrap() + add(&bucket, 4).unwrap(), 10);
            assert!(bucket.add("k", |n: u64| n.checked_add(1)).unwrap_err().contains("`k`"));
            assert!(add(&bucket, u64::MAX).is_err());
            // A change that is too large leaves everything as it was.
            let large = vec![0; MAX_VALUE];
            let many: Vec<Change> = (0..65).map(|n| set(&format!("large{n}"), &large)).collect();
            assert!(bucket.change(&many).unwrap_err().contains("allowed"));
        }
        let bucket = open("a", "b");
        assert_eq!(bucket.get(&["k".into(), "x".into()]).unwrap(), [Some(b"v".to_vec()), None]);
        assert_eq!(bucket.keys(0).unwrap().keys, ["k", "l", "n"]);
        bucket.change(&[Change::Delete("k".into()), Change::Delete("k".into())]).unwrap();
        assert_eq!(bucket.keys(1).unwrap().keys, ["n"]);
        drop(bucket);
        assert!(open("a", "a").keys(0).unwrap().keys.is_empty(), "buckets are apart");
        assert!(open("b", "b").keys(0).unwrap().keys.is_empty(), "functions are apart");
    }
}
