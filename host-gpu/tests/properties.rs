//! What holds for every request: seeds, bias, stop texts at every border, whole characters. On the tiny Llama of
//! `tests/golden/arch`, whose tokens are single bytes, so that characters and stop texts span tokens.

use hob_gpu::{Ask, Engine, EngineConfig, Event, Finish, Model, ModelSource, Penalties, Prompt, Sampling, TokenId};
use support::{golden_path, wait};

mod support;

const VOCAB: u64 = 288;

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn float(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 20) as f32
    }

    fn ask(&mut self) -> Ask {
        let len = 1 + self.below(40);
        let prompt = (0..len).map(|_| TokenId(self.below(VOCAB) as u32)).collect();
        let sampling = Sampling {
            temperature: [0.0, 0.7, 1.5][self.below(3) as usize],
            top_k: [0, 5, 40][self.below(3) as usize],
            top_p: 0.5 + 0.5 * self.float(),
            min_p: [0.0, 0.05][self.below(2) as usize],
            seed: Some(self.next()),
            penalties: Penalties {
                repetition: 0.8 + self.float(),
                presence: self.float() - 0.5,
                frequency: self.float() - 0.5,
            },
        };
        let biased = self.below(4);
        let logit_bias = (0..biased).map(|_| (TokenId(self.below(VOCAB) as u32), 8.0 * self.float() - 4.0)).collect();
        Ask {
            max_tokens: Some(1 + self.below(40) as u32),
            sampling,
            logit_bias,
            logprobs: Some(0),
            account: self.below(3),
            ..Ask::new(Prompt::Tokens(prompt))
        }
    }
}

fn model() -> Model {
    let config = EngineConfig {
        threads: 2,
        kv_bytes: 8 << 20,
        kv_page_bytes: 16 << 10,
        max_running: 5,
        prefill_tokens: 16,
        ..EngineConfig::default()
    };
    let engine = Engine::start(config).unwrap();
    let path = golden_path("arch/llama.gguf");
    wait(engine.join(&ModelSource { name: "tiny".into(), path, digest: "tiny".into() })).unwrap()
}

/// The text piece by piece, how it ended, and the tokens.
fn run(model: &Model, ask: Ask) -> (Vec<String>, Finish, Vec<TokenId>) {
    let mut tokens = model.generate(ask).unwrap();
    let mut pieces = Vec::new();
    loop {
        match wait(tokens.next()) {
            Event::Text(piece) => pieces.push(piece),
            Event::Finished(finish) => {
                let ids = tokens.take_logprobs().into_iter().map(|logprob| logprob.id).collect();
                return (pieces, finish, ids);
            }
            Event::Busy { .. } => panic!("busy"),
            Event::Fault(why) => panic!("{why}"),
        }
    }
}

#[test]
fn a_seed_is_a_text_whatever_else_runs() {
    let (model, mut random) = (model(), Random(1));
    for _ in 0..12 {
        let asks: Vec<Ask> = (0..12).map(|_| random.ask()).collect();
        let alone: Vec<_> = asks.iter().map(|ask| run(&model, ask.clone())).collect();
        // All of them, five at a time, beside others that are dropped halfway.
        let noise: Vec<_> = (0..4).map(|_| model.generate(random.ask()).unwrap()).collect();
        let mut running: Vec<_> = asks.iter().map(|ask| model.generate(ask.clone()).unwrap()).collect();
        drop(noise);
        for (tokens, (pieces, finish, ids)) in running.iter_mut().zip(alone) {
            let mut text = String::new();
            let end = loop {
                match wait(tokens.next()) {
                    Event::Text(piece) => text += &piece,
                    end => break end,
                }
            };
            assert_eq!((text, end), (pieces.concat(), Event::Finished(finish)));
            assert_eq!(tokens.take_logprobs().iter().map(|l| l.id).collect::<Vec<_>>(), ids);
        }
    }
}

#[test]
fn a_bias_forbids_and_forces() {
    let (model, mut random) = (model(), Random(2));
    for _ in 0..40 {
        let banned: Vec<TokenId> = (0..40).map(|_| TokenId(random.below(VOCAB) as u32)).collect();
        let mut ask = Ask { max_tokens: Some(60), ..random.ask() };
        ask.sampling.penalties = Penalties::default();
        ask.logit_bias = banned.iter().map(|id| (*id, -100.0)).collect();
        let (_, _, ids) = run(&model, ask.clone());
        assert!(!ids.is_empty() && ids.iter().all(|id| !banned.contains(id)), "{ids:?}");
        let forced = TokenId(random.below(256) as u32);
        ask.logit_bias = vec![(forced, 100.0)];
        let (_, finish, ids) = run(&model, ask);
        assert_eq!((finish, ids), (Finish::Length, vec![forced; 60]));
    }
}

#[test]
fn a_stop_text_ends_the_text_before_it_at_every_border() {
    let (model, mut random) = (model(), Random(3));
    let mut cut = 0;
    for _ in 0..6 {
        // Printable bytes only, one token each: stop texts then have a border in every place.
        let mut ask = Ask { max_tokens: Some(50), logprobs: None, ..random.ask() };
        ask.logit_bias = (94..VOCAB).map(|id| (TokenId(id as u32), -100.0)).collect();
        let whole = run(&model, ask.clone()).0.concat();
        assert!(whole.len() >= 50, "{whole:?}");
        for (from, len) in (0..whole.len() - 6).flat_map(|from| [1, 2, 3, 6].map(|len| (from, len))).step_by(3) {
            let stop = whole[from..from + len].to_owned();
            let decoys = vec![format!("{stop}\n"), format!("\n{stop}"), stop.clone()];
            let (pieces, finish, _) = run(&model, Ask { stop: decoys, ..ask.clone() });
            let before = &whole[..whole.find(&stop).unwrap()];
            assert_eq!((pieces.concat().as_str(), finish), (before, Finish::Stop), "{stop:?}");
            cut += 1;
        }
    }
    assert!(cut > 300, "{cut}");
}

#[test]
fn no_piece_has_half_a_character() {
    const TEXT: &str = "é€🦀a";
    let (model, mut random) = (model(), Random(4));
    // A token for each byte, and no byte twice.
    let allowed = model.tokenize(TEXT, false);
    let byte_of = |id: &TokenId| TEXT.as_bytes()[allowed.iter().position(|other| other == id).unwrap()];
    assert_eq!(allowed.len(), TEXT.len());
    let mut characters = 0;
    for _ in 0..300 {
        // Of all tokens only the bytes of a few characters, so that many come out whole.
        let mut ask = Ask { max_tokens: Some(80), ..random.ask() };
        ask.sampling = Sampling { temperature: 2.0, seed: Some(random.next()), ..Sampling::default() };
        ask.logit_bias = allowed.iter().map(|id| (*id, 100.0)).collect();
        let (pieces, _, tokens) = run(&model, ask);
        let bytes: Vec<u8> = tokens.iter().map(byte_of).collect();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(pieces.concat(), text);
        characters += text.chars().filter(|c| ['é', '€', '🦀'].contains(c)).count();
    }
    assert!(characters > 40, "{characters} characters of several bytes");
}
