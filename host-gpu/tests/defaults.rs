//! With the settings that users have, on real quantised models: however a sequence is scheduled, and wherever the weights
//! are, what it says is the same, to the last bit of its log-probabilities.

use hob_gpu::{
    Activations, Ask, Engine, EngineConfig, KvType, Model, ModelSource, Penalties, Prompt, Sampling, Tokens, Usage,
};
use std::time::Duration;
use support::read::{Answer, read};
use support::{golden_path, model_path, wait};

mod support;

const SMOLLM2: (&str, &str) = ("HOB_TEST_SMOLLM2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
const GEMMA: (&str, &str) = ("HOB_TEST_GEMMA3", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818");

fn start(config: EngineConfig, (variable, sha256): (&str, &str)) -> (Engine, Model) {
    assert_eq!(config.activations, Activations::Q8, "what users have");
    let path =
        model_path(variable, sha256).expect("this test needs its models: run `cargo xtask test`, which pulls them");
    let engine = Engine::start(config).unwrap();
    let model = wait(engine.join(&ModelSource { name: "model".into(), path, digest: sha256.into() })).unwrap();
    (engine, model)
}

/// Thirty-two pieces of a real text, of different lengths up to `longest`, each asked by an account of its own.
fn asks(model: &Model, longest: usize, tokens: u32) -> Vec<Ask> {
    let text = std::fs::read_to_string(golden_path("perplexity.txt")).expect("golden files are in the repository");
    let all = model.tokenize(&text, false);
    let ask = |n: usize| {
        let prompt = Prompt::Tokens(all[37 * n..][..1 + n * 53 % longest].to_vec());
        Ask { account: n as u64, max_tokens: Some(tokens), logprobs: Some(3), ..Ask::new(prompt) }
    };
    (0..32).map(ask).collect()
}

fn alone(model: &Model, asks: &[Ask]) -> Vec<Answer> {
    asks.iter().map(|ask| read(model.generate(ask.clone()).unwrap()).0).collect()
}

fn together(model: &Model, asks: &[Ask]) -> Vec<(Answer, Usage)> {
    let running: Vec<Tokens> = asks.iter().map(|ask| model.generate(ask.clone()).unwrap()).collect();
    running.into_iter().map(read).collect()
}

fn strangers(asks: &[Ask], more: u64) -> Vec<Ask> {
    asks.iter().map(|ask| Ask { account: ask.account + more, ..ask.clone() }).collect()
}

fn same(got: &[(Answer, Usage)], want: &[Answer], when: &str) {
    for (n, ((got, _), want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "sequence {n}, {when}");
    }
}

/// Where the weights are makes no difference, nor does who is computed beside a sequence, nor what is known already.
fn however_it_is_scheduled(which: (&str, &str), kv_type: KvType, longest: usize) {
    let config = EngineConfig { kv_type, ..EngineConfig::default() };
    let in_file = start(EngineConfig { huge_pages: false, ..config.clone() }, which).1;
    let asks = asks(&in_file, longest, 8);
    let want = alone(&in_file, &asks);
    drop(in_file);
    let (engine, model) = start(config.clone(), which);
    // While they move.
    same(&together(&model, &asks), &want, "while the weights move");
    std::thread::sleep(Duration::from_secs(1));
    same(&together(&model, &strangers(&asks, 100)), &want, "in a batch of 32");
    let before = engine.stats().cached_tokens;
    same(&together(&model, &strangers(&asks, 100)), &want, "with its prefix known");
    assert!(engine.stats().cached_tokens > before + 300, "most of the prompts were");
    drop((engine, model));
    let (_, model) = start(EngineConfig { prefill_tokens: 7, ..config.clone() }, which);
    same(&together(&model, &asks), &want, "in chunks of seven");
    drop(model);
    // So little that a token takes longer on any processor.
    let (engine, model) = start(EngineConfig { max_stall: Duration::from_micros(100), ..config }, which);
    same(&together(&model, &asks[..8]), &want[..8], "through some layers at a time");
    let stats = engine.stats();
    assert!(stats.stretched_steps > 0 && stats.stretched_steps < stats.steps, "{stats:?}");
}

#[test]
fn smollm2_says_the_same_however_it_is_scheduled() {
    however_it_is_scheduled(SMOLLM2, KvType::F16, 97);
}

#[test]
fn gemma_says_the_same_however_it_is_scheduled() {
    // 107 tokens are a page.
    however_it_is_scheduled(GEMMA, KvType::Q8_0, 181);
}

/// One sequence for which few logits are looked at has them of a part of the head, once that is in halves.
#[test]
fn what_is_drawn_from_few_logits_is_what_is_drawn_from_all() {
    let in_file = start(EngineConfig { huge_pages: false, ..EngineConfig::default() }, GEMMA).1;
    let penalties = Penalties { repetition: 1.2, presence: 0.5, frequency: 0.1 };
    let settings = [
        Sampling::default(),
        Sampling { penalties, ..Sampling::default() },
        Sampling { temperature: 1.0, top_k: 64, top_p: 0.95, ..Sampling::default() },
        Sampling { temperature: 1.5, top_k: 20, penalties, ..Sampling::default() },
    ];
    let asks: Vec<Ask> = asks(&in_file, 97, 24)
        .into_iter()
        .zip(settings.into_iter().cycle())
        .take(16)
        .map(|(ask, sampling)| Ask { sampling: Sampling { seed: Some(5), ..sampling }, logprobs: None, ..ask })
        .collect();
    let want = alone(&in_file, &asks);
    drop(in_file);
    let (engine, model) = start(EngineConfig::default(), GEMMA);
    alone(&model, &asks[..1]);
    while !model.is_settled() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = engine.stats();
    let got = alone(&model, &strangers(&asks, 100));
    assert_eq!(got, want);
    let now = engine.stats();
    let (few, all) = (now.few_logits_steps - before.few_logits_steps, now.generated_tokens - before.generated_tokens);
    assert!(few > all / 2, "{few} of {all} tokens");
}

#[test]
fn preemption_changes_no_bit() {
    // 45 tokens are a page; each is admitted with seven or so, and comes to ten.
    let config = EngineConfig { kv_bytes: 32 << 20, ..EngineConfig::default() };
    let (engine, model) = start(config, SMOLLM2);
    let asks: Vec<Ask> = asks(&model, 97, 340).into_iter().take(6).map(|ask| endless(&model, ask)).collect();
    let want = alone(&model, &asks);
    assert_eq!(engine.stats().preemptions, 0);
    same(&together(&model, &strangers(&asks, 100)), &want, "preempted");
    assert!(engine.stats().preemptions > 0);
}

/// It goes on to its limit.
fn endless(model: &Model, ask: Ask) -> Ask {
    Ask { logit_bias: model.end_tokens().iter().map(|id| (*id, -100.0)).collect(), ..ask }
}
