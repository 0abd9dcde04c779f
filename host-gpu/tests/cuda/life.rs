//! Models and sequences that come and go on the card.

use super::model::{ask, config, load, on_card};
use super::support::driver::driver;
use super::support::{golden_path, read, wait};
use super::{Noise, shim};
use hob_gpu::ops::cuda::cards;
use hob_gpu::{
    Ask, Bill, Budget, Engine, EngineConfig, EngineDevice, Engines, Finish, Grant, JoinError, Model, ModelSource,
    Refusal, Terms, TokenId, Tokens,
};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::SeqCst;

/// A real card does in a second what takes its stand-in minutes.
fn times(real: usize, stand_in: usize, again: usize) -> usize {
    match (std::env::var_os("HOB_TEST_GPU").is_some(), shim::again()) {
        (true, _) => real,
        (_, true) => again,
        _ => stand_in,
    }
}

/// Two cards, with so much room for models each; `None` where there are none.
fn two_cards(bytes: u64) -> Option<Engines> {
    let devices = [0, 1].map(|ordinal| EngineDevice::Cuda { ordinal });
    if !driver() || cards().unwrap().len() < 2 {
        return None;
    }
    let config = EngineConfig { model_bytes: Some(bytes), ..few_pages() };
    Some(Engines::start(&config, &devices).expect("the engines start"))
}

/// The second card's come on top of its part of the model.
fn few_pages() -> EngineConfig {
    EngineConfig { kv_bytes: 1 << 16, ..config() }
}

#[test]
fn a_model_that_no_card_has_room_for_is_split_over_two() {
    // It launches no kernel that others do not.
    if shim::again() {
        return;
    }
    // Tied to its embedding, with windows; and with a head and biases of its own.
    for name in ["gemma3", "qwen2"] {
        let Some(one) = on_card(few_pages()) else { return };
        let whole = load(&one, name);
        let bytes = one.models()[0].bytes;
        // Buffers of a step are on both, and the pages of the second.
        let Some(engines) = two_cards(bytes - 1) else { return };
        let path = golden_path(&format!("arch/{name}.gguf"));
        let source = ModelSource { name: name.into(), digest: name.into(), path };
        let split = wait(engines.join(&source)).unwrap();
        let there: Vec<_> = engines.models().into_iter().map(|model| (model.name, model.device)).collect();
        let card = |ordinal| EngineDevice::Cuda { ordinal };
        assert_eq!(there, [(name.to_owned(), card(0)), (format!("{name} (part)"), card(1))]);
        assert!(split.score(&[TokenId(1)], 1).unwrap_err().to_string().contains("several cards"));
        // A prompt in chunks, draws of every kind, and steps that are graphs: bit for bit what one card gives.
        for n in 0..3 {
            let mut asked = ask(n, 21, 6);
            asked.sampling.temperature = [0.0, 1.0, 0.0][n];
            asked.sampling.seed = Some(7);
            asked.logprobs = [Some(2), None, None][n];
            let (want, _) = read::read(whole.generate(asked.clone()).unwrap());
            assert_eq!(read::read(split.generate(asked).unwrap()).0, want, "{name} {n}");
        }
        let together: Vec<_> = (0..3).map(|n| split.generate(ask(n, 3 + n, 5)).unwrap()).collect();
        for (n, tokens) in together.into_iter().enumerate() {
            let (want, _) = read::read(whole.generate(ask(n, 3 + n, 5)).unwrap());
            assert_eq!(read::read(tokens).0.text, want.text, "{name} {n}");
        }
        // Both cards have their memory back.
        let used = |engines: &Engines| engines.iter().map(|e| e.card_memory().unwrap().1).collect::<Vec<_>>();
        let with = used(&engines);
        drop(split);
        while engines.evict(name) != Ok(true) {
            std::thread::yield_now();
        }
        assert!(engines.models().is_empty());
        assert!(used(&engines).iter().zip(&with).all(|(now, then)| now < then), "{:?} of {with:?}", used(&engines));
        // Too large for both.
        let Some(small) = two_cards(bytes / 4) else { return };
        let refused = wait(small.join(&source)).err().unwrap();
        assert!(matches!(refused, JoinError::NoRoom { retry_after: None, .. }), "{refused}");
        assert!(small.models().is_empty());
    }
}

fn evict(card: &Engine, digest: &str) {
    while card.evict(digest) != Ok(true) {
        std::thread::yield_now();
    }
}

