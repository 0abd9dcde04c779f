//! The answers of one call as they come: one choice or several, in whichever order their tokens are made.

use std::future::poll_fn;
use std::task::{Context, Poll};

use hob_gpu::{Event, Finish, Model, TokenId};

use super::ask::Call;
use super::reader::{Piece, Reader};
use super::refused::Refused;
use crate::host::infer::TokenStream;

/// The answers of one call. Dropping it cancels what still runs, and notes what was used.
pub(super) struct Reply {
    pub call: Call,
    /// Of the first prompt.
    pub prompt_tokens: usize,
    model: Model,
    choices: Vec<Choice>,
    /// Whose turn it is to be looked at first.
    turn: usize,
}

struct Choice {
    stream: TokenStream,
    reader: Reader,
    /// Tools it has called.
    calls: u32,
    /// Tokens of its thoughts.
    thought_tokens: u32,
    ended: bool,
}

/// What a choice says, since the last time.
#[derive(Debug)]
pub(super) struct Said {
    pub choice: usize,
    pub pieces: Vec<Piece>,
    /// What the model thought of the tokens chosen since, if that was asked for.
    pub logprobs: Vec<Likely>,
    /// How it ended, if it did.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Stop,
    Length,
    Budget,
    /// With calls of tools.
    Calls,
}

/// One token and what else could have come.
#[derive(Clone, Debug)]
pub(super) struct Likely {
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top: Vec<(Vec<u8>, f32)>,
}

/// Tokens of all choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Of the prompt, once for all choices of it.
    pub prompt: u32,
    pub cached: u32,
    pub generated: u32,
    pub thought: u32,
}

/// A choice as a whole.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub pieces: Vec<Piece>,
    pub logprobs: Vec<Likely>,
    pub end: Option<End>,
}

impl Whole {
    /// The text for people.
    pub fn text(&self) -> String {
        let text = |piece: &Piece| if let Piece::Text(text) = piece { Some(text.clone()) } else { None };
        self.pieces.iter().filter_map(text).collect()
    }

    /// The thoughts, if there are some.
    pub fn thought(&self) -> Option<String> {
        let thought = |piece: &Piece| if let Piece::Thought(text) = piece { Some(text.clone()) } else { None };
        let all: String = self.pieces.iter().filter_map(thought).collect();
        (!all.is_empty()).then_some(all)
    }

    /// Tools that are called, with their arguments.
    pub fn calls(&self) -> Vec<(String, String)> {
        let mut calls: Vec<(String, String)> = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Call(name) => calls.push((name.clone(), String::new())),
                Piece::Arguments(more) => calls.iter_mut().last().into_iter().for_each(|call| call.1.push_str(more)),
                _ => {}
            }
        }
        calls
    }
}

impl Reply {
    /// Answers that are nothing but text, unless [`Reply::read_by`] says otherwise.
    pub fn new(call: Call, model: Model, all: Vec<TokenStream>) -> Self {
        let choice = |stream| Choice { stream, reader: Reader::plain(), calls: 0, thought_tokens: 0, ended: false };
        Self { call, prompt_tokens: 0, model, choices: all.into_iter().map(choice).collect(), turn: 0 }
    }

    /// The same, told apart by a reader for each.
    pub fn read_by(mut self, make: impl Fn() -> Reader) -> Self {
        self.choices.iter_mut().for_each(|choice| choice.reader = make());
        self
    }

    /// How many answers there are.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The next thing that some choice says; `None` when all have ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Said>, Refused>> {
        let count = self.choices.len();
        for n in (0..count).map(|n| (self.turn + n) % count) {
            if self.choices[n].ended {
                continue;
            }
            if let Poll::Ready(event) = self.choices[n].stream.tokens.poll_next(cx) {
                self.call.called.invocation.saw(&event, &self.choices[n].stream.tokens);
                self.turn = n + 1;
                return Poll::Ready(self.said(n, event).map(Some));
            }
        }
        if self.choices.iter().all(|choice| choice.ended) { Poll::Ready(Ok(None)) } else { Poll::Pending }
    }

    fn said(&mut self, n: usize, event: Event) -> Result<Said, Refused> {
        let (choice, model) = (&mut self.choices[n], &self.model);
        let mut pieces = Vec::new();
        let thought = choice.reader.thinks();
        let end = match event {
            Event::Text(text) => {
                choice.reader.push(&text, &mut pieces);
                None
            }
            Event::Finished(finish) => {
                choice.reader.finish(&mut pieces);
                choice.ended = true;
                Some(finish)
            }
            Event::Busy { retry_after } => return Err(Refused::busy(retry_after)),
            Event::Fault(why) => return Err(Refused::fault(format!("the engine failed: {why}"))),
        };
        choice.calls += pieces.iter().filter(|piece| matches!(piece, Piece::Call(_))).count() as u32;
        if thought || choice.reader.thinks() {
            choice.thought_tokens = choice.stream.tokens.usage().generated_tokens;
        }
        let end = end.map(|finish| match finish {
            Finish::Stop if choice.calls > 0 => End::Calls,
            Finish::Stop => End::Stop,
            Finish::Length => End::Length,
            Finish::Budget => End::Budget,
        });
        let is_text = |id: TokenId| !model.end_tokens().contains(&id);
        let logprobs = choice.stream.tokens.take_logprobs().into_iter().filter(|token| is_text(token.id));
        let logprobs = logprobs.map(|token| Likely {
            bytes: model.token_bytes(token.id),
            logprob: token.logprob,
            top: token.top.iter().map(|(id, logprob)| (model.token_bytes(*id), *logprob)).collect(),
        });
        Ok(Said { choice: n, pieces, logprobs: logprobs.collect(), end })
    }

    /// Waits for all of it.
    pub(super) async fn whole(&mut self) -> Result<Vec<Whole>, Refused> {
        let mut all: Vec<Whole> = self.choices.iter().map(|_| Whole::default()).collect();
        while let Some(said) = poll_fn(|cx| self.poll_next(cx)).await? {
            let whole = &mut all[said.choice];
            whole.pieces.extend(said.pieces);
            whole.logprobs.extend(said.logprobs);
            whole.end = said.end.or(whole.end);
        }
        Ok(all)
    }

    /// What was used so far; each prompt has `choices_each` choices.
    pub fn counts(&self, choices_each: usize) -> Counts {
        let mut counts = Counts::default();
        for (n, choice) in self.choices.iter().enumerate() {
            let usage = choice.stream.tokens.usage();
            if n % choices_each.max(1) == 0 {
                counts.prompt += usage.prompt_tokens;
                counts.cached += usage.cached_tokens;
            }
            counts.generated += usage.generated_tokens;
            counts.thought += choice.thought_tokens;
        }
        counts
    }

    /// Where the time of the first choice went.
    pub fn timing(&self) -> hob_gpu::Timing {
        self.choices.first().map(|choice| choice.stream.tokens.timing()).unwrap_or_default()
    }
}
