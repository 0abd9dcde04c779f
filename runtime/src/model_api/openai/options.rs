//! What chat and plain completions have in common: how many, how long, how tokens are chosen.

use std::collections::BTreeMap;

use hob_gpu::{Ask, Penalties, Prompt, Sampling, TokenId};
use serde::Deserialize;

use crate::model_api::refused::Refused;

/// Most choices of one call.
const MAX_CHOICES: u32 = 16;
/// Most stop texts.
const MAX_STOPS: usize = 16;

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(in crate::model_api) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn all(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Options of both.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    pub model: String,
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    pub max_tokens: Option<u32>,
    stop: Option<OneOrMany>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    // Not OpenAI's, but common.
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl Options {
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether a stream ends with what was used, and whether each of its pieces says so far.
    pub fn tells_usage(&self) -> (bool, bool) {
        let options = self.stream_options.as_ref();
        let is = |of: fn(&StreamOptions) -> Option<bool>| options.and_then(of) == Some(true);
        (is(|options| options.include_usage), is(|options| options.continuous_usage_stats))
    }

    /// How many choices there are to be.
    pub fn choices(&self) -> Result<u32, Refused> {
        match self.n.unwrap_or(1) {
            n @ 1..=MAX_CHOICES => Ok(n),
            n => Err(Refused::invalid("n", format!("n is {n}; give 1 to {MAX_CHOICES}"))),
        }
    }

    /// An ask for each choice, without a prompt.
    pub fn asks(self, logprobs: Option<u32>) -> Result<Vec<Ask>, Refused> {
        let choices = self.choices()?;
        if self.stream_options.is_some() && !self.streams() {
            return Err(Refused::invalid("stream_options", "stream_options need `\"stream\": true`"));
        }
        if self.max_tokens == Some(0) {
            return Err(Refused::invalid("max_tokens", "max_tokens is 0; give 1 or more"));
        }
        let mut ask = Ask::new(Prompt::Tokens(Vec::new()));
        ask.max_tokens = self.max_tokens;
        ask.logprobs = logprobs;
        ask.stop = self.stop.map(OneOrMany::all).unwrap_or_default();
        if ask.stop.len() > MAX_STOPS || ask.stop.iter().any(String::is_empty) {
            let why = format!("stop has {} texts; give up to {MAX_STOPS}, none of them empty", ask.stop.len());
            return Err(Refused::invalid("stop", why));
        }
        ask.logit_bias = bias(self.logit_bias)?;
        ask.sampling = Sampling {
            temperature: within("temperature", self.temperature.unwrap_or(1.0), 0.0, 2.0)?,
            top_k: self.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0),
            top_p: within("top_p", self.top_p.unwrap_or(1.0), 0.0, 1.0)?.max(f32::MIN_POSITIVE),
            min_p: within("min_p", self.min_p.unwrap_or(0.0), 0.0, 1.0)?,
            seed: None,
            penalties: Penalties {
                repetition: within("repetition_penalty", self.repetition_penalty.unwrap_or(1.0), 0.01, 2.0)?,
                presence: within("presence_penalty", self.presence_penalty.unwrap_or(0.0), -2.0, 2.0)?,
                frequency: within("frequency_penalty", self.frequency_penalty.unwrap_or(0.0), -2.0, 2.0)?,
            },
        };
        let one = |n: u32| {
            let mut ask = ask.clone();
            // Each choice draws on its own; all of them are the same again with the same seed.
            ask.sampling.seed = self.seed.map(|seed| (seed as u64).wrapping_add(n.into()));
            ask
        };
        Ok((0..choices).map(one).collect())
    }
}

fn within(name: &'static str, value: f32, low: f32, high: f32) -> Result<f32, Refused> {
    match (low..=high).contains(&value) {
        true => Ok(value),
        false => Err(Refused::invalid(name, format!("{name} is {value}; give {low} to {high}"))),
    }
}

fn bias(given: Option<BTreeMap<String, f32>>) -> Result<Vec<(TokenId, f32)>, Refused> {
    let one = |(token, bias): (String, f32)| match token.parse() {
        Ok(id) => Ok((TokenId(id), within("logit_bias", bias, -100.0, 100.0)?)),
        Err(_) => {
            Err(Refused::invalid("logit_bias", format!("logit_bias has `{token}`; its keys are numbers of tokens")))
        }
    };
    given.unwrap_or_default().into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> Result<Vec<Ask>, Refused> {
        serde_json::from_str::<Options>(text).unwrap().asks(None)
    }

    #[test]
    fn options_become_asks_and_choices_draw_apart() {
        let all = asks(
            r#"{"n":2,"seed":7,"stop":"a","max_tokens":3,"logit_bias":{"5":-100},"top_p":0,"whatever":[1],"temperature":0.5}"#,
        )
        .unwrap();
        assert_eq!(all.iter().map(|ask| ask.sampling.seed).collect::<Vec<_>>(), [Some(7), Some(8)]);
        assert_eq!((&all[0].stop[..], all[0].max_tokens), (&["a".to_owned()][..], Some(3)));
        assert_eq!(all[1].logit_bias, [(TokenId(5), -100.0)]);
        assert_eq!(asks("{}").unwrap()[0].sampling.temperature, 1.0);
        assert_eq!(asks(r#"{"stop":null,"n":null,"seed":null}"#).unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, param) in [
            (r#"{"n":0}"#, "n"),
            (r#"{"n":17}"#, "n"),
            (r#"{"max_tokens":0}"#, "max_tokens"),
            (r#"{"temperature":3}"#, "temperature"),
            (r#"{"top_p":-1}"#, "top_p"),
            (r#"{"presence_penalty":9}"#, "presence_penalty"),
            (r#"{"stop":["a",""]}"#, "stop"),
            (r#"{"logit_bias":{"a":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"1":101}}"#, "logit_bias"),
            (r#"{"stream_options":{"include_usage":true}}"#, "stream_options"),
        ] {
            let refused = asks(text).unwrap_err();
            assert_eq!((refused.status.as_u16(), refused.param.as_deref()), (400, Some(param)), "{text}");
        }
    }
}
