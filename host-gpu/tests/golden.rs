//! The engine against independent programs, on a real model. See `tests/golden/README.md`.

use hob_gpu::{Ask, Engine, EngineConfig, Event, Finish, Message, Model, ModelSource, Prompt, Role, Sampling};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::LazyLock;
use support::{golden, ids, wait};

mod support;

const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

#[derive(Deserialize)]
struct Strings {
    items: Vec<StringCase>,
}

#[derive(Deserialize)]
struct StringCase {
    text: String,
    ids: Vec<u32>,
    ids_no_parse_special: Vec<u32>,
    detok: String,
}

#[derive(Deserialize)]
struct Greedy {
    raw: Vec<GreedyCase>,
    chat: Vec<GreedyCase>,
}

#[derive(Deserialize)]
struct GreedyCase {
    prompt: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    margins: Vec<f32>,
    top20_steps: Vec<Vec<(u32, f32)>>,
    #[serde(default)]
    messages: Vec<GoldenMessage>,
}

#[derive(Deserialize)]
struct GoldenMessage {
    role: String,
    content: String,
}

fn path() -> PathBuf {
    let found = support::model_path("HOB_TEST_SMOLLM2", SHA256);
    found.expect("this test needs the model smollm2:135m: run `cargo xtask test`, which pulls it")
}

fn source() -> ModelSource {
    ModelSource { name: "smollm2:135m".into(), path: path(), digest: SHA256.into() }
}

/// One engine for all tests: the machine's cores are shared anyway.
fn model() -> Model {
    static MODEL: LazyLock<Model> = LazyLock::new(|| {
        let engine = Engine::start(EngineConfig::exact()).expect("the engine starts");
        wait(engine.join(&source())).expect("the model loads")
    });
    MODEL.clone()
}

