//! The engine's promises on a toy model: queueing, cancelling, leases, loading. No real weights, any machine.

use hob_gpu::{
    Ask, Engine, EngineConfig, Event, EvictError, Finish, JoinError, Model, ModelSource, Prompt, Refusal, Sampling,
    TokenId, Tokens,
};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{Thread, yield_now};
use tempfile::TempDir;

const WIDTH: u64 = 64;
const FF: u64 = 96;
const VOCAB: u64 = 64;
const CONTEXT: u32 = 100_000;

/// A GGUF file with two layers of arbitrary F32 weights.
#[derive(Default)]
struct Toy {
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

    fn write(path: &Path) {
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

/// Waits for a future on this thread.
fn wait<F: Future>(future: F) -> F::Output {
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

/// A token's keys and values are 512 bytes: a page holds four tokens, the budget a thousand.
fn small() -> EngineConfig {
    EngineConfig {
        threads: 2,
        kv_bytes: 250 * 2048,
        kv_page_bytes: 2048,
        max_running: 4,
        max_waiting: 100,
        prefill_tokens: 8,
        ..EngineConfig::default()
    }
}

struct Bench {
    engine: Engine,
    source: ModelSource,
    folder: TempDir,
}

impl Bench {
    fn new(config: EngineConfig) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("toy.gguf");
        Toy::write(&path);
        let source = ModelSource { name: "toy".into(), path, digest: "toy".into() };
        Self { engine: Engine::start(config).expect("the engine starts"), source, folder }
    }

    fn model(&self) -> Model {
        wait(self.engine.join(&self.source)).expect("the toy loads")
    }

    /// Waits until the engine says so; what is waited for comes within a step.
    fn until(&self, what: impl Fn(&Engine) -> bool) {
        while !what(&self.engine) {
            yield_now();
        }
    }

    fn idle(&self) {
        self.until(|engine| {
            let stats = engine.stats();
            stats.running == 0 && stats.waiting == 0 && stats.free_pages == stats.total_pages
        });
    }
}

fn prompt(n: u32, len: u32) -> Prompt {
    Prompt::Tokens((0..len).map(|i| TokenId((i * 7 + n * 13) % VOCAB as u32)).collect())
}

fn ask(n: u32, len: u32, max_tokens: u32) -> Ask {
    let temperature = if n.is_multiple_of(2) { 0.0 } else { 1.0 };
    let sampling = Sampling { temperature, seed: Some(n.into()), ..Sampling::default() };
    Ask { max_tokens: Some(max_tokens), sampling, account: n.into(), ..Ask::new(prompt(n, len)) }
}

fn finish(tokens: Tokens) -> (String, Finish) {
    wait(tokens.text()).expect("no fault")
}

#[test]
fn many_sequences_share_steps_and_pages_and_none_notices() {
    let bench = Bench::new(small());
    let model = bench.model();
    let asks: Vec<Ask> = (0..40).map(|n| ask(n, 1 + n * 5 % 37, 1 + n * 11 % 50)).collect();
    let alone: Vec<_> = asks.iter().map(|ask| finish(model.generate(ask.clone()).unwrap())).collect();
    let together: Vec<_> = asks.iter().map(|ask| model.generate(ask.clone()).unwrap()).collect();
    for ((tokens, alone), ask) in together.into_iter().zip(alone).zip(asks) {
        assert_eq!(alone.0.len(), ask.max_tokens.unwrap() as usize);
        assert_eq!(finish(tokens), alone);
    }
    bench.idle();
}

#[test]
fn a_prompt_that_never_fits_is_refused_with_both_numbers() {
    let bench = Bench::new(small());
    let model = bench.model();
    let refusal = model.generate(ask(0, 1000, 1)).err();
    assert_eq!(refusal, Some(Refusal::TooLong { needed: 1001, available: 1000 }));
    let (text, finish) = finish(model.generate(ask(0, 990, 500)).unwrap());
    // Ten more have a place in the pages; the last token needs none, since nothing follows it.
    assert_eq!((text.len(), finish), (11, Finish::Length));
}

#[test]
fn nonsense_is_refused() {
    let model = Bench::new(small()).model();
    let good = ask(0, 3, 1);
    for bad in [
        Ask { max_tokens: Some(0), ..good.clone() },
        Ask { stop: vec![String::new()], ..good.clone() },
        Ask { prompt: Prompt::Raw(String::new()), ..good.clone() },
        Ask { prompt: Prompt::Tokens(vec![TokenId(VOCAB as u32)]), ..good.clone() },
        Ask { prompt: Prompt::Chat(Vec::new()), ..good.clone() },
        Ask { sampling: Sampling { top_p: f32::NAN, ..Sampling::default() }, ..good },
    ] {
        assert!(matches!(model.generate(bad.clone()), Err(Refusal::Invalid(_))), "{bad:?}");
    }
}

#[test]
fn a_full_queue_is_busy_and_a_reader_who_leaves_makes_room() {
    let bench = Bench::new(EngineConfig { max_running: 1, max_waiting: 1, ..small() });
    let model = bench.model();
    let endless = || model.generate(ask(0, 10, 900)).unwrap();
    let first = endless();
    bench.until(|engine| engine.stats().waiting == 0);
    let waiting = endless();
    assert!(matches!(model.generate(ask(0, 1, 1)), Err(Refusal::Busy { .. })));
    drop(waiting); // while it waits
    bench.until(|engine| engine.stats().waiting == 0);
    let next = model.generate(ask(0, 1, 5)).unwrap();
    drop(first); // while it runs
    assert_eq!(finish(next).0.len(), 5);
    let prefilling = model.generate(ask(0, 900, 5)).unwrap();
    bench.until(|engine| engine.stats().waiting == 0);
    drop(prefilling);
    bench.idle();
}

#[test]
fn events_end_and_count() {
    let model = Bench::new(small()).model();
    let mut tokens = model.generate(ask(1, 9, 6)).unwrap();
    let end = loop {
        let event = wait(tokens.next());
        if !matches!(event, Event::Text(_)) {
            break event;
        }
    };
    assert_eq!(end, wait(tokens.next()));
    assert_eq!((tokens.usage().prompt_tokens, tokens.usage().generated_tokens), (9, 6));
    assert!(tokens.timing().first_token.is_some());
}

#[test]
fn a_leased_model_stays_and_an_idle_one_goes() {
    let bench = Bench::new(small());
    let (model, again) = (bench.model(), bench.model());
    assert_eq!(bench.engine.resident().len(), 1);
    assert_eq!(bench.engine.evict("toy"), Err(EvictError::InUse { leases: 2 }));
    drop((model, again));
    assert_eq!(bench.engine.evict("toy"), Ok(true));
    assert_eq!(bench.engine.evict("toy"), Ok(false));
    assert_eq!(finish(bench.model().generate(ask(2, 3, 4)).unwrap()).0.len(), 4);
}

#[test]
fn a_load_that_failed_can_be_tried_again() {
    let bench = Bench::new(small());
    let path = bench.folder.path().join("late.gguf");
    let late = ModelSource { name: "late".into(), path: path.clone(), digest: "late".into() };
    assert!(matches!(wait(bench.engine.join(&late)), Err(JoinError::Format { .. })));
    std::fs::write(&path, b"GGUF\x03\0").unwrap();
    let error = wait(bench.engine.join(&late)).err().expect("the file is truncated");
    assert!(error.to_string().contains("truncated"), "{error}");
    Toy::write(&path);
    assert!(wait(bench.engine.join(&late)).is_ok());
}

#[test]
fn a_load_outlives_the_caller_who_started_it() {
    let bench = Bench::new(small());
    {
        let mut join = pin!(bench.engine.join(&bench.source));
        let started = join.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(started);
    }
    bench.until(|engine| engine.resident().len() == 1);
}

#[test]
fn what_runs_finishes_after_the_last_handle_is_gone() {
    let bench = Bench::new(small());
    let tokens = bench.model().generate(ask(4, 20, 100)).unwrap();
    drop(bench);
    assert_eq!(finish(tokens).0.len(), 100);
}
