//! `/v1/responses`, without a memory: each call brings its conversation along.

use hob_gpu::{Ask, Prompt, Sampling};
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::converse;
use super::form;
use super::messages::conversation;
use super::now;
use super::responses_stream::Events;
use crate::model_api::ask::Call;
use crate::model_api::body::Given;
use crate::model_api::reader::Piece;
use crate::model_api::refused::Refused;
use crate::model_api::reply::{End, Reply};
use crate::model_api::stream;
use crate::request::Body;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    model: String,
    input: Option<Value>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Value>,
    reasoning: Option<Value>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    background: Option<bool>,
}

impl Asked {
    fn check(&self) -> Result<(), Refused> {
        let none = |param: &'static str, what: &str| {
            Err(Refused::invalid(param, format!("{what}; send the whole conversation as input")))
        };
        if self.previous_response_id.is_some() {
            return none("previous_response_id", "responses are not kept here");
        }
        if self.conversation.as_ref().is_some_and(|conversation| !conversation.is_null()) {
            return none("conversation", "conversations are not kept here");
        }
        if self.background == Some(true) {
            return Err(Refused::invalid("background", "a response ends with its connection; leave background out"));
        }
        if self.max_output_tokens == Some(0) {
            return Err(Refused::invalid("max_output_tokens", "max_output_tokens is 0; give 1 or more"));
        }
        Ok(())
    }

    /// Tools as chats have them.
    fn tools(&self) -> Option<Vec<Value>> {
        let chat = |tool: &Value| match tool.get("function") {
            Some(_) => tool.clone(),
            None => json!({ "type": tool["type"], "function": {
                "name": tool["name"], "description": tool["description"], "parameters": tool["parameters"] } }),
        };
        self.tools.as_ref().map(|tools| tools.iter().map(chat).collect())
    }

    /// Messages as chats have them.
    fn messages(&self) -> Result<Vec<Value>, Refused> {
        let wrong = |why: String| Refused::invalid("input", why);
        let mut all: Vec<Value> = Vec::new();
        all.extend(self.instructions.as_ref().map(|text| json!({ "role": "system", "content": text })));
        match &self.input {
            Some(Value::String(text)) => all.push(json!({ "role": "user", "content": text })),
            Some(Value::Array(items)) => {
                for item in items {
                    match item["type"].as_str() {
                        None | Some("message") => all.push(item.clone()),
                        Some("function_call") => {
                            let function = json!({ "name": item["name"], "arguments": item["arguments"] });
                            let call = json!({ "id": item["call_id"], "type": "function", "function": function });
                            match all.last_mut().and_then(|last| last.get_mut("tool_calls")?.as_array_mut()) {
                                Some(calls) => calls.push(call),
                                None => all.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] })),
                            }
                        }
                        Some("function_call_output") => {
                            let content = &item["output"];
                            all.push(json!({ "role": "tool", "tool_call_id": item["call_id"], "content": content }));
                        }
                        Some("reasoning") => {}
                        Some(kind) => {
                            return Err(wrong(format!("input has an item of type `{kind}`, which is not there")));
                        }
                    }
                }
            }
            _ => return Err(wrong("input is missing; give a text or a list of items".into())),
        }
        Ok(all)
    }
}

/// Answers a call.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let asked: Asked = body.json().await?;
    asked.check()?;
    let format = asked.text.as_ref().and_then(|text| text.get("format"));
    let tools = asked.tools();
    let wanted = form::wanted(tools.as_deref(), asked.tool_choice.as_ref(), asked.parallel_tool_calls, format)?;
    let mut conversation = conversation(asked.messages()?, wanted.shown())?;
    let effort = asked.reasoning.as_ref().and_then(|reasoning| reasoning["effort"].as_str());
    conversation.think = effort.map(|effort| !matches!(effort, "none" | "minimal"));
    let mut ask = Ask::new(Prompt::Tokens(Vec::new()));
    ask.max_tokens = asked.max_output_tokens;
    ask.sampling = Sampling {
        temperature: asked.temperature.unwrap_or(1.0).clamp(0.0, 2.0),
        top_p: asked.top_p.unwrap_or(1.0).clamp(f32::MIN_POSITIVE, 1.0),
        ..Sampling::default()
    };
    let found = call.join(&asked.model).await?;
    let mut reply = converse(call, &found, conversation, &wanted, vec![ask]).await?;
    let format = format.cloned().unwrap_or_else(|| json!({ "type": "text" }));
    let shape = Shape {
        id: call.id().replace('-', ""),
        base: json!({
            "id": format!("resp_{}", call.id().replace('-', "")), "object": "response", "created_at": now(),
            "status": "in_progress", "background": false, "error": null, "incomplete_details": null,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "model": found.name.to_string(), "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls.unwrap_or(true), "previous_response_id": null,
            "reasoning": { "effort": effort, "summary": null }, "store": false,
            "temperature": asked.temperature.unwrap_or(1.0), "text": { "format": format },
            "tool_choice": asked.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "tools": asked.tools.clone().unwrap_or_default(), "top_p": asked.top_p.unwrap_or(1.0),
            "truncation": "disabled", "usage": null, "metadata": {},
        }),
    };
    if asked.stream == Some(true) {
        return Ok(stream::response(reply, Events::new(shape)));
    }
    let whole = reply.whole().await?.pop().unwrap_or_default();
    let mut items = Items::default();
    whole.pieces.into_iter().for_each(|piece| items.add(piece));
    let output = items.all.iter().enumerate().map(|(n, item)| item.view(&shape.id, n, "completed"));
    Ok(call.whole(&shape.complete(output.collect(), whole.end, &reply)))
}

