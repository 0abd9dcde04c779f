//! A toy model, and an engine that runs it.

use crate::support::wait;
use hob_gpu::{Ask, Engine, EngineConfig, Finish, KvType, Model, ModelSource, Prompt, Sampling, TokenId, Tokens};
use std::path::Path;
use std::thread::yield_now;
use tempfile::TempDir;

const WIDTH: u64 = 64;
const FF: u64 = 96;
pub const VOCAB: u64 = 64;
const CONTEXT: u32 = 100_000;

/// A GGUF file with two layers of arbitrary F32 weights.
#[derive(Default)]
pub struct Toy {
    metadata: Vec<u8>,
    keys: u64,
    tensors: Vec<u8>,
    names: u64,
    data: Vec<u8>,
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

impl Toy {
    fn key(&mut self, key: &str, kind: u32, value: &[u8]) {
        text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.keys += 1;
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4, &value.to_le_bytes());
    }

    fn words(&mut self, key: &str, words: &[String]) {
        let mut value = 8u32.to_le_bytes().to_vec();
        value.extend((words.len() as u64).to_le_bytes());
        words.iter().for_each(|word| text(&mut value, word));
        self.key(key, 9, &value);
    }

    fn say(&mut self, key: &str, word: &str) {
        let mut value = Vec::new();
        text(&mut value, word);
        self.key(key, 8, &value);
    }

    fn tensor(&mut self, name: &str, dims: &[u64]) {
        text(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.tensors.extend(dim.to_le_bytes()));
        self.tensors.extend(0u32.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.names += 1;
        for i in 0..dims.iter().product() {
            let noise = (i + self.names * 131).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let value = noise as f32 / (1 << 23) as f32 - 1.0;
            self.data.extend((value / 4.0).to_le_bytes());
        }
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    pub fn write(path: &Path) {
        let mut toy = Self::default();
        toy.say("general.architecture", "llama");
        toy.say("tokenizer.ggml.model", "gpt2");
        toy.number("llama.block_count", 2);
        toy.number("llama.context_length", CONTEXT);
        toy.number("llama.embedding_length", WIDTH as u32);
        toy.number("llama.feed_forward_length", FF as u32);
        toy.number("llama.attention.head_count", 4);
        toy.number("llama.attention.head_count_kv", 2);
        let letters: Vec<String> = (0..VOCAB as u8).map(|n| char::from(b'!' + n).to_string()).collect();
        toy.words("tokenizer.ggml.tokens", &letters);
        toy.words("tokenizer.ggml.merges", &[]);
        toy.tensor("token_embd.weight", &[WIDTH, VOCAB]);
        toy.tensor("output_norm.weight", &[WIDTH]);
        for n in 0..2 {
            for (name, dims) in [
                ("attn_norm", &[WIDTH][..]),
                ("attn_q", &[WIDTH, WIDTH]),
                ("attn_k", &[WIDTH, WIDTH / 2]),
                ("attn_v", &[WIDTH, WIDTH / 2]),
                ("attn_output", &[WIDTH, WIDTH]),
                ("ffn_norm", &[WIDTH]),
                ("ffn_gate", &[WIDTH, FF]),
                ("ffn_up", &[WIDTH, FF]),
                ("ffn_down", &[FF, WIDTH]),
            ] {
                toy.tensor(&format!("blk.{n}.{name}.weight"), dims);
            }
        }
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(toy.names.to_le_bytes());
        file.extend(toy.keys.to_le_bytes());
        file.extend([toy.metadata, toy.tensors].concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(toy.data);
        std::fs::write(path, file).expect("the temporary folder can be written");
    }
}

/// A token's keys and values are 512 bytes, as f32: a page holds four tokens, the budget a thousand.
pub fn small() -> EngineConfig {
    EngineConfig {
        threads: 2,
        kv_bytes: 250 * 2048,
        kv_page_bytes: 2048,
        max_running: 4,
        max_waiting: 100,
        prefill_tokens: 8,
        kv_type: KvType::F32,
        ..EngineConfig::default()
    }
}

pub struct Bench {
    pub engine: Engine,
    pub source: ModelSource,
    pub folder: TempDir,
}

impl Bench {
    pub fn new(config: EngineConfig) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("toy.gguf");
        Toy::write(&path);
        let source = ModelSource { name: "toy".into(), path, digest: "toy".into() };
        Self { engine: Engine::start(config).expect("the engine starts"), source, folder }
    }

    pub fn model(&self) -> Model {
        wait(self.engine.join(&self.source)).expect("the toy loads")
    }

    /// Waits until the engine says so; what is waited for comes within a step.
    pub fn until(&self, what: impl Fn(&Engine) -> bool) {
        while !what(&self.engine) {
            yield_now();
        }
    }

    pub fn idle(&self) {
        self.until(|engine| {
            let stats = engine.stats();
            stats.running == 0 && stats.waiting == 0 && stats.free_pages == stats.total_pages
        });
    }
}

pub fn prompt(n: u32, len: u32) -> Prompt {
    Prompt::Tokens((0..len).map(|i| TokenId((i * 7 + n * 13) % VOCAB as u32)).collect())
}

pub fn ask(n: u32, len: u32, max_tokens: u32) -> Ask {
    let temperature = if n.is_multiple_of(2) { 0.0 } else { 1.0 };
    let sampling = Sampling { temperature, seed: Some(n.into()), ..Sampling::default() };
    Ask { max_tokens: Some(max_tokens), sampling, account: n.into(), ..Ask::new(prompt(n, len)) }
}

pub fn finish(tokens: Tokens) -> (String, Finish) {
    wait(tokens.text()).expect("no fault")
}
