//! A sequence that nobody reads any more is gone with the engine's next step, wherever it is; and what accounts may find of each other.

use hob_gpu::{Ask, EngineConfig, EngineStats, Prompt, TokenId, Tokens};
use support::wait;
use toy::{Bench, ask, small};

mod support;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "engine/toy.rs"]
mod toy;

/// Room for long sequences.
fn roomy(max_running: usize) -> Bench {
    Bench::new(EngineConfig { max_running, kv_bytes: 16 << 20, ..small() })
}

/// Of one account, so that none makes way for another.
fn long(n: u32, prompt: u32, max_tokens: u32) -> Ask {
    Ask { account: 1, ..ask(n, prompt, max_tokens) }
}

/// Drops `tokens`, and waits until only `left` run and nobody waits: after the step that ran meanwhile.
fn cancel(bench: &Bench, tokens: Vec<Tokens>, left: usize, what: &str) -> EngineStats {
    drop(tokens);
    let before = bench.engine.stats();
    bench.until(|engine| engine.stats().running == left && engine.stats().waiting == 0);
    let after = bench.engine.stats();
    if left == 0 {
        assert!(after.steps <= before.steps + 1, "{what}: {} steps", after.steps - before.steps);
    }
    after
}

#[test]
fn in_the_queue_in_the_prompt_and_in_the_answer() {
    let bench = roomy(2);
    let model = bench.model();
    for round in 0..20 {
        // Two run; behind them others wait.
        let mut running: Vec<Tokens> = (0..2).map(|n| model.generate(long(n, 4, 8000)).unwrap()).collect();
        bench.until(|engine| engine.stats().running == 2);
        let waiting: Vec<Tokens> = (2..12).map(|n| model.generate(long(n, 50, 8000)).unwrap()).collect();
        assert_eq!(bench.engine.stats().waiting, 10);
        let stats = cancel(&bench, waiting, 2, "in the queue");
        assert!(stats.free_pages < stats.total_pages, "those that run keep their pages");
        // One of them has given tokens.
        wait(running[0].next());
        let one = vec![running.remove(0)];
        cancel(&bench, one, 1, "in the answer");
        let rest = cancel(&bench, running, 0, "the last one");
        assert_eq!(rest.free_pages, rest.total_pages, "round {round}");
        // A prompt of a thousand steps, seen near its beginning.
        let before = bench.engine.stats();
        let prompt = model.generate(long(20 + round, 8000, 1)).unwrap();
        bench.until(|engine| engine.stats().prefilled_tokens >= before.prefilled_tokens + 100);
        let gone = cancel(&bench, vec![prompt], 0, "in the prompt");
        assert_eq!((gone.free_pages, gone.generated_tokens), (gone.total_pages, before.generated_tokens));
        assert!(gone.prefilled_tokens < before.prefilled_tokens + 8000, "it was not read to its end");
    }
}

/// A prompt of an account, and a token of answer.
fn of(account: u64, n: u32) -> Ask {
    let tokens = (0..200).map(|i| TokenId((i * 7 + n * 13) % 60)).collect();
    Ask { account, max_tokens: Some(1), ..Ask::new(Prompt::Tokens(tokens)) }
}

#[test]
fn only_who_shares_finds_what_others_sent() {
    let bench = Bench::new(EngineConfig { prefill_tokens: 64, ..small() });
    let (own, shared) = (bench.model(), bench.model().sharing_prefixes(true));
    let cached = |mut tokens: Tokens| loop {
        if !matches!(wait(tokens.next()), hob_gpu::Event::Text(_)) {
            break tokens.usage().cached_tokens;
        }
    };
    for n in 0..5 {
        assert_eq!(cached(own.generate(of(1, n)).unwrap()), 0, "nobody has sent it");
        assert_eq!(cached(shared.generate(of(1, n)).unwrap()), 0, "what is not shared is not found by who shares");
        assert!(cached(shared.generate(of(2, n)).unwrap()) >= 190, "another who shares finds it");
        assert_eq!(cached(own.generate(of(2, n)).unwrap()), 0, "and who does not share does not");
        assert!(cached(own.generate(of(1, n)).unwrap()) >= 190, "but finds its own");
        bench.idle();
    }
}
