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

/// One round says little where a machine is shared: a p99 is a few tokens.
const ROUNDS: u32 = 3;

pub async fn run(report: &mut Report, name: impl Fn(&str) -> String, model: &Model) -> Result<()> {
    let mut rounds = Vec::new();
    for n in 0..ROUNDS {
        rounds.push(round(model, n * (CHATS + 1)).await?);
    }
    rounds.sort_by(|a, b| (a.during / a.before).total_cmp(&(b.during / b.before)));
    let Round { before, during, rate } = rounds.swap_remove(rounds.len() / 2);
    let peer = Some(("the same chats before it".to_owned(), before));
    let p99 = name("token p99, 8 chats beside 4,000 tokens");
    report.add(Measure::new(p99, during, "ms").peer(peer).ratio_at_most(2.0));
    report.add(Measure::new(name("prefill beside 8 chats"), rate, "tokens/s"));
    Ok(())
}

/// The p99 of what is between two texts, in ms, before the prompt comes and until it is processed; and its tokens a second.
struct Round {
    before: f64,
    during: f64,
    rate: f64,
}

/// Texts and accounts from number `first` on: nobody was there before.
async fn round(model: &Model, first: u32) -> Result<Round> {
    let mut chats = Vec::new();
    for n in first..first + CHATS {
        // They never end of themselves.
        let logit_bias = model.end_tokens().iter().map(|id| (*id, -100.0)).collect();
        chats.push(model.generate(Ask { logit_bias, account: n.into(), ..Ask::new(prompt(n, 30)) })?);
    }
    let enough = BEFORE * chats.len();
    let mut before = gaps(&mut chats, |_, gaps| gaps >= enough).await;
    let last = first + CHATS;
    let long = Ask { max_tokens: Some(1), account: last.into(), ..Ask::new(prompt(last, LONG_PROMPT)) };
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
    Ok(Round { before: quantile(&mut before, 0.99), during: quantile(&mut during, 0.99), rate })
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
