//! `wasi:keyvalue@0.2.0-draft2`, which Spin's guests import: the same buckets, with compare-and-swap, and with cursors and
//! numbers of other types.

use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};

use super::{Bucket, Change, State, check_key, check_value};
use crate::digest::Digest;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/wasi-keyvalue-draft2",
        world: "imports",
        with: {
            "wasi:keyvalue/store.bucket": super::super::Bucket,
            "wasi:keyvalue/atomics.cas": super::Cas,
        },
        imports: { default: async | trappable },
    });
}
use bindings::wasi::keyvalue::{atomics, batch, store as wit};

/// A swap that was begun: of the value that was there only its digest is kept, since values are large and handles many.
pub struct Cas {
    bucket: Bucket,
    key: String,
    seen: Option<Digest>,
}

/// Links it.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    wit::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    atomics::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    batch::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

type Answer<T> = Result<Result<T, wit::Error>>;

fn told<T>(answer: Result<T, super::wit::Error>) -> Result<T, wit::Error> {
    answer.map_err(|error| match error {
        super::wit::Error::NoSuchStore => wit::Error::NoSuchStore,
        super::wit::Error::AccessDenied => wit::Error::AccessDenied,
        super::wit::Error::Other(why) => wit::Error::Other(why),
    })
}

/// Runs what waits for a disk on a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Answer<T> {
    Ok(told(super::blocking(work).await?))
}

impl wit::Host for State {
    async fn open(&mut self, name: String) -> Answer<Resource<Bucket>> {
        Ok(told(super::wit::Host::open(self, name).await?))
    }
}

impl wit::HostBucket for State {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        Ok(told(super::wit::HostBucket::get(self, bucket, key).await?))
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        Ok(told(self.change(&bucket, vec![Change::Set(key, value)]).await?))
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        Ok(told(self.change(&bucket, vec![Change::Delete(key)]).await?))
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        Ok(told(super::wit::HostBucket::exists(self, bucket, key).await?))
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<String>) -> Answer<wit::KeyResponse> {
        let Ok(skip) = cursor.map_or(Ok(0), |cursor| cursor.parse()) else {
            return Ok(Err(wit::Error::Other("that is no cursor of an earlier answer".into())));
        };
        let bucket = self.table.get(&bucket)?.clone();
        let page = blocking(move || bucket.keys(skip)).await?;
        let cursor = |cursor: u64| cursor.to_string();
        Ok(page.map(|page| wit::KeyResponse { keys: page.keys, cursor: page.cursor.map(cursor) }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for State {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Answer<i64> {
        let bucket = self.table.get(&bucket)?.clone();
        blocking(move || bucket.add(&key, |number: i64| number.checked_add(delta))).await
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<Result<(), atomics::CasError>> {
        let Cas { bucket, key, seen } = self.table.delete(cas)?;
        let (there, name) = (bucket.clone(), key.clone());
        let swapped = blocking(move || {
            check_value(&value)?;
            there.update(&name, |old| {
                let now = old.map(Digest::of);
                Ok(if now == seen { (Some(value), None) } else { (None, Some(now)) })
            })
        });
        Ok(match swapped.await? {
            Ok(None) => Ok(()),
            // Another came first: the next try begins where that one left it.
            Ok(Some(now)) => Err(atomics::CasError::CasFailed(self.table.push(Cas { bucket, key, seen: now })?)),
            Err(error) => Err(atomics::CasError::StoreError(error)),
        })
    }
}

impl atomics::HostCas for State {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Resource<Cas>> {
        let bucket = self.table.get(&bucket)?.clone();
        match read(bucket.clone(), key.clone()).await? {
            Ok(value) => Ok(Ok(self.table.push(Cas { bucket, key, seen: value.as_deref().map(Digest::of) })?)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// The value as it is now, which is what a swap then expects.
    async fn current(&mut self, cas: Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        let Cas { bucket, key, .. } = self.table.get(&cas)?;
        let value = read(bucket.clone(), key.clone()).await?;
        if let Ok(value) = &value {
            self.table.get_mut(&cas)?.seen = value.as_deref().map(Digest::of);
        }
        Ok(value)
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

async fn read(bucket: Bucket, key: String) -> Answer<Option<Vec<u8>>> {
    blocking(move || {
        check_key(&key)?;
        Ok(bucket.get(&[key])?.into_iter().next().flatten())
    })
    .await
}

impl batch::Host for State {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        Ok(told(super::batch::Host::get_many(self, bucket, keys).await?))
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        Ok(told(super::batch::Host::set_many(self, bucket, values).await?))
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        Ok(told(super::batch::Host::delete_many(self, bucket, keys).await?))
    }
}
