//! Embeddings against transformers and sentence-transformers. See `tests/golden/README.md`.

#![expect(clippy::print_stdout, reason = "how close the numbers are, and why a test is skipped")]

use hob_gpu::{Activations, Ask, CodePath, Engine, EngineConfig, KvType, Model, ModelSource, Prompt, Quantize};
use hob_gpu::{Refusal, Terms, TokenId};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{golden, golden_path, ids, wait};

mod support;

/// The weights of all-MiniLM-L6-v2.
const MINILM: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

#[derive(Deserialize)]
struct Expected {
    /// Where the tokens are a text's.
    text: Option<String>,
    tokens: Vec<u32>,
    embedding: Vec<f32>,
}

fn expected(model: &str) -> Vec<Expected> {
    golden::<BTreeMap<String, Vec<Expected>>>("embeddings.json").remove(model).expect("the file has this model")
}

fn load(config: EngineConfig, path: &Path) -> Option<Model> {
    let engine = Engine::start(EngineConfig { threads: 2, kv_bytes: 32 << 20, ..config }).ok()?;
    let name = path.display().to_string();
    Some(wait(engine.join(&ModelSource { digest: name.clone(), name, path: path.into() })).unwrap())
}

fn embed(model: &Model, tokens: &[TokenId]) -> Vec<f32> {
    wait(model.embed_on(tokens.to_vec(), 1, Terms::default()).unwrap().get()).unwrap()
}

/// One less the cosine.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    assert!((dot(a, a) - 1.0).abs() < 1e-5, "of length {}", dot(a, a).sqrt());
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The largest distance of what `model` says to what is expected; tokens are the same ones.
fn worst(model: &Model, expected: &[Expected]) -> f64 {
    let mut worst = 0.0f64;
    for Expected { text, tokens, embedding } in expected {
        if let Some(text) = text {
            assert_eq!(model.embedding_tokens(text, true), ids(tokens), "{text:?}");
        }
        worst = worst.max(apart(&embed(model, &ids(tokens)), embedding));
    }
    worst
}

#[test]
fn an_encoder_agrees_with_transformers_on_every_path() {
    let expected = expected("bert");
    for path in CodePath::ALL {
        let exact = EngineConfig { code_path: Some(*path), ..EngineConfig::exact() };
        let Some(model) = load(exact, &golden_path("hf/bert")) else { continue };
        let distance = worst(&model, &expected);
        println!("{path}: {distance:.1e} from transformers");
        assert!(distance < 1e-9, "{path}: {distance}");
    }
    for (kv_type, within) in [(KvType::F16, 1e-6), (KvType::Q8_0, 1e-4)] {
        let model = load(EngineConfig { kv_type, ..EngineConfig::default() }, &golden_path("hf/bert")).unwrap();
        let distance = worst(&model, &expected);
        assert!(distance < within, "{kv_type:?}: {distance}");
    }
}

#[test]
fn weights_may_be_quantised() {
    let config = EngineConfig { quantize: Some(Quantize::Q8_0), ..EngineConfig::default() };
    let model = load(config, &golden_path("hf/bert")).unwrap();
    let distance = worst(&model, &expected("bert"));
    assert!(distance > 0.0 && distance < 1e-3, "{distance}");
}

/// What generates is embedded by the state after the last token, in chunks or at once, found in pages or not.
#[test]
fn the_last_token_of_what_generates_agrees_with_transformers() {
    for name in ["llama", "gemma3"] {
        for prefill_tokens in [256, 7] {
            let config = EngineConfig { prefill_tokens, ..EngineConfig::exact() };
            let model = load(config, &golden_path(&format!("hf/{name}"))).unwrap();
            let expected = expected(name);
            for _ in 0..2 {
                let distance = worst(&model, &expected);
                assert!(distance < 1e-9, "{name}, {prefill_tokens} at once: {distance}");
            }
        }
    }
}

