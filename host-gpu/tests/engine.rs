//! The engine's promises on a toy model: queueing, cancelling, leases, loading. No real weights, any machine.

use hob_gpu::{
    Ask, EngineConfig, Event, EvictError, Finish, JoinError, ModelSource, Prompt, Refusal, Sampling, TokenId,
};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use support::wait;
use toy::{Bench, Toy, VOCAB, ask, finish, small};

#[path = "engine/batching.rs"]
mod batching;
#[path = "engine/fairness.rs"]
mod fairness;
mod support;
#[path = "engine/terms.rs"]
mod terms;
#[path = "engine/toy.rs"]
mod toy;

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
    // Not at once: the reason is told again meanwhile.
    let again = || loop {
        match wait(bench.engine.join(&late)) {
            Err(JoinError::Failed { retry_after, .. }) => std::thread::sleep(retry_after),
            joined => break joined,
        }
    };
    assert!(matches!(wait(bench.engine.join(&late)), Err(JoinError::Failed { attempts: 1, .. })));
    let error = again().err().expect("the file is truncated");
    assert!(error.to_string().contains("truncated"), "{error}");
    Toy::write(&path);
    assert!(again().is_ok());
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

#[test]
fn what_is_kept_of_prompts_goes_with_the_model() {
    let bench = Bench::new(small());
    let model = bench.model();
    let first = finish(model.generate(ask(2, 40, 3)).unwrap());
    bench.until(|engine| engine.stats().cached_pages > 0);
    drop(model);
    bench.until(|engine| engine.evict("toy") == Ok(true));
    bench.until(|engine| engine.stats().cached_pages == 0);
    let stats = bench.engine.stats();
    assert_eq!(stats.free_pages, stats.total_pages);
    let again = finish(bench.model().generate(ask(2, 40, 3)).unwrap());
    assert_eq!(again, first, "and the pages serve those who come next");
}
