//! The harness: a real `hob serve` on a directory of its own, real sockets, and the command line.

mod client;
mod collector;
mod http;
mod index;
mod killed;
mod neighbour;
mod place;
mod registry;
mod server;
mod shelf;

pub use client::{Answer, Client, Trailers};
pub use collector::Collector;
pub use http::{Connection, Head, get, post, whole};
pub use index::PackageIndex;
pub use killed::{Deaths, kill_over_and_over};
pub use neighbour::Neighbours;
pub use place::{Place, golden, large, tiny};
pub use registry::{Fault, Registry};
pub use server::{Hob, ServeOptions, hob, hob_with, refused};
pub use shelf::{Asked, COMMIT, Shelf, Trouble};

use std::path::{Path, PathBuf};

use hob::DataDir;
use hob::models::catalog::Entry;
use hob::models::store::{Manifest, ModelStore};

/// The model that all cases use.
pub const MODEL: &str = "smollm2:135m";

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a folder of the repository")
}

/// The `hob` command, built beside this program.
pub fn hob_binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("this program has a path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let path = path.join("hob");
    assert!(path.exists(), "{} is not built; run `cargo xtask test`", path.display());
    path
}

/// A file of `golden/tls`.
pub fn certificate(name: &str) -> PathBuf {
    root().join("tests/golden/tls").join(name)
}

/// A component that `cargo xtask guests` built: `hello`, `guest-spin`...
pub fn component(package: &str) -> PathBuf {
    let path = root().join("target/guests/out").join(format!("{package}.wasm"));
    assert!(path.exists(), "{} is not built; run `cargo xtask guests`", path.display());
    path
}

/// Says that something is not tested. What a test that succeeds prints is not shown, so that it is also written down, in the
/// file that `cargo xtask test` names in `HOB_TEST_SKIPPED` and shows at its end.
#[allow(clippy::print_stderr)] // who runs the tests must see what was not tested
pub fn skipped(why: &str) {
    use std::io::Write as _;
    eprintln!("\n!!! SKIPPED: {why}\n");
    let Some(path) = std::env::var_os("HOB_TEST_SKIPPED") else { return };
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("the list can be written");
    // In one write: tests are threads and processes.
    file.write_all(format!("{}\n", why.trim().replace('\n', " ")).as_bytes()).expect("the list can be written");
}

/// A component made from a script, as `component`; `None`, said loudly, where its language's tools cannot be had.
pub fn script(name: &str) -> Option<Vec<u8>> {
    let out = root().join("target/guests/out");
    if let Ok(why) = std::fs::read_to_string(out.join(name).with_extension("skipped")) {
        skipped(&format!("{name} was not built: {why}"));
        return None;
    }
    Some(std::fs::read(component(name)).expect("it was built"))
}

/// A component that does the same as `component` and is another: with a section that nobody reads.
pub fn distinct(component: &[u8], mark: &[u8]) -> Vec<u8> {
    let name = b"hob-test";
    let size = u8::try_from(1 + name.len() + mark.len()).expect("a mark is short");
    assert!(size < 128, "the size is one byte");
    [component, &[0, size, name.len() as u8], name, mark].concat()
}

/// The directory that `cargo xtask test` pulled the model into.
pub fn model_home() -> PathBuf {
    std::env::var_os("HOB_TEST_DATA").map_or_else(|| root().join("target/hob-data"), PathBuf::from)
}

/// The weights of [`MODEL`].
pub fn weights() -> PathBuf {
    weights_of(MODEL).unwrap_or_else(|| panic!("{MODEL} is not here; run `cargo xtask test`, which pulls it"))
}

/// The weights of a model of the catalogue, if it was pulled.
pub fn weights_of(model: &str) -> Option<PathBuf> {
    let entry = Entry::find(&model.parse().expect("it is a name")).expect("it is in the catalogue");
    let path = model_home().join("models/blobs").join(entry.digest()?.file_name());
    path.exists().then_some(path)
}

/// Puts [`MODEL`] into a fresh data directory, without copying it.
pub fn lend_model(home: &Path) {
    lend_model_as(home, MODEL);
}

/// The same under another name.
pub fn lend_model_as(home: &Path, name: &str) {
    let store = ModelStore::new(DataDir::open(Some(home)).expect("a temporary directory can be written"));
    let entry = Entry::find(&MODEL.parse().expect("it is a name")).expect("it is in the catalogue");
    let (digest, bytes) = entry.digest().zip(entry.bytes).expect("it is pinned");
    let blob = store.blob(&digest);
    if !blob.exists() && std::fs::hard_link(weights(), &blob).is_err() {
        std::os::unix::fs::symlink(weights(), &blob).expect("a link can be made");
    }
    let name = name.parse().expect("it is a name");
    let manifest = Manifest::of_file(name, digest, bytes, "test");
    store.put(&manifest).expect("a temporary directory can be written");
}

/// A small model that embeds, of the golden files.
pub const EMBEDDER: &str = "tiny-bert";

/// The real one, if it was pulled.
pub const REAL_EMBEDDER: &str = "all-minilm:l6-v2";

/// Puts [`EMBEDDER`], and [`REAL_EMBEDDER`] where that was pulled, into a data directory.
pub fn lend_embedders(home: &Path) {
    let data = DataDir::open(Some(home)).expect("a temporary directory can be written");
    let folder = root().join("tests/golden/hf/bert");
    let output = hob(home, &["models", "pull", &format!("file:{}", folder.display()), "--as", EMBEDDER]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let from = ModelStore::new(DataDir::open(Some(&model_home())).expect("it can be opened"));
    let Ok(manifest) = from.get(&REAL_EMBEDDER.parse().expect("it is a name")) else { return };
    let to = ModelStore::new(data);
    for (digest, _) in manifest.blobs() {
        let (from, to) = (from.blob(&digest), to.blob(&digest));
        if !to.exists() && std::fs::hard_link(&from, &to).is_err() {
            std::os::unix::fs::symlink(&from, &to).expect("a link can be made");
        }
    }
    to.put(&manifest).expect("a temporary directory can be written");
}

/// A second model: the weights of [`MODEL`] in another file, of which nobody knows that they are the same.
pub const TWIN: &str = "twin:135m";

/// Puts [`TWIN`] into a fresh data directory: a copy that differs in what no reader looks at.
pub fn lend_twin(home: &Path) {
    let store = ModelStore::new(DataDir::open(Some(home)).expect("a temporary directory can be written"));
    let mut bytes = std::fs::read(weights()).expect("the weights can be read");
    bytes.extend([0; 32]);
    let digest = hob::digest::Digest::of(&bytes);
    std::fs::write(store.blob(&digest), &bytes).expect("a temporary directory can be written");
    let manifest = Manifest::of_file(TWIN.parse().expect("it is a name"), digest, bytes.len() as u64, "test");
    store.put(&manifest).expect("a temporary directory can be written");
}