#[test]
fn a_batch_changes_nobodys_bits() {
    for name in ["bert", "llama"] {
        let config = EngineConfig { prefill_tokens: 100, ..EngineConfig::default() };
        let model = load(config, &golden_path(&format!("hf/{name}"))).unwrap();
        let of =
            |n: u32| -> Vec<TokenId> { (0..1 + n * 7 % 90).map(|i| TokenId(5 + (n * 31 + i * 17) % 200)).collect() };
        let alone: Vec<_> = (0..40).map(|n| embed(&model, &of(n))).collect();
        let all: Vec<_> = (0..40).map(|n| model.embed_on(of(n), u64::from(n), Terms::default()).unwrap()).collect();
        for (n, (mut embedding, alone)) in all.into_iter().zip(alone).enumerate() {
            assert_eq!(wait(embedding.get()).unwrap(), alone, "{name}, text {n}");
            assert_eq!(embedding.usage().prompt_tokens as usize, of(n as u32).len());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = load(EngineConfig::default(), &golden_path("hf/bert")).unwrap();
    let refused = |tokens: Vec<TokenId>| model.embed_on(tokens, 1, Terms::default()).err().unwrap();
    assert_eq!(refused(vec![TokenId(7); 129]), Refusal::TooLong { needed: 129, available: 128 });
    assert!(matches!(refused(Vec::new()), Refusal::Invalid(why) if why.contains("empty")));
    assert!(matches!(refused(vec![TokenId(300_000)]), Refusal::Invalid(why) if why.contains("vocabulary")));
    assert_eq!(embed(&model, &[TokenId(7); 128]).len(), 64);
    let why = model.generate(Ask::new(Prompt::Raw("a".into()))).err().unwrap().to_string();
    assert!(why.contains("gives embeddings and generates nothing"), "{why}");
    assert!(model.score(&[TokenId(7)], 1).is_err() && !model.generates() && !model.info().generates);
    // Special tokens in a text are text.
    assert_ne!(model.embedding_tokens("[SEP]", false)[1], *model.embedding_tokens("a", false).last().unwrap());
}

/// Sequences that generate go on beside texts, and get the same tokens.
#[test]
fn an_encoder_and_a_generator_share_the_engine() {
    let engine = Engine::start(EngineConfig { threads: 2, kv_bytes: 32 << 20, ..EngineConfig::default() }).unwrap();
    let join = |name: &str| {
        let path = golden_path(&format!("hf/{name}"));
        wait(engine.join(&ModelSource { digest: name.into(), name: name.into(), path })).unwrap()
    };
    let (bert, llama) = (join("bert"), join("llama"));
    let ask = || Ask { max_tokens: Some(60), ..Ask::new(Prompt::Tokens(ids(&[1, 2, 3]))) };
    let alone = wait(llama.generate(ask()).unwrap().text()).unwrap();
    let texts: Vec<_> =
        (0..50).map(|n| bert.embed_on(vec![TokenId(n + 5); 100], 2, Terms::default()).unwrap()).collect();
    let beside = wait(llama.generate(ask()).unwrap().text()).unwrap();
    assert_eq!(alone, beside);
    for mut text in texts {
        assert_eq!(wait(text.get()).unwrap().len(), 64);
    }
    // The engine counts once a turn is over, which is a moment after its last answer.
    let begun = Instant::now();
    let idle = || (engine.stats().running, engine.stats().waiting, engine.stats().free_pages);
    while idle() != (0, 0, engine.stats().total_pages) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::yield_now();
    }
    assert_eq!(idle(), (0, 0, engine.stats().total_pages));
}

#[test]
fn the_real_model_agrees_with_sentence_transformers() {
    let Some(path) = support::checkpoint_path("HOB_TEST_MINILM", MINILM) else {
        return println!("skipped: all-minilm:l6-v2 is not here; name its folder in HOB_TEST_MINILM");
    };
    let expected = expected("all-minilm");
    for (name, config, within) in [
        ("as it is", EngineConfig::default(), 1e-5),
        ("activations of floats", EngineConfig { activations: Activations::F32, ..EngineConfig::default() }, 1e-5),
        ("quantised to q8_0", EngineConfig { quantize: Some(Quantize::Q8_0), ..EngineConfig::default() }, 5e-3),
    ] {
        let model = load(config, &path).unwrap();
        let distance = worst(&model, &expected);
        println!("all-minilm {name}: {distance:.1e} from sentence-transformers");
        assert!(distance < within, "{name}: {distance}");
    }
}
