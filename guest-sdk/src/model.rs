//! The right to use a resident model, and the ways in which that is refused.

use crate::{Generation, Message, bindings};
use std::time::Duration;

/// The right to use a model that the host keeps resident. While one lives the weights stay.
#[derive(Debug)]
pub struct Model(bindings::Model);

/// What is known about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The name it was opened by.
    pub name: String,
    /// Most tokens that a prompt and its answer can have together.
    pub context_tokens: u32,
    /// Whether [`Model::chat`] can be used.
    pub chat: bool,
}

/// Why the host refused, or failed. In a handler `?` turns it into the status named with each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The host has no model of this name. Final until somebody pulls it. Status 404.
    #[error("the host has no model {0:?}; `hob models pull {0}` brings it")]
    NotFound(String),
    /// The function was not granted this model when it was deployed. Final. Status 403.
    #[error("this function was not granted the model {0:?}; deploy it with `--model {0}`")]
    NotGranted(String),
    /// The host's queue is full. The same call can succeed later. Status 503 with `retry-after`.
    #[error("the host is busy; retry in {} ms", .retry_after.as_millis())]
    Busy {
        /// How long to wait before the next try; at least a millisecond.
        retry_after: Duration,
    },
    /// The prompt and the room asked for its answer do not fit. A shorter prompt can succeed. Status 413.
    #[error("the prompt needs {needed} tokens with its answer, {available} fit; shorten it")]
    TooLong {
        /// Tokens that the prompt and at least one token of answer need.
        needed: u32,
        /// Tokens that the model's context, or the host's memory for it, can hold.
        available: u32,
    },
    /// An argument makes no sense (a negative temperature, an empty prompt). Says which and why. Status 400.
    #[error("{0}")]
    Invalid(String),
    /// The host failed. Not the caller's doing; the host has logged the cause. Status 500.
    #[error("{0}")]
    Fault(String),
}

impl Model {
    /// Joins a resident model, and loads it first if it is not. The call suspends the instance meanwhile.
    ///
    /// # Errors
    /// `NotFound`, `NotGranted`, `Busy` (no room for it now), `Fault` (its file is broken).
    pub fn open(name: &str) -> Result<Self, ModelError> {
        Ok(Self(bindings::Model::open(name)?))
    }

    /// What is known about this model.
    pub fn info(&self) -> Info {
        let bindings::Info { name, context_tokens, chat } = self.0.info();
        Info { name, context_tokens, chat }
    }

    /// The token ids of `text`, as plain text: special tokens are not obeyed, none is added in front.
    ///
    /// # Errors
    /// `Invalid` if the text is over 16 MiB.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        Ok(self.0.tokenize(text)?)
    }

    /// What each text means: as many numbers as the model is wide, of length 1 together, so that the dot product of two is the
    /// cosine between them. At most 2048 texts.
    ///
    /// # Errors
    /// `TooLong` if a text has more tokens than the context, `Busy`, `Invalid`, `Fault`.
    pub fn embed<T: Into<String>>(&self, texts: impl IntoIterator<Item = T>) -> Result<Vec<Vec<f32>>, ModelError> {
        let texts: Vec<String> = texts.into_iter().map(Into::into).collect();
        Ok(self.0.embed(&texts)?)
    }

    /// The next turn of a conversation, laid out by the model's own chat template.
    pub fn chat(&self, messages: impl IntoIterator<Item = Message>) -> Generation<'_> {
        let messages = messages.into_iter().map(Into::into).collect();
        Generation::new(&self.0, bindings::Prompt::Chat(messages))
    }

    /// The continuation of a text taken as it is; special tokens such as `<|im_start|>` are obeyed.
    pub fn raw(&self, text: impl Into<String>) -> Generation<'_> {
        Generation::new(&self.0, bindings::Prompt::Raw(text.into()))
    }
}

impl From<bindings::Error> for ModelError {
    fn from(error: bindings::Error) -> Self {
        use bindings::{Busy, Error, TooLong};
        match error {
            Error::NotFound(name) => Self::NotFound(name),
            Error::NotGranted(name) => Self::NotGranted(name),
            Error::Busy(Busy { retry_after_ms }) => {
                Self::Busy { retry_after: Duration::from_millis(retry_after_ms.into()) }
            }
            Error::TooLong(TooLong { needed, available }) => Self::TooLong { needed, available },
            Error::Invalid(why) => Self::Invalid(why),
            Error::Fault(why) => Self::Fault(why),
        }
    }
}
