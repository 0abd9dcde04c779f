//! However a sequence is scheduled, what it says is the same, to the last bit of its log-probabilities.

use crate::support::read::{Answer, read};
use crate::toy::{Bench, VOCAB, ask, finish, small};
use hob_gpu::{Ask, EngineConfig, Model, Prompt, TokenId, Tokens, Usage};
use std::time::Duration;

fn alone(model: &Model, asks: &[Ask]) -> Vec<Answer> {
    asks.iter().map(|ask| read(model.generate(ask.clone()).unwrap()).0).collect()
}

fn together(model: &Model, asks: &[Ask]) -> Vec<(Answer, Usage)> {
    let running: Vec<Tokens> = asks.iter().map(|ask| model.generate(ask.clone()).unwrap()).collect();
    running.into_iter().map(read).collect()
}

fn with_logprobs(ask: Ask) -> Ask {
    Ask { logprobs: Some(3), ..ask }
}

/// A config in which 32 sequences run at once.
fn wide(prefill_tokens: usize) -> EngineConfig {
    EngineConfig { kv_bytes: 8 << 20, max_running: 32, prefill_tokens, ..small() }
}

/// Different accounts, so that each computes all of its prompt.
fn strangers() -> Vec<Ask> {
    (0..32).map(|n| with_logprobs(ask(n, 1 + n * 41 % 200, 20 + n * 7 % 30))).collect()
}

