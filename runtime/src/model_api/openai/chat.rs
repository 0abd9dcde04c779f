//! `/v1/chat/completions`.

use hob_gpu::{Ask, Conversation, Prompt};
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat_stream::Chat;
use super::options::Options;
use super::{FINGERPRINT, finish_reason, form, logprobs, messages, now, usage};
use crate::model_api::ask::{Call, Found};
use crate::model_api::body::Given;
use crate::model_api::reader::Reader;
use crate::model_api::refused::Refused;
use crate::model_api::reply::{Reply, Whole};
use crate::model_api::stream;
use crate::model_api::tools::Wanted;
use crate::request::Body;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(flatten)]
    options: Options,
    #[serde(default)]
    messages: Vec<Value>,
    max_completion_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Value>,
    reasoning_effort: Option<String>,
    /// vLLM's and llama.cpp's way to tell the template something.
    chat_template_kwargs: Option<Value>,
}

/// Answers a call.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let mut asked: Asked = body.json().await?;
    limit(&mut asked)?;
    let wanted = form::wanted(
        asked.tools.as_deref(),
        asked.tool_choice.as_ref(),
        asked.parallel_tool_calls,
        asked.response_format.as_ref(),
    )?;
    let logprobs = logprobs_wanted(&asked)?;
    let mut conversation = messages::conversation(std::mem::take(&mut asked.messages), wanted.shown())?;
    conversation.think = think(&asked);
    let (streams, tells, name) = (asked.options.streams(), asked.options.tells_usage(), asked.options.model.clone());
    let asks = asked.options.asks(logprobs)?;
    let found = call.join(&name).await?;
    let mut reply = converse(call, &found, conversation, &wanted, asks).await?;
    let shape = Shape { id: format!("chatcmpl-{}", call.id()), created: now(), model: found.name.to_string() };
    if streams {
        return Ok(stream::response(reply, Chat::new(shape, tells, logprobs.is_some())));
    }
    let all = reply.whole().await?;
    let choices = all.iter().enumerate().map(|(n, whole)| shape.choice(n, whole, logprobs.is_some()));
    let choices: Vec<Value> = choices.collect();
    let mut answer = shape.object("chat.completion", choices.into());
    answer["usage"] = usage(reply.counts(reply.choices()));
    Ok(call.whole(&answer))
}

/// Starts a conversation's answers, held to what is wanted; `asks` lack their prompt. It is written down once for all of them.
pub(in crate::model_api) async fn converse(
    call: &Call,
    found: &Found,
    mut conversation: Conversation,
    wanted: &Wanted,
    asks: Vec<Ask>,
) -> Result<Reply, Refused> {
    let marks = found.model.marks();
    // One that is asked for JSON and may choose does not think first, unless it is told to.
    if marks.can_choose_to_think && conversation.think.is_none() && wanted.form(&marks, false).is_some() {
        conversation.think = Some(false);
    }
    let written = call.write(found, conversation).await?;
    let in_thought = marks.thinks && written.begins_thought;
    let form = wanted.form(&marks, in_thought);
    let prompt_tokens = written.tokens.len();
    let mut reply = call.start(found, vec![Prompt::Tokens(written.tokens)], form, asks).await?;
    reply.prompt_tokens = prompt_tokens;
    Ok(reply.read_by(|| Reader::new(marks, in_thought, wanted.calls())))
}

/// Takes the one of two names for the same that is given.
fn limit(asked: &mut Asked) -> Result<(), Refused> {
    match (asked.max_completion_tokens, asked.options.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            let why = format!("max_completion_tokens is {new} and max_tokens {old}; give one of them");
            Err(Refused::invalid("max_completion_tokens", why))
        }
        (new, old) => {
            asked.options.max_tokens = new.or(old);
            Ok(())
        }
    }
}

