//! `/v1/completions`: text that goes on from a prompt, without a chat template.

use hob_gpu::{Prompt, TokenId};
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::options::Options;
use super::{FINGERPRINT, finish_reason, logprobs, now, usage};
use crate::model_api::ask::Call;
use crate::model_api::body::Given;
use crate::model_api::reader::Piece;
use crate::model_api::refused::{Dialect, Refused};
use crate::model_api::reply::{Likely, Reply, Said};
use crate::model_api::stream::{self, Out, Voice};
use crate::request::Body;

/// Tokens of an answer, unless said; as OpenAI's.
const USUAL_TOKENS: u32 = 16;
/// Most sequences of one call.
const MAX_SEQUENCES: usize = 64;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(flatten)]
    options: Options,
    prompt: Option<Prompts>,
    logprobs: Option<u32>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<u32>,
}

/// Prompts, as text or tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl Prompts {
    fn all(self) -> Vec<Prompt> {
        let tokens = |ids: Vec<u32>| Prompt::Tokens(ids.into_iter().map(TokenId).collect());
        match self {
            Self::Text(text) => vec![Prompt::Raw(text)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Raw).collect(),
            Self::Tokens(ids) => vec![tokens(ids)],
            Self::TokenLists(lists) => lists.into_iter().map(tokens).collect(),
        }
    }
}

/// Answers a call.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let mut asked: Asked = body.json().await?;
    let prompts = asked.prompt.take().map(Prompts::all).unwrap_or_default();
    check(&asked, &prompts)?;
    let (tells, name) = (asked.options.tells_usage(), asked.options.model.clone());
    let (streams, each) = (asked.options.streams(), asked.options.choices()? as usize);
    asked.options.max_tokens.get_or_insert(USUAL_TOKENS);
    let asks = asked.options.asks(asked.logprobs)?;
    let found = call.join(&name).await?;
    let echoed = if asked.echo == Some(true) { prompts.clone() } else { Vec::new() };
    let mut reply = call.start(&found, prompts, None, asks).await?;
    let echo = |n: usize| match echoed.get(n / each) {
        Some(Prompt::Raw(text)) => text.clone(),
        Some(Prompt::Tokens(ids)) => found.model.detokenize(ids),
        _ => String::new(),
    };
    let echoes: Vec<String> = (0..reply.choices()).map(echo).collect();
    let mut shape = Shape::new(call, found.name.to_string(), asked.logprobs.is_some(), each, echoes);
    if streams {
        return Ok(stream::response(reply, Plain { shape, tells }));
    }
    let all = reply.whole().await?;
    let choices = all.iter().enumerate().map(|(n, whole)| {
        let (text, logprobs) = shape.next(n, &whole.text(), &whole.logprobs);
        json!({ "index": n, "text": text, "logprobs": logprobs, "finish_reason": finish_reason(whole.end) })
    });
    let choices: Vec<Value> = choices.collect();
    let mut answer = shape.object(choices.into());
    answer["usage"] = usage(reply.counts(each));
    Ok(call.whole(&answer))
}

fn check(asked: &Asked, prompts: &[Prompt]) -> Result<(), Refused> {
    let empty = |prompt: &Prompt| match prompt {
        Prompt::Raw(text) => text.is_empty(),
        Prompt::Tokens(ids) => ids.is_empty(),
        _ => false,
    };
    let sequences = prompts.len().saturating_mul(asked.options.choices()? as usize);
    if sequences > MAX_SEQUENCES {
        let why = format!("{sequences} prompts and choices; at most {MAX_SEQUENCES} are answered at once");
        return Err(Refused::invalid("prompt", why));
    }
    if prompts.is_empty() || prompts.iter().any(empty) {
        return Err(Refused::invalid("prompt", "the prompt is empty; give at least one token"));
    }
    if asked.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refused::invalid("suffix", "models here do not fill in; leave suffix out"));
    }
    if asked.best_of.is_some_and(|best| asked.options.choices().ok() != Some(best)) {
        return Err(Refused::invalid("best_of", "best_of other than n is not there; leave it out"));
    }
    if asked.logprobs.is_some() && asked.echo == Some(true) {
        return Err(Refused::invalid("echo", "an echoed prompt has no logprobs; leave one of them out"));
    }
    Ok(())
}

/// What all pieces of an answer have.
struct Shape {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
    /// Choices of each prompt.
    each: usize,
    /// The prompts, still to be said where they are echoed.
    echoes: Vec<String>,
    /// Characters said by each choice.
    said: Vec<usize>,
}

impl Shape {
    fn new(call: &Call, model: String, logprobs: bool, each: usize, echoes: Vec<String>) -> Self {
        let said = vec![0; echoes.len()];
        Self { id: format!("cmpl-{}", call.id()), created: now(), model, logprobs, each, echoes, said }
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        })
    }

    /// Text and logprobs of what choice `n` says next.
    fn next(&mut self, n: usize, text: &str, tokens: &[Likely]) -> (String, Value) {
        let text = std::mem::take(&mut self.echoes[n]) + text;
        let logprobs = if self.logprobs { logprobs::plain(tokens, self.said[n]) } else { Value::Null };
        self.said[n] += text.chars().count();
        (text, logprobs)
    }
}

/// A stream of the same.
struct Plain {
    shape: Shape,
    tells: (bool, bool),
}

impl Voice for Plain {
    fn say(&mut self, said: Said, reply: &Reply, out: &mut Out) {
        let text: String =
            said.pieces.iter().map(|piece| if let Piece::Text(text) = piece { text } else { "" }).collect();
        let (text, logprobs) = self.shape.next(said.choice, &text, &said.logprobs);
        let finish = said.end.map(|end| finish_reason(Some(end)));
        let choice = json!({ "index": said.choice, "text": text, "logprobs": logprobs, "finish_reason": finish });
        let mut chunk = self.shape.object(json!([choice]));
        match self.tells {
            (true, true) => chunk["usage"] = usage(reply.counts(self.shape.each)),
            (true, false) => chunk["usage"] = Value::Null,
            _ => {}
        }
        out.event(&chunk);
    }

    fn end(&mut self, reply: &Reply, out: &mut Out) {
        if self.tells.0 {
            let mut chunk = self.shape.object(json!([]));
            chunk["usage"] = usage(reply.counts(self.shape.each));
            out.event(&chunk);
        }
        out.text("[DONE]");
    }

    fn fault(&mut self, refused: &Refused, out: &mut Out) {
        out.event(&refused.json_in(Dialect::OpenAi));
        out.text("[DONE]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_counted_before_they_are_made() {
        let refused = |asked: Value| {
            let mut asked: Asked = serde_json::from_value(asked).unwrap();
            let prompts = asked.prompt.take().map(Prompts::all).unwrap_or_default();
            check(&asked, &prompts).err().map(|refused| (refused.param.unwrap(), refused.message))
        };
        assert_eq!(refused(json!({ "prompt": vec!["x"; 4], "n": 16 })), None);
        for (count, n) in [(5, 16), (65, 1)] {
            let (param, why) = refused(json!({ "prompt": vec!["x"; count], "n": n })).unwrap();
            assert!(param == "prompt" && why.contains("at most 64"), "{why}");
        }
        assert_eq!(refused(json!({ "prompt": [[1, 2], []] })).unwrap().0, "prompt");
    }
}