#[test]
fn a_model_that_goes_gives_its_memory_back() {
    // From the second time on it comes from a copy.
    for copy_bytes in [0, 1 << 20] {
        let Some(card) = on_card(EngineConfig { copy_bytes, ..config() }) else { return };
        let mut first = None;
        for turn in 0..times(1000, 8, 2) {
            assert_eq!(card.has_copy("llama"), copy_bytes > 0 && turn > 0);
            let model = load(&card, "llama");
            // Enough for graphs, which name weights that are about to go.
            let (answer, usage) = read::read(model.generate(ask(1, 5, 6)).unwrap());
            assert_eq!(usage.generated_tokens, 6);
            drop(model);
            evict(&card, "llama");
            let (_, used) = card.card_memory().unwrap();
            assert_eq!(first.get_or_insert_with(|| (answer.text.clone(), used)), &(answer.text, used));
        }
    }
}

#[test]
fn a_load_can_be_stopped() {
    let Some(card) = on_card(config()) else { return };
    let path = golden_path("arch/llama.gguf");
    let source = ModelSource { name: "llama".into(), digest: "llama".into(), path };
    let before = card.card_memory().unwrap().1;
    let mut stopped = 0;
    for _ in 0..times(50, 5, 1) {
        let mut join = std::pin::pin!(card.join(&source));
        let waker = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(join.as_mut().poll(&mut { waker }).is_pending());
        // Whether it is loading still or there already.
        let _ = card.evict("llama");
        match wait(join) {
            Err(JoinError::Stopped { .. }) => stopped += 1,
            joined => drop(joined.expect("it loads")),
        }
        while card.models().iter().any(|model| model.leases > 0) {
            std::thread::yield_now();
        }
        let _ = card.evict("llama");
        assert!(card.models().is_empty());
    }
    assert!(stopped > 0, "one that has just begun is not there");
    assert_eq!(card.card_memory().unwrap().1, before, "what was there of it is given back");
    let model = load(&card, "llama");
    assert_eq!(read::read(model.generate(ask(1, 5, 6)).unwrap()).1.generated_tokens, 6);
}

#[test]
fn texts_end_where_they_should_though_the_next_step_is_under_way() {
    let config = EngineConfig { max_running: 4, prefill_tokens: 4, ..config() };
    let Some(card) = on_card(config) else { return };
    let model = load(&card, "llama");
    let asks = |n: usize| Ask { logprobs: None, ..ask(n, 2 + n, 10) };
    let whole: Vec<String> = (0..3).map(|n| read::read(model.generate(asks(n)).unwrap()).0.text).collect();
    let before = card.stats().generated_tokens;
    let cut = |n: usize| {
        let chars: Vec<char> = whole[n].chars().collect();
        let stop: String = chars[chars.len() / 2..].iter().take(2).collect();
        (Ask { stop: vec![stop.clone()], ..asks(n) }, whole[n].split(&stop).next().unwrap().to_owned())
    };
    let together: Vec<(Tokens, String)> =
        (0..3).map(cut).map(|(ask, want)| (model.generate(ask).unwrap(), want)).collect();
    let mut generated = 0;
    for (tokens, want) in together {
        let (answer, usage) = read::read(tokens);
        assert_eq!((answer.text, answer.finish), (want, Finish::Stop));
        assert!(usage.generated_tokens < 10, "{usage:?}");
        generated += u64::from(usage.generated_tokens);
    }
    // What was computed beyond the end is nobody's.
    assert_eq!(card.stats().generated_tokens - before, generated);
    while card.stats().running > 0 {
        std::thread::yield_now();
    }
    assert_eq!(card.stats().free_pages, card.stats().total_pages);
}

/// What is asked: which text, how much of it, how much more, and where that ends.
type Asked = (usize, usize, u32, Option<String>);

fn with(asked: &Asked, account: u64) -> Ask {
    let (text, len, most, stop) = asked;
    Ask { account, stop: stop.iter().cloned().collect(), ..ask(*text, *len, *most) }
}

struct Walk {
    model: Model,
    noise: Noise,
    /// What is asked, and what is said to it when nothing else runs.
    known: Vec<(Asked, read::Answer)>,
    /// Which of these, and whether by the card's own choice.
    running: Vec<(usize, bool, Tokens)>,
}

impl Walk {
    fn random(&mut self, n: usize) -> usize {
        (self.noise.bits() >> 33) as usize % n
    }

    /// Asks for something, with an end within the text now and then.
    fn learn(&mut self, account: u64) {
        let mut asked = (self.random(2), 1 + self.random(24), 1 + self.random(16) as u32, None);
        let mut answer = read::read(self.model.generate(with(&asked, account)).unwrap()).0;
        let stop: String = answer.text.chars().skip(2).take(1).collect();
        if self.random(3) == 0 && !stop.is_empty() {
            asked.3 = Some(stop);
            answer = read::read(self.model.generate(with(&asked, account)).unwrap()).0;
        }
        self.known.push((asked, answer));
    }

