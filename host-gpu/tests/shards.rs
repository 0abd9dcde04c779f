//! A GGUF model in shards is the model in one file; shards that do not belong together are refused.

use hob_gpu::{Engine, EngineConfig, Model, ModelSource, inspect};
use std::path::{Path, PathBuf};
use support::{golden_path, ids, wait};
use tempfile::TempDir;

#[path = "support/split.rs"]
mod split;
mod support;

const NAME: &str = "qwen3";

fn whole() -> PathBuf {
    golden_path(&format!("arch/{NAME}.gguf"))
}

/// The model in four shards, the first without tensors.
struct Shards(TempDir);

impl Shards {
    fn new() -> Self {
        let shards = Self(TempDir::new().unwrap());
        let files = split::split(&std::fs::read(whole()).unwrap(), 4);
        files.iter().zip(1..).for_each(|(file, n)| std::fs::write(shards.path(n), file).unwrap());
        shards
    }

    fn path(&self, n: usize) -> PathBuf {
        self.0.path().join(format!("tiny-{n:05}-of-00004.gguf"))
    }

    /// The refusal of the model after `change` to shard `n`.
    fn refused(n: usize, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let shards = Self::new();
        let mut file = std::fs::read(shards.path(n)).unwrap();
        change(&mut file);
        std::fs::write(shards.path(n), file).unwrap();
        inspect(&shards.path(1)).expect_err("it is refused").to_string()
    }
}

fn load(path: &Path) -> Model {
    let engine = Engine::start(EngineConfig { threads: 1, kv_bytes: 16 << 20, ..EngineConfig::default() }).unwrap();
    let name = path.display().to_string();
    wait(engine.join(&ModelSource { digest: name.clone(), name, path: path.into() })).unwrap()
}

/// Replaces `from` in `file`, whose length stays.
fn replace(file: &mut [u8], from: &[u8], to: &[u8]) {
    let at = (0..file.len() - from.len()).find(|n| file[*n..].starts_with(from)).expect("it is there");
    file[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn any_shard_opens_the_whole_model() {
    let (shards, tokens) = (Shards::new(), ids(&[3, 1, 4, 1, 5, 9, 2, 6]));
    let whole = load(&whole());
    let expected = whole.score(&tokens, 8).unwrap();
    for n in 1..=4 {
        let model = load(&shards.path(n));
        let scores = model.score(&tokens, 8).unwrap();
        assert!((0..tokens.len()).all(|n| scores.after(n) == expected.after(n)), "by shard {n}");
        assert_eq!((whole.info().files, model.info().files), (1, 4));
        assert_eq!(whole.info().weight_bytes, model.info().weight_bytes);
        assert_eq!(model.tokenize("ab", false), whole.tokenize("ab", false));
    }
}

/// Files in memory are those of the folder: weights are read where they lie.
#[cfg(target_os = "linux")]
#[test]
fn every_shard_is_mapped_and_none_is_copied() {
    let shards = Shards::new();
    let model = load(&shards.path(2));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // The first has only the metadata, which the tokenizer reads.
    for n in 1..=4 {
        let line = maps.lines().find(|line| line.ends_with(shards.path(n).to_str().unwrap()));
        assert!(line.is_some_and(|line| line.contains(" r--")), "shard {n}: {line:?}");
    }
    drop(model);
}

#[test]
fn missing_and_foreign_shards_are_refused_by_name() {
    let shards = Shards::new();
    std::fs::remove_file(shards.path(3)).unwrap();
    let missing = inspect(&shards.path(1)).unwrap_err().to_string();
    assert!(missing.contains("tiny-00003-of-00004.gguf is missing"), "{missing}");

    let shards = Shards::new();
    std::fs::copy(shards.path(2), shards.path(3)).unwrap();
    let foreign = inspect(&shards.path(1)).unwrap_err().to_string();
    let said = "tiny-00003-of-00004.gguf should be shard 2 of 4, and says that it is 1 of 4";
    assert!(foreign.contains(said), "{foreign}");

    let shards = Shards::new();
    let renamed = shards.0.path().join("model.gguf");
    std::fs::rename(shards.path(1), &renamed).unwrap();
    let renamed = inspect(&renamed).unwrap_err().to_string();
    assert!(renamed.contains("model.gguf is one of 4 files of a model") && renamed.contains("x-00001-of-00004.gguf"));

    let count = |to: i32| {
        move |file: &mut Vec<u8>| {
            let from = [&b"split.tensors.count"[..], &5u32.to_le_bytes()].concat();
            let to = [&from[..], &to.to_le_bytes()].concat();
            replace(file, &from, &to);
        }
    };
    let fewer = Shards::refused(1, count(7));
    assert!(fewer.contains("tiny-00001-of-00004.gguf announces 7 tensors"), "{fewer}");
    let of = Shards::refused(2, |file| {
        let from = [&b"split.count"[..], &2u32.to_le_bytes()].concat();
        replace(file, &from, &[&from[..], &5u16.to_le_bytes()].concat());
    });
    assert!(of.contains("tiny-00002-of-00004.gguf should be shard 1 of 4, and says that it is 1 of 5"), "{of}");
    let twice = Shards::refused(4, |file| replace(file, b"blk.2.ffn_down", b"blk.0.ffn_down"));
    assert!(twice.contains("tiny-00004-of-00004.gguf has tensor `blk.0.ffn_down.weight`, as another"), "{twice}");
    let cut = Shards::refused(3, |file| file.truncate(file.len() / 2));
    assert!(cut.contains("tiny-00003-of-00004.gguf: the file is truncated: tensor `"), "{cut}");
    let no_gguf = Shards::refused(2, |file| file[0] = b'X');
    assert!(no_gguf.contains("tiny-00002-of-00004.gguf: not a gguf file"), "{no_gguf}");
}