#[test]
fn alone_in_a_batch_of_32_and_at_any_chunk_size() {
    let asks = strangers();
    let alone = alone(&Bench::new(wide(64)).model(), &asks);
    for prefill_tokens in [1, 7, 64, 512] {
        let bench = Bench::new(wide(prefill_tokens));
        let together = together(&bench.model(), &asks);
        for (n, ((answer, usage), alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(answer, alone, "sequence {n} in chunks of {prefill_tokens}");
            assert_eq!(usage.cached_tokens, 0);
        }
        bench.idle();
    }
}

#[test]
fn through_a_part_of_the_layers_at_a_time() {
    let asks = strangers();
    let alone = alone(&Bench::new(wide(64)).model(), &asks);
    let of = |more: u64| asks.iter().map(|ask| Ask { account: ask.account + more, ..ask.clone() }).collect::<Vec<_>>();
    for max_stall in [Duration::ZERO, Duration::from_micros(200)] {
        let bench = Bench::new(EngineConfig { max_stall, ..wide(512) });
        let model = bench.model();
        for (n, ((answer, _), alone)) in together(&model, &asks).iter().zip(&alone).enumerate() {
            assert_eq!(answer, alone, "sequence {n} with {max_stall:?} for prompts");
        }
        if max_stall > Duration::ZERO {
            continue; // how many are stretched is a matter of time
        }
        // A step takes a token at most, or two of them through one of two layers, while another gets tokens.
        let before = bench.engine.stats().stretched_steps;
        assert!(before > 100, "{:?}", bench.engine.stats());
        // Some leave in between, and others of the same account begin as they did.
        let left: Vec<Tokens> = of(100).into_iter().map(|ask| model.generate(ask).unwrap()).collect();
        bench.until(|engine| engine.stats().stretched_steps > before + 20);
        drop(left);
        for (n, ((answer, _), alone)) in together(&model, &of(100)).iter().zip(&alone).enumerate() {
            assert_eq!(answer, alone, "sequence {n} once more");
        }
        bench.idle();
        let stats = bench.engine.stats();
        assert!(stats.stretched_steps < stats.steps, "{stats:?}");
    }
}

#[test]
fn a_known_prefix_is_not_computed_again_and_makes_no_difference() {
    let bench = Bench::new(wide(64));
    let model = bench.model();
    let of = |account: u64, n: u32, len: u32| with_logprobs(Ask { account, ..ask(n, len, 30) });
    let (fresh, first) = read(model.generate(of(1, 5, 150)).unwrap());
    assert_eq!((first.prompt_tokens, first.cached_tokens), (150, 0));
    let before = bench.engine.stats().prefilled_tokens;
    let (again, second) = read(model.generate(of(1, 5, 150)).unwrap());
    assert_eq!(again, fresh);
    assert_eq!(second.prompt_tokens, 150);
    assert!(second.cached_tokens >= 100 && second.cached_tokens < 150, "all full pages but that of the last token");
    let stats = bench.engine.stats();
    assert_eq!(stats.prefilled_tokens - before, u64::from(150 - second.cached_tokens));
    assert_eq!(stats.cached_tokens, u64::from(second.cached_tokens));
    // Nobody else learns that it was there.
    let (stranger, third) = read(model.generate(of(2, 5, 150)).unwrap());
    assert_eq!((stranger, third.cached_tokens), (fresh, 0));
    bench.idle();
    assert!(bench.engine.stats().cached_pages > 0);
}

#[test]
fn a_conversation_that_goes_on_finds_its_answers_too() {
    let bench = Bench::new(wide(64));
    let model = bench.model();
    let base = with_logprobs(ask(4, 90, 60));
    let Prompt::Tokens(mut conversation) = base.prompt.clone() else { panic!("the toy is asked in tokens") };
    let (answer, _) = read(model.generate(base.clone()).unwrap());
    conversation.extend(answer.logprobs.iter().map(|logprob| logprob.id));
    conversation.extend([TokenId(3), TokenId(4)]);
    let next = Ask { prompt: Prompt::Tokens(conversation), ..base };
    let (warm, usage) = read(model.generate(next.clone()).unwrap());
    assert!(usage.cached_tokens > 100, "more than the first prompt: {usage:?}");
    let (cold, usage) = read(model.generate(Ask { account: 77, ..next }).unwrap());
    assert_eq!((warm, usage.cached_tokens), (cold, 0));
}

#[test]
fn sequences_that_fork_share_pages_while_all_run() {
    let bench = Bench::new(wide(512));
    let model = bench.model();
    let fork = |account: u64, n: u32| {
        let Prompt::Tokens(mut tokens) = ask(0, 600, 0).prompt else { panic!("the toy is asked in tokens") };
        tokens.push(TokenId(n % VOCAB as u32));
        with_logprobs(Ask { prompt: Prompt::Tokens(tokens), account, ..ask(n, 1, 200) })
    };
    let alone = alone(&model, &(0..32).map(|n| fork(100 + u64::from(n), n)).collect::<Vec<_>>());
    bench.idle();
    let first = model.generate(fork(1, 0)).unwrap();
    bench.until(|engine| engine.stats().running == 1 && first.usage().generated_tokens > 0);
    let used = |bench: &Bench| bench.engine.stats().total_pages - bench.engine.stats().free_pages;
    let pages_of_one = used(&bench);
    let rest: Vec<Tokens> = (1..32).map(|n| model.generate(fork(1, n)).unwrap()).collect();
    bench.until(|engine| engine.stats().running == 32);
    assert!(used(&bench) < pages_of_one * 32 / 2, "most of their pages are the same ones");
    for (n, (tokens, alone)) in [vec![first], rest].into_iter().flatten().zip(alone).enumerate() {
        let (answer, usage) = read(tokens);
        assert_eq!(answer, alone);
        assert_eq!(usage.cached_tokens >= 500, n > 0, "{usage:?}");
    }
    bench.idle();
}

#[test]
fn preemption_loses_no_sequence_and_no_bit() {
    // Each is admitted with a part of what it comes to, and all together come to twice the pages or more. Those that come back
    // go through the layers one by one.
    let bench = Bench::new(EngineConfig { max_running: 8, prefill_tokens: 64, max_stall: Duration::ZERO, ..small() });
    let model = bench.model();
    let long = |n: u32| Ask { stop: vec!["!!!!!!".into()], ..with_logprobs(ask(n, 10 + n, 700)) };
    let asks: Vec<Ask> = (0..12).map(long).collect();
    let alone = alone(&model, &asks);
    assert_eq!(bench.engine.stats().preemptions, 0);
    for same_account in [false, true] {
        let before = bench.engine.stats();
        let account = |ask: &Ask| if same_account { 99 } else { ask.account };
        let asks: Vec<Ask> = asks.iter().map(|ask| Ask { account: account(ask), ..ask.clone() }).collect();
        for (n, ((answer, usage), alone)) in together(&model, &asks).iter().zip(&alone).enumerate() {
            assert_eq!(answer, alone, "sequence {n}");
            assert_eq!(usage.prompt_tokens, 10 + n as u32, "what is computed again is not counted again");
            assert_eq!(usage.generated_tokens as usize, alone.logprobs.len());
        }
        bench.idle();
        let after = bench.engine.stats();
        assert!(after.preemptions > before.preemptions + 2, "{after:?}");
        assert!(after.stretched_steps > before.stretched_steps, "{after:?}");
        // Of several accounts others come first, and take them.
        let found = after.cached_tokens > before.cached_tokens;
        assert!(found || !same_account, "some came back to pages of theirs: {after:?}");
    }
}

#[test]
fn a_preempted_sequence_can_be_let_go_while_it_waits() {
    let bench = Bench::new(EngineConfig { max_running: 8, prefill_tokens: 64, ..small() });
    let model = bench.model();
    let mut running: Vec<Tokens> = (0..8).map(|n| model.generate(ask(n, 10, 900)).unwrap()).collect();
    bench.until(|engine| engine.stats().preemptions > 0);
    let first = running.remove(0);
    drop(running);
    assert_eq!(finish(first).0.len(), 900);
    bench.idle();
    assert_eq!(bench.engine.stats().waiting, 0);
}

#[test]
fn a_prompt_takes_a_small_part_of_each_step_while_another_gets_tokens() {
    let config = EngineConfig { prefill_tokens: 512, max_stall: Duration::ZERO, ..small() };
    let bench = Bench::new(config);
    let model = bench.model();
    let steps = |bench: &Bench| bench.engine.stats().steps;
    finish(model.generate(ask(1, 400, 1)).unwrap());
    bench.until(|engine| engine.stats().steps > 0);
    assert_eq!(steps(&bench), 1, "nobody waits: one step");
    // Where this thread is kept from its core, all 400 tokens of the chat may be there before the prompt: once more then.
    let meanwhile = (0..100).find_map(|n| {
        let chat = model.generate(ask(2 + 2 * n, 4, 400)).unwrap();
        bench.until(|_| chat.usage().generated_tokens > 0);
        let start = chat.usage().generated_tokens;
        finish(model.generate(ask(3 + 2 * n, 200, 1)).unwrap());
        let meanwhile = chat.usage().generated_tokens - start;
        let whole = chat.usage().generated_tokens < 400;
        assert_eq!(finish(chat).0.len(), 400);
        whole.then_some(meanwhile)
    });
    assert!(meanwhile >= Some(190), "{meanwhile:?} tokens beside a prompt of 200, of which a step takes one");
}