    fn join(&mut self) {
        let (n, account) = (self.random(self.known.len()), 1000 + self.random(3) as u64);
        // Who wants to know how likely tokens are has the host choose, and steps wait for it.
        let silent = self.random(4) > 0;
        let ask = with(&self.known[n].0, account);
        let logprobs = ask.logprobs.filter(|_| !silent);
        let tokens = self.model.generate(Ask { logprobs, ..ask }).unwrap();
        self.running.push((n, silent, tokens));
    }

    fn leave(&mut self) {
        let at = self.random(self.running.len());
        let (n, silent, tokens) = self.running.swap_remove(at);
        if self.random(3) == 0 {
            return drop(tokens);
        }
        let (asked, want) = &self.known[n];
        let got = read::read(tokens).0;
        assert_eq!((&got.text, got.finish), (&want.text, want.finish), "{asked:?}");
        assert!(silent || got.logprobs == want.logprobs, "{asked:?}");
    }
}

#[test]
fn sequences_that_join_and_leave_at_random_get_what_they_get_alone() {
    if shim::again() {
        return;
    }
    // Few pages: sequences wait for those of others, and find what others of their account have left. Each token has the bits that
    // it has alone, whatever runs beside it.
    let config =
        EngineConfig { max_running: 3, kv_bytes: 6 << 11, kv_page_bytes: 1 << 11, prefill_tokens: 1, ..config() };
    let Some(card) = on_card(config) else { return };
    let model = load(&card, "llama");
    let mut walk = Walk { model, noise: Noise(3), known: Vec::new(), running: Vec::new() };
    (0..10).for_each(|account| walk.learn(account));
    for _ in 0..times(2000, 60, 0) {
        match walk.random(2) {
            0 if !walk.running.is_empty() => walk.leave(),
            _ if walk.running.len() < 6 => walk.join(),
            _ => walk.leave(),
        }
    }
    while !walk.running.is_empty() {
        walk.leave();
    }
    while card.stats().running > 0 || card.stats().waiting > 0 {
        std::thread::yield_now();
    }
    let stats = card.stats();
    println!("{stats:?}");
    assert_eq!(stats.free_pages, stats.total_pages, "no page is lost");
    assert!(stats.cached_tokens > 0 && stats.graph_steps > 0, "{stats:?}");
    assert!(stats.ahead_steps > stats.steps / 8 && stats.ahead_steps < stats.steps, "now and then: {stats:?}");
}

/// So many tokens for all that share it.
struct Purse(Arc<AtomicI64>);

impl Budget for Purse {
    fn open(&mut self, _: u32, _: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn begin(&mut self) {}

    fn take(&mut self) -> Grant {
        match self.0.fetch_sub(1, SeqCst) {
            1 => Grant::LastToken,
            left if left > 1 => Grant::Token,
            _ => Grant::Nothing,
        }
    }

    fn hold(&mut self, _: u64) -> bool {
        true
    }
}

#[test]
fn a_shared_budget_is_kept_to_the_token_though_steps_overlap() {
    if shim::again() {
        return;
    }
    let Some(card) = on_card(EngineConfig { max_running: 4, prefill_tokens: 4, ..config() }) else { return };
    let model = load(&card, "llama");
    let (left, bill) = (Arc::new(AtomicI64::new(40)), Arc::<Bill>::default());
    let terms = || Terms { bill: Some(bill.clone()), budget: Some(Box::new(Purse(left.clone()))), ..Terms::default() };
    let asks = |n: usize, most: u32| Ask { logprobs: None, ..ask(n, 3, most) };
    let running: Vec<_> = (0..4).map(|n| model.generate_on(asks(n, 4 + 10 * n as u32), terms()).unwrap()).collect();
    let ends: Vec<_> = running.into_iter().map(read::read).collect();
    let made: u32 = ends.iter().map(|(_, usage)| usage.generated_tokens).sum();
    assert_eq!(made, 40, "{ends:?}");
    assert!(ends.iter().any(|(answer, _)| answer.finish == Finish::Budget), "{ends:?}");
    assert_eq!((ends[0].1.generated_tokens, ends[0].0.finish), (4, Finish::Length));
    let (answer, _) = read::read(model.generate_on(asks(1, 3), terms()).unwrap());
    assert_eq!((answer.text.as_str(), answer.finish), ("", Finish::Budget), "nothing is left");
    while Arc::strong_count(&bill) > 1 {
        std::thread::yield_now();
    }
    assert_eq!(bill.read().generated_tokens, 40);
    let stats = card.stats();
    assert_eq!(stats.generated_tokens, 40);
    assert!(stats.ahead_steps > stats.steps / 2, "{stats:?}");
}
