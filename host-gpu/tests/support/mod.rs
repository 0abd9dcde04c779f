//! What the tests of this package share.
#![allow(dead_code)] // each takes a part

use hob_gpu::TokenId;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

pub mod cuda;
pub mod driver;
pub mod read;

/// Where `name` is in `tests/golden`.
pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// What an independent program said.
pub fn golden<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(golden_path(name)).expect("golden files are in the repository");
    serde_json::from_str(&text).expect("golden files have this shape")
}

/// A real model: the file that `variable` names, or the stored blob of that digest.
pub fn model_path(variable: &str, sha256: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let stored =
        std::env::var_os("HOB_TEST_DATA").map(|data| PathBuf::from(data).join(format!("models/blobs/sha256-{sha256}")));
    given.into_iter().chain(stored).find(|path| path.exists())
}

/// Numbers as tokens.
pub fn ids(numbers: &[u32]) -> Vec<TokenId> {
    numbers.iter().map(|n| TokenId(*n)).collect()
}

/// Waits for a future on this thread.
pub fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A real checkpoint: the folder that `variable` names, or the stored one that has the weights of that digest.
pub fn checkpoint_path(variable: &str, sha256: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let stored = || {
        let data = PathBuf::from(std::env::var_os("HOB_TEST_DATA")?);
        let blob = data.join(format!("models/blobs/sha256-{sha256}")).canonicalize().ok()?;
        let trees = std::fs::read_dir(data.join("models/trees")).ok()?;
        let has = |tree: &PathBuf| tree.join("model.safetensors").canonicalize().is_ok_and(|weights| weights == blob);
        trees.flatten().map(|entry| entry.path()).find(has)
    };
    given.or_else(stored).filter(|path| path.join("config.json").exists())
}