fn logprobs_wanted(asked: &Asked) -> Result<Option<u32>, Refused> {
    match (asked.logprobs, asked.top_logprobs) {
        (Some(true), top) => match top.unwrap_or(0) {
            top @ 0..=20 => Ok(Some(top)),
            top => Err(Refused::invalid("top_logprobs", format!("top_logprobs is {top}; give 0 to 20"))),
        },
        (_, Some(top)) if top > 0 => Err(Refused::invalid("top_logprobs", "top_logprobs need `\"logprobs\": true`")),
        _ => Ok(None),
    }
}

fn think(asked: &Asked) -> Option<bool> {
    let told = asked.chat_template_kwargs.as_ref().and_then(|options| options["enable_thinking"].as_bool());
    told.or(asked.reasoning_effort.as_ref().map(|effort| effort != "none" && effort != "minimal"))
}

/// What all parts of an answer have.
pub(super) struct Shape {
    pub id: String,
    created: u64,
    model: String,
}

impl Shape {
    pub fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        })
    }

    /// The id of a call that choice `n` makes.
    pub fn call_id(&self, choice: usize, n: usize) -> String {
        format!("call_{}_{choice}_{n}", self.id.trim_start_matches("chatcmpl-").replace('-', "_"))
    }

    fn choice(&self, n: usize, whole: &Whole, with_logprobs: bool) -> Value {
        let (text, calls) = (whole.text(), whole.calls());
        let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if let Some(thought) = whole.thought() {
            message["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            let call = |(at, (name, arguments)): (usize, (String, String))| {
                let function = json!({ "name": name, "arguments": arguments });
                json!({ "id": self.call_id(n, at), "type": "function", "function": function })
            };
            message["tool_calls"] = calls.into_iter().enumerate().map(call).collect();
        }
        let logprobs = if with_logprobs { logprobs::chat(&whole.logprobs) } else { Value::Null };
        json!({ "index": n, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(whole.end) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_api::reader::Piece;
    use crate::model_api::reply::End;

    fn asked(text: &str) -> Asked {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn two_names_for_one_thing_must_agree() {
        let mut both = asked(r#"{"max_tokens":4,"max_completion_tokens":4}"#);
        limit(&mut both).unwrap();
        assert_eq!(both.options.max_tokens, Some(4));
        let refused = limit(&mut asked(r#"{"max_tokens":4,"max_completion_tokens":5}"#)).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("max_completion_tokens"));
    }

    #[test]
    fn logprobs_must_be_wanted_to_be_counted() {
        assert_eq!(logprobs_wanted(&asked(r#"{"logprobs":true,"top_logprobs":3}"#)).unwrap(), Some(3));
        assert_eq!(logprobs_wanted(&asked(r#"{"logprobs":true}"#)).unwrap(), Some(0));
        assert_eq!(logprobs_wanted(&asked(r#"{"logprobs":false,"top_logprobs":0}"#)).unwrap(), None);
        for bad in [r#"{"top_logprobs":3}"#, r#"{"logprobs":true,"top_logprobs":21}"#] {
            assert_eq!(logprobs_wanted(&asked(bad)).unwrap_err().param.as_deref(), Some("top_logprobs"));
        }
    }

    #[test]
    fn an_answer_that_calls_has_no_content() {
        let shape = Shape { id: "chatcmpl-ab-1".into(), created: 1, model: "m".into() };
        let pieces = vec![Piece::Thought("hm".into()), Piece::Call("f".into()), Piece::Arguments("{}".into())];
        let choice = shape.choice(0, &Whole { pieces, end: Some(End::Calls), ..Whole::default() }, false);
        let call = json!({ "id": "call_ab_1_0_0", "type": "function", "function": { "name": "f", "arguments": "{}" } });
        assert_eq!(choice["message"]["tool_calls"], json!([call]));
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&Value::Null, &json!("tool_calls")));
        assert_eq!(choice["message"]["reasoning_content"], json!("hm"));
    }
}