/// What all events of a response have.
pub(super) struct Shape {
    pub id: String,
    pub base: Value,
}

impl Shape {
    /// The response at its end.
    pub fn complete(&self, output: Vec<Value>, end: Option<End>, reply: &Reply) -> Value {
        let mut response = self.base.clone();
        let counts = reply.counts(1);
        let cut = matches!(end, Some(End::Length | End::Budget));
        response["status"] = if cut { "incomplete" } else { "completed" }.into();
        if cut {
            response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        response["output"] = output.into();
        response["usage"] = json!({
            "input_tokens": counts.prompt, "input_tokens_details": { "cached_tokens": counts.cached },
            "output_tokens": counts.generated, "output_tokens_details": { "reasoning_tokens": counts.thought },
            "total_tokens": counts.prompt + counts.generated,
        });
        response
    }
}

/// What an answer is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Thought(String),
    Text(String),
    Call(String, String),
}

impl Item {
    /// As the API tells it; `n` is its place.
    pub fn view(&self, id: &str, n: usize, status: &str) -> Value {
        match self {
            Self::Thought(text) => json!({
                "id": format!("rs_{id}_{n}"), "type": "reasoning", "summary": [],
                "content": [{ "type": "reasoning_text", "text": text }],
            }),
            Self::Text(text) => {
                let content = match status {
                    "completed" => json!([part(text)]),
                    _ => json!([]),
                };
                json!({ "id": format!("msg_{id}_{n}"), "type": "message", "status": status, "role": "assistant",
                    "content": content })
            }
            Self::Call(name, arguments) => json!({
                "id": format!("fc_{id}_{n}"), "type": "function_call", "status": status,
                "call_id": format!("call_{id}_{n}"), "name": name, "arguments": arguments,
            }),
        }
    }
}

/// A part of a message.
pub(super) fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

/// Items, the last of which grows.
#[derive(Debug, Default)]
pub(super) struct Items {
    pub all: Vec<Item>,
}

impl Items {
    pub fn add(&mut self, piece: Piece) {
        match (self.all.last_mut(), piece) {
            (Some(Item::Thought(text)), Piece::Thought(more)) | (Some(Item::Text(text)), Piece::Text(more)) => {
                text.push_str(&more);
            }
            (Some(Item::Call(_, arguments)), Piece::Arguments(more)) => arguments.push_str(&more),
            (_, Piece::Thought(text)) => self.all.push(Item::Thought(text)),
            (_, Piece::Text(text)) => self.all.push(Item::Text(text)),
            (_, Piece::Call(name)) => self.all.push(Item::Call(name, String::new())),
            (_, Piece::Arguments(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_messages_and_pieces_become_items() {
        let asked: Asked = serde_json::from_value(json!({
            "instructions": "be brief",
            "input": [
                { "role": "user", "content": [{ "type": "input_text", "text": "hi" }] },
                { "type": "function_call", "call_id": "1", "name": "f", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "1", "output": "2" },
            ],
        }))
        .unwrap();
        let roles: Vec<Value> = asked.messages().unwrap().iter().map(|message| message["role"].clone()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        let mut items = Items::default();
        for piece in
            [Piece::Text("a".into()), Piece::Text("b".into()), Piece::Call("f".into()), Piece::Arguments("{}".into())]
        {
            items.add(piece);
        }
        assert_eq!(items.all, [Item::Text("ab".into()), Item::Call("f".into(), "{}".into())]);
        let kept: Asked = serde_json::from_value(json!({ "input": "x", "previous_response_id": "resp_1" })).unwrap();
        assert_eq!(kept.check().unwrap_err().param.as_deref(), Some("previous_response_id"));
    }
}
