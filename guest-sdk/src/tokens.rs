//! The text of a generation as it is made, and what became of it.

use crate::{ModelError, bindings};
use serde::{Deserialize, Serialize};
use wstd::runtime::AsyncPollable;

/// The text of one generation, as it is made. Dropping it cancels the generation within one step.
///
/// As a handler's answer it is a stream of server-sent events, see [`sse::tokens`](crate::sse::tokens).
#[derive(Debug)]
pub struct Tokens {
    // First, so that it is dropped before the stream that it belongs to.
    ready: AsyncPollable,
    stream: bindings::TokenStream,
    state: State,
}

/// `Open -> Finished | Failed`
#[derive(Debug, Clone, Copy)]
enum State {
    Open,
    Finished(Finish),
    Failed,
}

/// Why a generation ended; in JSON `"stop"`, `"length"` or `"budget"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended its turn, or a stop string was met.
    Stop,
    /// `max_tokens`, or the end of the context, was reached.
    Length,
    /// What the function, or its tenant, may use was used up.
    Budget,
}

/// What a generation has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
}

/// All the text of a generation, and what it used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// What it used.
    pub usage: Usage,
}

impl Tokens {
    pub(crate) fn new(stream: bindings::TokenStream) -> Self {
        Self { ready: AsyncPollable::new(stream.subscribe()), stream, state: State::Open }
    }

    /// The next piece of text: one or more whole characters. `None` at the end, and ever after.
    ///
    /// # Errors
    /// `Fault` if the host cut the generation short; the stream is at its end then.
    pub async fn next(&mut self) -> Option<Result<String, ModelError>> {
        while let State::Open = self.state {
            match self.stream.next() {
                Ok(bindings::Event::Text(text)) => return Some(Ok(text)),
                Ok(bindings::Event::Pending) => self.ready.wait_for().await,
                Ok(bindings::Event::Finished(reason)) => self.state = State::Finished(reason.into()),
                Err(error) => {
                    self.state = State::Failed;
                    return Some(Err(error.into()));
                }
            }
        }
        None
    }

    /// What has been used so far; complete once `next` gave `None`.
    pub fn usage(&self) -> Usage {
        let bindings::Usage { prompt_tokens, generated_tokens } = self.stream.usage();
        Usage { prompt_tokens, generated_tokens }
    }

    /// Why the generation ended; `None` while it goes on, and if it failed.
    pub fn finish(&self) -> Option<Finish> {
        match self.state {
            State::Finished(finish) => Some(finish),
            State::Open | State::Failed => None,
        }
    }

    /// Waits for the rest of the text.
    ///
    /// # Errors
    /// `Fault` if the host cut the generation short.
    pub async fn text(mut self) -> Result<Answer, ModelError> {
        let mut text = String::new();
        while let Some(piece) = self.next().await {
            text += &piece?;
        }
        let finish = self.finish().expect("a stream that did not fail ends with a reason");
        Ok(Answer { text, finish, usage: self.usage() })
    }
}

impl From<bindings::FinishReason> for Finish {
    fn from(reason: bindings::FinishReason) -> Self {
        match reason {
            bindings::FinishReason::Stop => Self::Stop,
            bindings::FinishReason::Length => Self::Length,
            bindings::FinishReason::Budget => Self::Budget,
        }
    }
}
