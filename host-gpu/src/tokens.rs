//! The tokens a client receives: the reading end that a caller holds and the writing end of the
//! engine.
//!
//! The engine never waits for a reader. Text that nobody has read yet is joined into one piece, so
//! a slow reader gets fewer, longer pieces, and what waits is never more than one answer.

use crate::ask::{Refusal, TokenId};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer, or a stop text appeared.
    Stop,
    /// `max_tokens`, the context or the KV memory was used up.
    Length,
    /// Its [`crate::Budget`] was.
    Budget,
}

/// What a reader sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// More text: whole characters, of one or more tokens.
    Text(String),
    /// The end.
    Finished(Finish),
    /// The end before the beginning: it waited in the queue for as long as its [`crate::Terms`] allow.
    Busy {
        /// When a place is likely to be free.
        retry_after: Duration,
    },
    /// The end, through a fault of ours; the text is for the operator.
    Fault(String),
}

/// What was computed so far, and is to be paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens that were processed or found.
    pub prompt_tokens: u32,
    /// Those of them that were found in the KV of an earlier sequence that began alike.
    pub cached_tokens: u32,
    /// Tokens that were generated.
    pub generated_tokens: u32,
}

/// Where the time went so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From `generate` until the sequence was admitted.
    pub queue: Duration,
    /// From admission until the prompt was processed.
    pub prefill: Duration,
    /// From `generate` until the first token was chosen.
    pub first_token: Option<Duration>,
    /// From the first token until the latest.
    pub decode: Duration,
}

/// What the model thought of one token it could choose, before penalties, bias and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token that was chosen.
    pub id: TokenId,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens and theirs, the likeliest first.
    pub top: Vec<(TokenId, f32)>,
}

#[derive(Default)]
struct State {
    text: String,
    logprobs: Vec<Logprob>,
    embedding: Vec<f32>,
    end: Option<Event>,
    waker: Option<Waker>,
    usage: Usage,
    timing: Timing,
}

#[derive(Default)]
struct Channel {
    state: Mutex<State>,
    cancelled: AtomicBool,
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sequence's tokens as they come. Dropping it cancels the sequence within one step.
#[must_use = "dropping the tokens cancels the sequence"]
pub struct Tokens {
    channel: Arc<Channel>,
}

impl Tokens {
    /// The next event, if there is one; otherwise the task is woken when there is.
    ///
    /// After the end every later call gives the same again.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut state = self.channel.lock();
        if !state.text.is_empty() {
            return Poll::Ready(Event::Text(std::mem::take(&mut state.text)));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(end.clone());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits for the next event. Cancel safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The log-probabilities of the tokens chosen since the last call, if they were asked for.
    pub fn take_logprobs(&mut self) -> Vec<Logprob> {
        std::mem::take(&mut self.channel.lock().logprobs)
    }

    /// What the sequence was to give, if it was an embedding and has ended.
    pub(crate) fn take_embedding(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.channel.lock().embedding)
    }

    /// How it ended, if it did, whether the rest was read or not.
    pub fn finish(&self) -> Option<Finish> {
        match self.channel.lock().end {
            Some(Event::Finished(finish)) => Some(finish),
            _ => None,
        }
    }

    /// What was computed so far.
    pub fn usage(&self) -> Usage {
        self.channel.lock().usage
    }

    /// Where the time went so far.
    pub fn timing(&self) -> Timing {
        self.channel.lock().timing
    }

    /// Waits for the end and gives the whole text.
    ///
    /// # Errors
    /// `Busy` or `Fault`, as the event.
    pub async fn text(mut self) -> Result<(String, Finish), Refusal> {
        let mut text = String::new();
        loop {
            match self.next().await {
                Event::Text(more) => text.push_str(&more),
                Event::Finished(finish) => return Ok((text, finish)),
                Event::Busy { retry_after } => return Err(Refusal::Busy { retry_after }),
                Event::Fault(why) => return Err(Refusal::Fault(why)),
            }
        }
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.channel.cancelled.store(true, Ordering::Relaxed);
    }
}

/// The engine's end. Dropping it without [`Writer::end`] tells the reader of a fault.
pub(crate) struct Writer {
    channel: Arc<Channel>,
}

/// A new channel.
pub(crate) fn channel() -> (Writer, Tokens) {
    let channel = Arc::new(Channel::default());
    (Writer { channel: channel.clone() }, Tokens { channel })
}

impl Writer {
    /// Whether the reader is gone.
    pub(crate) fn cancelled(&self) -> bool {
        self.channel.cancelled.load(Ordering::Relaxed)
    }

    /// Adds `text` and notes where the sequence stands.
    pub(crate) fn push(&self, text: &str, usage: Usage, timing: Timing) {
        let mut state = self.channel.lock();
        state.text.push_str(text);
        state.usage = usage;
        state.timing = timing;
        if !text.is_empty() {
            Self::wake(state);
        }
    }

    /// Adds what the model thought of the token chosen last; before the token's text.
    pub(crate) fn logprob(&self, logprob: Logprob) {
        self.channel.lock().logprobs.push(logprob);
    }

    /// Gives the embedding, before the end.
    pub(crate) fn embedding(&self, embedding: Vec<f32>) {
        self.channel.lock().embedding = embedding;
    }

    /// Ends the tokens.
    pub(crate) fn end(self, event: Event) {
        self.finish(event);
    }

    fn finish(&self, event: Event) {
        let mut state = self.channel.lock();
        if state.end.is_none() {
            state.end = Some(event);
            Self::wake(state);
        }
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state); // the reader may run at once, on another thread
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish(Event::Fault("the engine stopped before the sequence ended".into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_joins_and_the_end_repeats() {
        let (writer, mut tokens) = channel();
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(tokens.poll_next(cx), Poll::Pending);
        writer.push("a", Usage::default(), Timing::default());
        writer.push("b", Usage { prompt_tokens: 1, cached_tokens: 0, generated_tokens: 2 }, Timing::default());
        writer.end(Event::Finished(Finish::Stop));
        assert_eq!(tokens.poll_next(cx), Poll::Ready(Event::Text("ab".into())));
        for _ in 0..2 {
            assert_eq!(tokens.poll_next(cx), Poll::Ready(Event::Finished(Finish::Stop)));
        }
        assert_eq!(tokens.usage().generated_tokens, 2);
    }

    #[test]
    fn a_lost_writer_is_a_fault_and_a_lost_reader_is_seen() {
        let (writer, mut tokens) = channel();
        drop(writer);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(matches!(tokens.poll_next(cx), Poll::Ready(Event::Fault(_))));
        let (writer, tokens) = channel();
        assert!(!writer.cancelled());
        drop(tokens);
        assert!(writer.cancelled());
    }
}
