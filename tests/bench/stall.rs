//! What eight chats notice of a long prompt that arrives beside them.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

use anyhow::Result;
use hob_gpu::{Ask, Event, Model, Prompt, TokenId, Tokens};

use crate::report::{Measure, Report, quantile};

const CHATS: u32 = 8;
const LONG_PROMPT: u32 = 4000;
/// Tokens of each chat before the prompt comes.
const BEFORE: usize = 200;

pub async fn run(report: &mut Report, name: impl Fn(&str) -> String, model: &Model) -> Result<()> {
    let mut chats = Vec::new();
    for n in 0..CHATS {
        // They never end of themselves.
        let logit_bias = model.end_tokens().iter().map(|id| (*id, -100.0)).collect();
        chats.push(model.generate(Ask { logit_bias, account: n.into(), ..Ask::new(prompt(n, 30)) })?);
    }
    let enough = BEFORE * chats.len();
    let mut before = gaps(&mut chats, |_, gaps| gaps >= enough).await;
    let long = Ask { max_tokens: Some(1), account: CHATS.into(), ..Ask::new(prompt(CHATS, LONG_PROMPT)) };
    let (mut long, started) = (model.generate(long)?, Instant::now());
    let ended = |long: &mut Tokens, cx: &mut Context<'_>| loop {
        match long.poll_next(cx) {
            Poll::Ready(Event::Text(_)) => {}
            Poll::Ready(Event::Finished(_) | Event::Busy { .. } | Event::Fault(_)) => break true,
            Poll::Pending => break false,
        }
    };
    let mut during = gaps(&mut chats, |cx, _| ended(&mut long, cx)).await;
    let rate = f64::from(LONG_PROMPT) / started.elapsed().as_secs_f64();
    let (before, during) = (quantile(&mut before, 0.99), quantile(&mut during, 0.99));
    let peer = Some(("the same chats before it".to_owned(), before));
    let p99 = name("token p99, 8 chats beside 4,000 tokens");
    report.add(Measure::new(p99, during, "ms").peer(peer).ratio_at_most(2.0));
    report.add(Measure::new(name("prefill beside 8 chats"), rate, "tokens/s"));
    Ok(())
}

fn prompt(n: u32, tokens: u32) -> Prompt {
    Prompt::Tokens((0..tokens).map(|i| TokenId(1000 + (i * 37 + n * 101) % 20_000)).collect())
}

/// Milliseconds from one text to the next of each chat, until `over`, which knows how many there are.
async fn gaps(chats: &mut [Tokens], mut over: impl FnMut(&mut Context<'_>, usize) -> bool) -> Vec<f64> {
    let mut last: Vec<Option<Instant>> = vec![None; chats.len()];
    let mut gaps = Vec::new();
    poll_fn(|cx| {
        for (chat, last) in chats.iter_mut().zip(&mut last) {
            while let Poll::Ready(Event::Text(_)) = chat.poll_next(cx) {
                let now = Instant::now();
                gaps.extend(last.replace(now).map(|last| (now - last).as_secs_f64() * 1e3));
            }
        }
        if over(cx, gaps.len()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    gaps
}
