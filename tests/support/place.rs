//! A data directory beside a server of models: what `hob models pull` is tested with.

use std::process::{Command, Output};

use hob::digest::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Shelf, hob_with, root};

/// A file of `golden`.
pub fn golden(path: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/golden").join(path)).expect("it is in the repository")
}

/// A small model.
pub fn tiny() -> Vec<u8> {
    golden("arch/llama.gguf")
}

/// The same with as much behind its tensors as makes four pieces of it.
pub fn large() -> Vec<u8> {
    let mut bytes = tiny();
    let mut state = 7_u32;
    while bytes.len() < (26 << 20) + 12_345 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// A data directory, and a server of models.
pub struct Place {
    /// The data directory.
    pub home: TempDir,
    /// The server.
    pub shelf: Shelf,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// An empty one, and a server with nothing.
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().expect("the test can go on"), shelf: Shelf::start() }
    }

    /// `hob` with these arguments and variables, which finds the server wherever it looks for models.
    pub fn command(&self, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let url = self.shelf.url.as_str();
        let index = format!("{url}/simple");
        let usual = [
            ("HF_ENDPOINT", url),
            ("HOB_OLLAMA_REGISTRY", url),
            ("HOB_PYPI_INDEX", &index),
            ("HF_TOKEN", ""),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
            ("HOB_PULL_PATIENCE", "3"),
        ];
        hob_with(self.home.path(), args, &[&usual[..], variables].concat())
    }

    /// The same, run to its end.
    pub fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        self.command(args, variables).output().expect("the test can go on")
    }

    /// Pulls a model; what was said.
    pub fn pull(&self, source: &str) -> String {
        self.pull_with(&[source], &[])
    }

    /// The same with more arguments and variables.
    pub fn pull_with(&self, args: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run(&[&["models", "pull"], args].concat(), variables);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("the test can go on")
    }

    /// What is said when a model cannot be pulled.
    pub fn refused(&self, source: &str) -> String {
        self.refused_with(&[source], &[])
    }

    /// The same with more arguments and variables.
    pub fn refused_with(&self, args: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run(&[&["models", "pull"], args].concat(), variables);
        assert!(!output.status.success(), "pulled: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).expect("the test can go on")
    }

    /// What a command says.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("the test can go on")
    }

    /// The names of models that are here.
    pub fn names(&self) -> Vec<String> {
        let list: Vec<Value> =
            serde_json::from_str(&self.ok(&["models", "list", "--json"])).expect("the test can go on");
        list.into_iter().map(|model| model["name"].as_str().expect("the test can go on").to_owned()).collect()
    }

    /// How many files a folder has.
    pub fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.home.path().join(folder)).expect("the test can go on").count()
    }

    /// Nothing was kept of what went wrong.
    pub fn assert_empty(&self) {
        for folder in ["tmp", "models/blobs", "models/names", "models/partial", "models/trees"] {
            assert_eq!(self.count(folder), 0, "{folder} is empty");
        }
    }

    /// Where the blob of these bytes lies.
    pub fn blob(&self, bytes: &[u8]) -> std::path::PathBuf {
        self.home.path().join("models/blobs").join(Digest::of(bytes).file_name())
    }

    /// Bytes that are written down as having come.
    pub fn here(&self) -> u64 {
        let files = std::fs::read_dir(self.home.path().join("models/partial")).into_iter().flatten().flatten();
        let records = files.filter(|file| file.path().extension().is_some_and(|ext| ext == "pieces"));
        let numbers = records.filter_map(|file| std::fs::read(file.path()).ok()).map(|record| {
            let numbers = record.get(4096..).unwrap_or_default();
            numbers.chunks_exact(8).map(|n| u64::from_le_bytes(n.try_into().expect("the test can go on"))).sum::<u64>()
        });
        numbers.sum()
    }
}
