//! What is billed is what was made, however sequences end; and no more is made than a budget allows.

use crate::support::wait;
use crate::toy::{Bench, ask, finish, small};
use hob_gpu::{Bill, Budget, Event, Finish, Grant, Refusal, Terms};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn billed(bill: &Arc<Bill>) -> Terms {
    Terms { bill: Some(bill.clone()), ..Terms::default() }
}

#[test]
fn a_storm_of_aborts_is_billed_to_the_token() {
    let bench = Bench::new(small());
    let model = bench.model();
    let (bill, started) = (Arc::new(Bill::default()), Instant::now());
    let mut running = Vec::new();
    for n in 0..1000_u32 {
        let ask = ask(n % 7, 1 + n * 5 % 90, 1 + n * 11 % 200);
        match model.generate_on(ask, billed(&bill)) {
            Ok(tokens) => running.push(tokens),
            Err(refusal) => assert!(matches!(refusal, Refusal::Busy { .. }), "{refusal}"),
        }
        // Some are read, some are cut while they wait, in their prompt, or while they generate.
        let at = n as usize * 17 % (running.len().max(1));
        match n % 5 {
            0 => drop(running.drain(at..).next()),
            1 => running.truncate(at),
            2 => drop(running.pop().map(|mut tokens| wait(tokens.next()))),
            _ => {}
        }
    }
    drop(running);
    bench.idle();
    // The engine lets go of the bill when all is on it.
    bench.until(|_| Arc::strong_count(&bill) == 1);
    let (stats, billed) = (bench.engine.stats(), bill.read());
    assert!(billed.sequences > 300 && billed.generated_tokens > 300, "{billed:?}");
    assert_eq!(billed.generated_tokens, stats.generated_tokens);
    assert!(billed.cached_tokens <= stats.cached_tokens && billed.cached_tokens > 0);
    assert!(billed.prompt_tokens <= stats.prefilled_tokens + billed.cached_tokens);
    assert!(billed.device > Duration::ZERO && billed.device <= started.elapsed(), "{billed:?}");
    let most = stats.total_pages as u64 * 2048;
    assert!(billed.kv_byte_seconds as f64 <= most as f64 * 4.0 * started.elapsed().as_secs_f64() + 1.0);
}

#[test]
fn times_and_kv_are_those_of_the_sequence() {
    let bench = Bench::new(small());
    let (bill, started) = (Arc::new(Bill::default()), Instant::now());
    let mut tokens = bench.model().generate_on(ask(1, 400, 500), billed(&bill)).unwrap();
    while !matches!(wait(tokens.next()), Event::Finished(_)) {}
    let (usage, timing, took) = (tokens.usage(), tokens.timing(), started.elapsed());
    bench.until(|_| Arc::strong_count(&bill) == 1);
    let billed = bill.read();
    assert_eq!((billed.prompt_tokens, billed.generated_tokens), (400, 500));
    assert_eq!(
        (billed.prompt_tokens, billed.generated_tokens),
        (usage.prompt_tokens.into(), usage.generated_tokens.into())
    );
    assert_eq!((billed.queue, billed.prefill, billed.decode), (timing.queue, timing.prefill, timing.decode));
    assert!(billed.device <= billed.prefill + billed.decode && billed.device > took / 20, "{billed:?} in {took:?}");
    // 100 pages for the prompt at least, 225 at the end.
    let (least, most) = (100.0 * 2048.0, 250.0 * 2048.0);
    let held = (billed.prefill + billed.decode).as_secs_f64();
    let kv = billed.kv_byte_seconds as f64;
    assert!((least * held - 1.0..=most * took.as_secs_f64()).contains(&kv), "{kv} in {held}");
}

/// So many tokens, and bytes of KV, for all that share it.
#[derive(Clone)]
struct Purse {
    left: Arc<AtomicI64>,
    most_bytes: u64,
}

impl Budget for Purse {
    fn open(&mut self, prompt_tokens: u32, kv_bytes: u64) -> Result<(), Refusal> {
        assert!(kv_bytes >= u64::from(prompt_tokens).div_ceil(4) * 2048);
        if kv_bytes > self.most_bytes { Err(Refusal::Invalid("too much".into())) } else { Ok(()) }
    }

    fn begin(&mut self) {}

    fn take(&mut self) -> Grant {
        match self.left.fetch_sub(1, SeqCst) {
            1 => Grant::LastToken,
            left if left > 1 => Grant::Token,
            _ => Grant::Nothing,
        }
    }

    fn hold(&mut self, kv_bytes: u64) -> bool {
        kv_bytes <= self.most_bytes
    }
}

fn within(purse: &Purse, bill: &Arc<Bill>) -> Terms {
    Terms { bill: Some(bill.clone()), budget: Some(Box::new(purse.clone())), ..Terms::default() }
}

#[test]
fn a_shared_budget_is_kept_to_the_token() {
    let bench = Bench::new(small());
    let model = bench.model();
    let purse = Purse { left: Arc::new(100.into()), most_bytes: u64::MAX };
    let bill = Arc::default();
    let running: Vec<_> =
        (0..8).map(|n| model.generate_on(ask(n, 5, 10 + 3 * n), within(&purse, &bill)).unwrap()).collect();
    let ends: Vec<_> = running.into_iter().map(|tokens| finish(tokens).1).collect();
    bench.until(|_| Arc::strong_count(&bill) == 1);
    assert_eq!(bill.read().generated_tokens, 100);
    assert!(ends.contains(&Finish::Length) && ends.contains(&Finish::Budget), "{ends:?}");
    let (text, end) = finish(model.generate_on(ask(1, 5, 3), within(&purse, &bill)).unwrap());
    assert_eq!((text.as_str(), end), ("", Finish::Budget), "nothing is left");
}

#[test]
fn kv_beyond_the_budget_ends_a_sequence_and_refuses_one() {
    let bench = Bench::new(small());
    let model = bench.model();
    // A sequence reserves pages for its prompt and 256 tokens: 65 pages and more.
    let purse = Purse { left: Arc::new(10_000.into()), most_bytes: 70 * 2048 };
    let bill = Arc::default();
    for (prompt, tokens) in [(281, 1), (30, 500)] {
        let refusal = model.generate_on(ask(0, prompt, tokens), within(&purse, &bill)).err();
        assert_eq!(refusal, Some(Refusal::Invalid("too much".into())));
    }
    let (text, end) = finish(model.generate_on(ask(2, 8, 500), within(&purse, &bill)).unwrap());
    assert_eq!(end, Finish::Budget);
    assert!((200..=280).contains(&text.len()), "{} tokens in 70 pages", text.len());
    let fits = finish(model.generate_on(ask(2, 8, 100), within(&purse, &bill)).unwrap());
    assert_eq!((fits.0.len(), fits.1), (100, Finish::Length));
    bench.until(|_| Arc::strong_count(&purse.left) == 1);
}
