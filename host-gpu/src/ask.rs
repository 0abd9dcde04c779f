//! What a caller asks of a model, and the answers that are not tokens.

use crate::form::Form;
use std::time::Duration;

/// The number of a token in a model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub u32);

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word that chat templates use.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said: plain text, in which special tokens mean nothing.
    pub content: String,
}

/// A conversation with all that chat templates can show: tools, calls of them, their answers, thoughts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Messages as OpenAI's API has them: objects with `role` and `content` (a text), and with `tool_calls`, `tool_call_id`,
    /// `name` and `reasoning_content` where there are such. Special tokens in any of their texts mean nothing.
    pub messages: Vec<serde_json::Value>,
    /// Tools as OpenAI's API has them.
    pub tools: Vec<serde_json::Value>,
    /// Whether the model thinks before it answers, for models that can do both.
    pub think: Option<bool>,
    /// The beginning of the answer: the model goes on from there.
    pub begun: Option<String>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        let one = |m: Message| serde_json::json!({ "role": m.role.name(), "content": m.content });
        Self { messages: messages.into_iter().map(one).collect(), ..Self::default() }
    }
}

impl Conversation {
    /// Bytes of its texts, about.
    pub fn bytes(&self) -> usize {
        fn of(value: &serde_json::Value) -> usize {
            match value {
                serde_json::Value::String(text) => text.len(),
                serde_json::Value::Array(list) => list.iter().map(of).sum(),
                serde_json::Value::Object(object) => object.iter().map(|(key, value)| key.len() + of(value)).sum(),
                _ => 1,
            }
        }
        let begun = self.begun.as_ref().map_or(0, String::len);
        self.messages.iter().chain(&self.tools).map(of).sum::<usize>() + begun
    }
}

/// What the model continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, rendered with the model's own chat template.
    Chat(Vec<Message>),
    /// A conversation with tools and whatever else templates know.
    Conversation(Box<Conversation>),
    /// Text as it stands, in which special tokens are recognised.
    Raw(String),
    /// Tokens as they stand.
    Tokens(Vec<TokenId>),
}

/// How the next token is chosen. The default is greedy: always the likeliest.
///
/// Filters apply in the order of the fields `top_k`, `top_p`, `min_p`; then the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; 1 samples what the model says; higher is wilder. At most 2.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens that together have this probability, over 0 up to 1; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens that are at least this fraction as likely as the likeliest, 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// Same seed, same text, whatever else runs; `None` draws one.
    pub seed: Option<u64>,
    /// What holds back tokens that were there before; applied first.
    pub penalties: Penalties,
}

/// How much tokens that were there before are held back. The default does nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides the positive logits, and multiplies the negative ones, of tokens in the prompt or the text
    /// (CTRL, arXiv 1909.05858, section 4.1); over 0 up to 2, 1 does nothing.
    pub repetition: f32,
    /// Taken from the logits of tokens that were generated before; -2 to 2, as in OpenAI's API.
    pub presence: f32,
    /// Taken for each time that the token was generated before; -2 to 2, as in OpenAI's API.
    pub frequency: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: None, penalties: Penalties::default() }
    }
}

impl Sampling {
    /// Whether each value is in its range.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let in_range = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Refusal::Invalid(format!("{name} is {value}; give {low} to {high}")))
            }
        };
        in_range("temperature", self.temperature, 0.0, 2.0)?;
        in_range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repetition penalty", self.penalties.repetition, f32::MIN_POSITIVE, 2.0)?;
        in_range("presence penalty", self.penalties.presence, -2.0, 2.0)?;
        in_range("frequency penalty", self.penalties.frequency, -2.0, 2.0)
    }
}

/// One request for tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What to continue.
    pub prompt: Prompt,
    /// The most tokens to generate. `None` generates until the model stops, or the context or all KV
    /// memory is full; others wait when one sequence needs all of it.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Added to the logits of these tokens, -100 to 100 each; -100 all but forbids a token.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Report the log-probability of each token chosen, and of this many of the likeliest; at most 20.
    pub logprobs: Option<u32>,
    /// What the answer must be; it ends where nothing can follow. A token is drawn from all, and where it does not fit, another one from those
    /// that do: without filters, each has its probability among those. The filters look at all tokens in the first draw.
    pub form: Option<Form>,
    /// Generation ends before the first of these texts; they are never emitted.
    pub stop: Vec<String>,
    /// Goes on behind a token that ends an answer, which is no text: for measuring.
    pub ignore_end: bool,
    /// Whom this is for. Sequences of one account that begin alike share KV, and of several only where
    /// [`crate::Model::sharing_prefixes`] says so; its memory is cleared before it passes from one account to another.
    pub account: u64,
}

impl Ask {
    /// Asks to continue `prompt` greedily until the model stops.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            logit_bias: Vec::new(),
            logprobs: None,
            form: None,
            stop: Vec::new(),
            ignore_end: false,
            account: 0,
        }
    }
}

/// Most of the likeliest tokens that can be reported.
const MAX_LOGPROBS: u32 = 20;
/// Most stop texts: each is looked for after every token, on the engine's thread.
const MAX_STOPS: usize = 16;

impl Ask {
    /// Whether each value is in its range, for a vocabulary of `vocab` tokens.
    pub(crate) fn check(&self, vocab: usize) -> Result<(), Refusal> {
        self.sampling.check()?;
        if self.stop.len() > MAX_STOPS {
            return Err(Refusal::Invalid(format!(
                "{} stop texts; at most {MAX_STOPS} are looked for",
                self.stop.len()
            )));
        }
        if self.logit_bias.len() > vocab {
            return Err(Refusal::Invalid("logit bias for more tokens than there are; name each once".into()));
        }
        for (id, bias) in &self.logit_bias {
            if id.0 as usize >= vocab || !(-100.0..=100.0).contains(bias) {
                let why = format!("logit bias {bias} of token {}; give -100 to 100 to tokens below {vocab}", id.0);
                return Err(Refusal::Invalid(why));
            }
        }
        match self.logprobs {
            Some(n) if n > MAX_LOGPROBS => {
                Err(Refusal::Invalid(format!("{n} logprobs; at most {MAX_LOGPROBS} are reported")))
            }
            _ => Ok(()),
        }
    }
}

/// Why there will be no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The prompt leaves no room for a single token.
    #[error(
        "the prompt needs {needed} tokens of context and {available} are available; shorten it or split it into parts"
    )]
    TooLong {
        /// Tokens of the prompt and one more.
        needed: u32,
        /// Tokens that the model's context and the KV budget allow.
        available: u32,
    },
    /// The queue is full.
    #[error("the engine is busy; retry in {} ms", retry_after.as_millis())]
    Busy {
        /// When a place is likely to be free.
        retry_after: Duration,
    },
    /// The request cannot be served as it is; the text says what to change.
    #[error("{0}")]
    Invalid(String),
    /// Our fault; the text is for the operator.
    #[error("the engine failed: {0}; retry, and report it if it happens again")]
    Fault(String),
}
