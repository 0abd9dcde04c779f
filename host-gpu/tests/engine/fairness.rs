//! That nobody's load keeps others from their part, and that nobody waits in vain.

use crate::support::read::read;
use crate::support::wait;
use crate::toy::{Bench, ask, finish, small};
use hob_gpu::{Ask, Bill, EngineConfig, Event, Model, Priority, Refusal, Terms, Tokens};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn of(account: u64, ask: Ask) -> Ask {
    Ask { account, ..ask }
}

/// Reads so many tokens at least, each a character.
fn pass(tokens: &mut Tokens, count: usize) {
    let mut seen = 0;
    while seen < count {
        match wait(tokens.next()) {
            Event::Text(text) => seen += text.len(),
            end => panic!("{end:?} after {seen}"),
        }
    }
}

/// Fills the batch and the queue of an engine with one account's sequences.
fn fill(model: &Model, account: u64) -> Vec<Tokens> {
    let mut all = Vec::new();
    while let Ok(tokens) = model.generate(of(account, ask(all.len() as u32 % 50, 10, 900))) {
        all.push(tokens);
    }
    all
}

#[test]
fn one_who_comes_late_runs_beside_one_who_has_filled_everything() {
    // There are pages for three.
    let bench = Bench::new(EngineConfig { max_running: 3, max_waiting: 20, ..small() });
    let model = bench.model();
    let alone = read(model.generate(ask(60, 20, 300)).unwrap()).0;
    let heavy = fill(&model, 1);
    assert!(heavy.len() >= 20, "{}", heavy.len());
    bench.until(|engine| engine.stats().running == 3);
    let light = model.generate(of(2, ask(60, 20, 300))).expect("its part of the queue is not another's");
    let ((answer, _), stats) = (read(light), bench.engine.stats());
    assert_eq!(answer, alone, "not a bit of it changes");
    assert!(stats.preemptions > 0, "{stats:?}");
    assert!(stats.waiting >= 16, "it did not wait for the queue before it: {stats:?}");
    drop(heavy);
    bench.idle();
}

#[test]
fn one_has_a_token_in_each_step_beside_many_of_another() {
    // With an account of its own each of eight has its token in each step.
    let bench = Bench::new(EngineConfig { max_running: 32, max_waiting: 100, ..small() });
    let model = bench.model();
    let others: Vec<Tokens> = (0..24).map(|n| model.generate(of(9, ask(n % 50, 4, 700))).unwrap()).collect();
    let mut light = model.generate(of(1, ask(60, 4, 800))).unwrap();
    let mut at = |tokens: usize| {
        pass(&mut light, tokens);
        loop {
            // Both at the same time, or nearly.
            let (stats, usage) = (bench.engine.stats(), light.usage());
            if bench.engine.stats().steps - stats.steps <= 2 {
                break (stats, usage.generated_tokens);
            }
        }
    };
    let (before, after) = (at(1), at(400));
    let tokens = u64::from(after.1 - before.1);
    let (steps, all) = (after.0.steps - before.0.steps, after.0.generated_tokens - before.0.generated_tokens);
    assert!(tokens.abs_diff(steps) <= steps / 10, "a token of it in each step: {tokens} in {steps}");
    assert!(all >= tokens + tokens / 2, "and others get on: {all} tokens in {steps} steps");
    drop((light, others));
    bench.idle();
}

#[test]
fn who_waits_for_too_long_is_told_that_it_is_busy() {
    let bench = Bench::new(EngineConfig { max_running: 1, ..small() });
    let model = bench.model();
    let bill = Arc::new(Bill::default());
    let within = |ms: u64| Terms {
        bill: Some(bill.clone()),
        start_by: Some(Instant::now() + Duration::from_millis(ms)),
        ..Terms::default()
    };
    // Nobody knows yet how long a sequence takes: it may wait.
    let first = model.generate(ask(1, 10, 900)).unwrap();
    bench.until(|engine| engine.stats().running == 1);
    let (mut late, asked) = (model.generate_on(ask(1, 10, 5), within(5)).unwrap(), Instant::now());
    let told = wait(late.next());
    assert!(matches!(told, Event::Busy { retry_after } if retry_after > Duration::ZERO), "{told:?}");
    assert_eq!(wait(late.next()), told);
    assert!(asked.elapsed() >= Duration::from_millis(4));
    assert!(matches!(wait(model.generate_on(ask(1, 10, 5), within(5)).unwrap().text()), Err(Refusal::Busy { .. })));
    bench.until(|engine| engine.stats().waiting == 0 && Arc::strong_count(&bill) == 1);
    assert_eq!(bill.read().generated_tokens, 0);
    finish(first);
    // One that has begun goes on beyond it.
    let (text, _) = finish(model.generate_on(ask(1, 10, 900), within(5)).unwrap());
    assert_eq!(text.len(), 900);
    // Now it is known: who cannot be in time is refused at once.
    let _first = model.generate(ask(1, 10, 900)).unwrap();
    bench.until(|engine| engine.stats().running == 1);
    let _second = model.generate(ask(1, 10, 900)).unwrap();
    let refusal = model.generate_on(ask(1, 10, 5), within(1)).err();
    assert!(matches!(refusal, Some(Refusal::Busy { .. })), "{refusal:?}");
    assert_eq!(bill.read().sequences, 3, "it was not queued");
    assert!(model.generate_on(ask(1, 10, 5), within(60_000)).is_ok());
}

#[test]
fn a_higher_class_takes_the_place_of_a_lower_one_which_then_goes_on() {
    let bench = Bench::new(EngineConfig { max_running: 1, ..small() });
    let model = bench.model();
    let alone = read(model.generate(ask(1, 30, 500)).unwrap()).0;
    let class = |priority| Terms { priority, ..Terms::default() };
    let mut low = model.generate_on(ask(1, 30, 500), class(Priority::Low)).unwrap();
    let mut seen = String::new();
    while seen.len() < 50 {
        if let Event::Text(text) = wait(low.next()) {
            seen += &text;
        }
    }
    let high = finish(model.generate_on(of(1, ask(2, 30, 100)), class(Priority::High)).unwrap());
    assert_eq!((high.0.len(), bench.engine.stats().preemptions), (100, 1));
    let (rest, usage) = read(low);
    assert_eq!(seen + &rest.text, alone.text);
    assert_eq!(usage.generated_tokens, 500);
}