fn messages(case: &GreedyCase) -> Vec<Message> {
    let role = |name: &str| match name {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    let each = |m: &GoldenMessage| Message { role: role(&m.role), content: m.content.clone() };
    case.messages.iter().map(each).collect()
}

#[test]
fn token_ids_are_exact() {
    let model = model();
    for case in golden::<Strings>("smollm2.tokenize.json").items {
        assert_eq!(model.tokenize(&case.text, true), ids(&case.ids), "{:?}", case.text);
        let plain = ids(&case.ids_no_parse_special);
        assert_eq!(model.tokenize(&case.text, false), plain, "{:?}", case.text);
        assert_eq!(model.detokenize(&ids(&case.ids)), case.detok);
        assert_eq!(model.detokenize(&plain), case.detok);
    }
}

#[test]
fn prompts_become_the_golden_tokens() {
    let model = model();
    let cases: Greedy = golden("smollm2.greedy.f32.json");
    for case in &cases.raw {
        assert_eq!(model.tokenize(&case.prompt, true), ids(&case.prompt_ids));
    }
    for case in &cases.chat {
        assert_eq!(model.render(&messages(case)).unwrap(), case.prompt);
        let tokens = model.prompt_tokens(Prompt::Chat(messages(case))).unwrap();
        assert_eq!(tokens, ids(&case.prompt_ids));
    }
}

#[test]
fn log_probabilities_are_within_a_thousandth() {
    let model = model();
    let cases: Greedy = golden("smollm2.greedy.f32.json");
    let mut worst = 0.0f32;
    for case in cases.raw.iter().chain(&cases.chat) {
        let all = [case.prompt_ids.clone(), case.output_ids.clone()].concat();
        let scores = model.score(&ids(&all), 64).unwrap();
        for (step, golden) in case.top20_steps.iter().enumerate() {
            let ours = scores.after(case.prompt_ids.len() - 1 + step);
            for (id, want) in golden {
                let error = (ours[*id as usize] - want).abs();
                assert!(error < 1e-3, "{:?} step {step} token {id}: {error}", case.prompt);
                worst = worst.max(error);
            }
            let best = (0..ours.len()).max_by(|a, b| ours[*a].total_cmp(&ours[*b])).unwrap();
            if case.margins[step] > 0.7 {
                assert_eq!(best as u32, case.output_ids[step], "{:?} step {step}", case.prompt);
            }
        }
    }
    assert!(worst > 0.0, "something was compared");
}

#[test]
fn perplexity_is_that_of_f32() {
    // As llama.cpp's perplexity tool counts: windows of 512 tokens, the second half of each is scored.
    const WINDOW: usize = 512;
    let model = model();
    let path = support::golden_path("perplexity.txt");
    let tokens = model.tokenize(&std::fs::read_to_string(path).expect("golden files are in the repository"), false);
    let mut losses = Vec::new();
    for window in tokens.chunks_exact(WINDOW) {
        let scores = model.score(window, 256).unwrap();
        losses.extend((WINDOW / 2..WINDOW - 1).map(|n| f64::from(-scores.after(n)[window[n + 1].0 as usize])));
    }
    assert_eq!(losses.len(), 3 * (WINDOW / 2 - 1));
    let perplexity = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
    assert!((perplexity - 35.787).abs() < 0.01, "{perplexity}");
}

#[test]
fn chunks_and_code_paths_do_not_change_the_bits_or_the_meaning() {
    let model = model();
    let case = golden::<Greedy>("smollm2.greedy.f32.json").chat.remove(0);
    let all = ids(&[case.prompt_ids, case.output_ids].concat());
    let whole = model.score(&all, 1000).unwrap();
    for chunk in [1, 3, 7] {
        let parts = model.score(&all, chunk).unwrap();
        for n in 0..all.len() {
            assert!(whole.after(n) == parts.after(n), "chunks of {chunk}, token {n}");
        }
    }
    for path in hob_gpu::CodePath::ALL {
        let config = EngineConfig { code_path: Some(*path), ..EngineConfig::exact() };
        let Ok(engine) = Engine::start(config) else { continue };
        let other = wait(engine.join(&source())).unwrap().score(&all, 1000).unwrap();
        let last = all.len() - 1;
        for (a, b) in whole.after(last).iter().zip(other.after(last)) {
            assert!((a - b).abs() < 1e-3, "{path}: {a} {b}");
        }
    }
}

#[test]
fn a_sequence_says_the_same_alone_and_in_a_batch() {
    let model = model();
    let cases: Greedy = golden("smollm2.greedy.f32.json");
    let ask = |case: &GreedyCase, n: u64| Ask {
        max_tokens: Some(24),
        sampling: Sampling {
            temperature: if n.is_multiple_of(2) { 0.0 } else { 0.8 },
            seed: Some(n),
            ..Sampling::default()
        },
        ..Ask::new(Prompt::Tokens(ids(&case.prompt_ids)))
    };
    let all: Vec<Ask> = cases.raw.iter().chain(&cases.chat).zip(0..).map(|(c, n)| ask(c, n)).collect();
    let alone: Vec<_> = all.iter().map(|ask| wait(model.generate(ask.clone()).unwrap().text()).unwrap()).collect();
    let running: Vec<_> = all.iter().map(|ask| model.generate(ask.clone()).unwrap()).collect();
    for (tokens, alone) in running.into_iter().zip(alone) {
        assert_eq!(wait(tokens.text()).unwrap(), alone);
    }
}

#[test]
fn usage_stop_texts_and_cancelling() {
    let model = model();
    let prompt = Prompt::Raw("The capital of France is".into());
    let ask = Ask { max_tokens: Some(8), ..Ask::new(prompt) };
    let mut tokens = model.generate(ask.clone()).unwrap();
    let mut text = String::new();
    let end = loop {
        match wait(tokens.next()) {
            Event::Text(more) => text += &more,
            end => break end,
        }
    };
    assert_eq!((end, text.as_str()), (Event::Finished(Finish::Length), " Paris.\n\nThe answer is:"));
    assert_eq!((tokens.usage().prompt_tokens, tokens.usage().generated_tokens), (5, 8));
    assert!(tokens.timing().first_token.is_some());
    let stopped = Ask { stop: vec!["answer".into(), "is:".into()], ..ask };
    let (text, finish) = wait(model.generate(stopped.clone()).unwrap().text()).unwrap();
    assert_eq!((text.as_str(), finish), (" Paris.\n\nThe ", Finish::Stop));
    drop(model.generate(Ask { max_tokens: None, ..stopped }).unwrap());
}
