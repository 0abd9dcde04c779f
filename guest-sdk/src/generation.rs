//! What to generate and how: built step by step, then started.

use crate::{Answer, ModelError, Tokens, bindings};

/// A generation that has not started. What is left out takes the model's default.
///
/// ```no_run
/// # async fn example(model: hob_sdk::Model) -> hob_sdk::Result<()> {
/// let answer = model.raw("The capital of France is").max_tokens(8).text().await?;
/// # Ok(()) }
/// ```
#[must_use = "a generation starts with `stream` or `text`"]
#[derive(Debug)]
pub struct Generation<'m> {
    model: &'m bindings::Model,
    prompt: bindings::Prompt,
    system: Option<String>,
    options: bindings::Options,
}

impl<'m> Generation<'m> {
    pub(crate) fn new(model: &'m bindings::Model, prompt: bindings::Prompt) -> Self {
        let options = bindings::Options {
            max_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            presence_penalty: None,
            frequency_penalty: None,
            seed: None,
            stop: Vec::new(),
        };
        Self { model, prompt, system: None, options }
    }

    /// Instructions put in front of the conversation. A raw prompt has no place for them and is refused.
    pub fn system(mut self, instructions: impl Into<String>) -> Self {
        self.system = Some(instructions.into());
        self
    }

    /// Most tokens to generate; at least 1. Default: what is left of the context.
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.options.max_tokens = Some(tokens);
        self
    }

    /// 0 takes the likeliest token each time; higher is more varied. From 0 to 2. Default 0.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.options.temperature = Some(temperature);
        self
    }

    /// Only the `k` likeliest tokens are candidates; 0 means all. Default 0.
    pub fn top_k(mut self, k: u32) -> Self {
        self.options.top_k = Some(k);
        self
    }

    /// Only the likeliest tokens whose probabilities add up to `p` are candidates. Above 0, up to 1. Default 1.
    pub fn top_p(mut self, p: f32) -> Self {
        self.options.top_p = Some(p);
        self
    }

    /// Only tokens at least `p` times as likely as the likeliest are candidates. From 0 to 1. Default 0.
    pub fn min_p(mut self, p: f32) -> Self {
        self.options.min_p = Some(p);
        self
    }

    /// Holds back tokens that are in the prompt or the text. Above 0, up to 2; 1 does nothing. Default 1.
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.options.repetition_penalty = Some(penalty);
        self
    }

    /// Holds back tokens that were generated before. From -2 to 2. Default 0.
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.options.presence_penalty = Some(penalty);
        self
    }

    /// Holds back tokens for each time they were generated before. From -2 to 2. Default 0.
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.options.frequency_penalty = Some(penalty);
        self
    }

    /// The same seed, prompt and options give the same text. Default: chosen by the host.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = Some(seed);
        self
    }

    /// Ends the text before `stop` would appear. May be called for up to 16 strings, none empty.
    pub fn stop(mut self, stop: impl Into<String>) -> Self {
        self.options.stop.push(stop.into());
        self
    }

    /// Starts the generation and gives its text as it is made.
    ///
    /// # Errors
    /// `Busy`, `TooLong`, `Invalid`, `Fault`.
    pub fn stream(self) -> Result<Tokens, ModelError> {
        let prompt = framed(self.prompt, self.system)?;
        let stream = self.model.generate(&prompt, &self.options)?;
        Ok(Tokens::new(stream))
    }

    /// Starts the generation and waits for all of its text.
    ///
    /// # Errors
    /// Those of [`stream`](Self::stream), and `Fault` if the host cut the generation short.
    pub async fn text(self) -> Result<Answer, ModelError> {
        self.stream()?.text().await
    }
}

fn framed(prompt: bindings::Prompt, system: Option<String>) -> Result<bindings::Prompt, ModelError> {
    use bindings::{Message, Prompt, Role};
    match (prompt, system) {
        (prompt, None) => Ok(prompt),
        (Prompt::Chat(mut messages), Some(content)) => {
            messages.insert(0, Message { role: Role::System, content });
            Ok(Prompt::Chat(messages))
        }
        (Prompt::Raw(_), Some(_)) => {
            Err(ModelError::Invalid("a raw prompt takes no system message; write it into the text".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_comes_first_and_only_in_chats() {
        let asked = bindings::Message { role: bindings::Role::User, content: "Hi".into() };
        let Ok(bindings::Prompt::Chat(messages)) = framed(bindings::Prompt::Chat(vec![asked]), Some("Be brief".into()))
        else {
            panic!("a conversation takes a system message");
        };
        assert_eq!(messages[0].content, "Be brief");
        assert_eq!(messages.len(), 2);
        assert!(framed(bindings::Prompt::Raw("Hi".into()), Some("Be brief".into())).is_err());
    }
}
