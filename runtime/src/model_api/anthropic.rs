//! Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`.

use hob_gpu::{Ask, Prompt, Sampling};
use http::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ask::Call;
use super::body::Given;
use super::openai::{conversation, converse};
use super::reader::Piece;
use super::refused::{Dialect, Refused};
use super::reply::{End, Reply, Said};
use super::stream::{self, Out, Voice};
use super::tools::{Choice, Tool, Wanted};
use crate::request::Body;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    model: String,
    max_tokens: Option<u32>,
    #[serde(default)]
    messages: Vec<Value>,
    system: Option<Value>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    thinking: Option<Value>,
}

impl Asked {
    fn wanted(&self) -> Result<Wanted, Refused> {
        let tool = |tool: &Value| {
            let description = tool["description"].as_str().map(str::to_owned);
            Tool::new(&tool["name"], description, tool.get("input_schema"))
        };
        let tools = self.tools.iter().flatten().map(tool).collect::<Result<_, _>>()?;
        let choice = self.tool_choice.as_ref();
        let parallel = choice.is_none_or(|choice| choice["disable_parallel_tool_use"] != true);
        let choice = match choice.map(|choice| (choice["type"].as_str(), choice["name"].as_str())) {
            None | Some((Some("auto"), _)) => Choice::Auto,
            Some((Some("none"), _)) => Choice::None,
            Some((Some("any"), _)) => Choice::Required,
            Some((Some("tool"), Some(name))) => Choice::Named(name.to_owned()),
            Some(_) => return Err(Refused::invalid("tool_choice", "tool_choice is none of auto, any, tool and none")),
        };
        Wanted::new(tools, choice, parallel, None)
    }

    /// The conversation in OpenAI's shape; an answer that is begun comes last.
    fn conversation(&mut self, wanted: &Wanted) -> Result<hob_gpu::Conversation, Refused> {
        let mut all = Vec::new();
        if let Some(system) = &self.system {
            all.push(json!({ "role": "system", "content": text_of(system)? }));
        }
        for message in std::mem::take(&mut self.messages) {
            turns(&message, &mut all)?;
        }
        let begun = all.pop_if(|last| last["role"] == "assistant" && last.get("tool_calls").is_none());
        let mut conversation = conversation(all, wanted.shown())?;
        conversation.begun = begun.and_then(|last| Some(last["content"].as_str()?.to_owned()));
        let thinking = self.thinking.as_ref().and_then(|thinking| thinking["type"].as_str());
        conversation.think = thinking.map(|kind| kind != "disabled");
        Ok(conversation)
    }
}

/// A text, or blocks of which all are text.
fn text_of(content: &Value) -> Result<String, Refused> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(blocks) => {
            let text = |block: &Value| match block["text"].as_str() {
                Some(text) if block["type"] == "text" => Ok(text.to_owned()),
                _ => Err(Refused::invalid(
                    "messages",
                    format!("a block of type {}; models here read text only", block["type"]),
                )),
            };
            Ok(blocks.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(Refused::invalid("messages", "a content is neither text nor blocks")),
    }
}

/// A message as one or several of OpenAI's: answers of tools are messages there, and blocks here.
fn turns(message: &Value, out: &mut Vec<Value>) -> Result<(), Refused> {
    let role = message["role"].as_str().unwrap_or_default();
    let Some(blocks) = message["content"].as_array() else {
        out.push(json!({ "role": role, "content": text_of(&message["content"])? }));
        return Ok(());
    };
    let (mut texts, mut calls, mut thought) = (Vec::new(), Vec::new(), None);
    for block in blocks {
        match block["type"].as_str() {
            Some("tool_result") => {
                let content = text_of(&block["content"])?;
                out.push(json!({ "role": "tool", "tool_call_id": block["tool_use_id"], "content": content }));
            }
            Some("tool_use") => {
                let function = json!({ "name": block["name"], "arguments": block["input"] });
                calls.push(json!({ "id": block["id"], "type": "function", "function": function }));
            }
            Some("thinking") => thought = block["thinking"].as_str(),
            Some("redacted_thinking") => {}
            _ => texts.push(text_of(&json!([block]))?),
        }
    }
    if texts.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let mut turn = json!({ "role": role, "content": texts.join("\n") });
    if let Some(thought) = thought {
        turn["reasoning_content"] = thought.into();
    }
    if !calls.is_empty() {
        turn["tool_calls"] = calls.into();
    }
    out.push(turn);
    Ok(())
}

/// Answers `/v1/messages`.
pub(super) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let mut asked: Asked = body.json().await?;
    let wanted = asked.wanted()?;
    let conversation = asked.conversation(&wanted)?;
    let Some(max_tokens) = asked.max_tokens.filter(|most| *most > 0) else {
        return Err(Refused::invalid("max_tokens", "max_tokens: field required"));
    };
    let mut ask = Ask::new(Prompt::Tokens(Vec::new()));
    ask.max_tokens = Some(max_tokens);
    ask.stop = asked.stop_sequences.unwrap_or_default();
    ask.sampling = Sampling {
        temperature: asked.temperature.unwrap_or(1.0).clamp(0.0, 2.0),
        top_p: asked.top_p.unwrap_or(1.0).clamp(f32::MIN_POSITIVE, 1.0),
        top_k: asked.top_k.unwrap_or(0),
        ..Sampling::default()
    };
    let found = call.join(&asked.model).await?;
    let mut reply = converse(call, &found, conversation, &wanted, vec![ask]).await?;
    let shape = Shape { id: format!("msg_{}", call.id().replace('-', "")), model: asked.model };
    if asked.stream == Some(true) {
        return Ok(stream::response(reply, Blocks { shape, open: None, index: 0, calls: 0, end: None }));
    }
    let whole = reply.whole().await?.pop().unwrap_or_default();
    let mut content = Vec::new();
    if let Some(thought) = whole.thought() {
        content.push(json!({ "type": "thinking", "thinking": thought, "signature": "" }));
    }
    let text = whole.text();
    if !text.is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    for (n, (name, arguments)) in whole.calls().into_iter().enumerate() {
        let input: Value = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({ "type": "tool_use", "id": shape.call_id(n), "name": name, "input": input }));
    }
    let message = shape.message(content.into(), whole.end, usage(&reply));
    Ok(call.whole(&message))
}

/// Answers `/v1/messages/count_tokens`.
pub(super) async fn count(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let mut asked: Asked = body.json().await?;
    let wanted = asked.wanted()?;
    let conversation = asked.conversation(&wanted)?;
    let found = call.join(&asked.model).await?;
    let written = call.write(&found, conversation).await?;
    Ok(call.whole(&json!({ "input_tokens": written.tokens.len() })))
}

fn usage(reply: &Reply) -> Value {
    let counts = reply.counts(1);
    json!({
        "input_tokens": counts.prompt - counts.cached, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached, "output_tokens": counts.generated,
    })
}

fn stop_reason(end: Option<End>) -> &'static str {
    match end {
        Some(End::Calls) => "tool_use",
        Some(End::Length | End::Budget) => "max_tokens",
        Some(End::Stop) | None => "end_turn",
    }
}

struct Shape {
    id: String,
    model: String,
}

impl Shape {
    fn message(&self, content: Value, end: Option<End>, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": end.map(|end| stop_reason(Some(end))), "stop_sequence": null, "usage": usage,
        })
    }

    fn call_id(&self, n: usize) -> String {
        format!("toolu_{}_{n}", self.id.trim_start_matches("msg_"))
    }
}

/// The same in blocks, as they come.
struct Blocks {
    shape: Shape,
    /// The kind of the block that is open.
    open: Option<&'static str>,
    /// Its number.
    index: usize,
    calls: usize,
    end: Option<End>,
}

impl Blocks {
    fn open(&mut self, kind: &'static str, block: &Value, out: &mut Out) {
        self.close(out);
        self.open = Some(kind);
        let start = json!({ "type": "content_block_start", "index": self.index, "content_block": block });
        out.named("content_block_start", &start);
    }

    fn close(&mut self, out: &mut Out) {
        if self.open.take().is_some() {
            out.named("content_block_stop", &json!({ "type": "content_block_stop", "index": self.index }));
            self.index += 1;
        }
    }

    fn delta(&self, kind: &str, key: &str, text: &str, out: &mut Out) {
        let mut delta = Map::new();
        delta.insert("type".into(), kind.into());
        delta.insert(key.into(), text.into());
        let event = json!({ "type": "content_block_delta", "index": self.index, "delta": delta });
        out.named("content_block_delta", &event);
    }
}

impl Voice for Blocks {
    fn begin(&mut self, reply: &Reply, out: &mut Out) {
        // How much of the prompt is found in the cache is known later: the last event says that.
        let begun = json!({
            "input_tokens": reply.prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 0,
        });
        let message = self.shape.message(json!([]), None, begun);
        out.named("message_start", &json!({ "type": "message_start", "message": message }));
        out.named("ping", &json!({ "type": "ping" }));
    }

    fn say(&mut self, said: Said, _reply: &Reply, out: &mut Out) {
        for piece in said.pieces {
            match piece {
                Piece::Text(text) => {
                    if self.open != Some("text") {
                        self.open("text", &json!({ "type": "text", "text": "" }), out);
                    }
                    self.delta("text_delta", "text", &text, out);
                }
                Piece::Thought(text) => {
                    if self.open != Some("thinking") {
                        self.open("thinking", &json!({ "type": "thinking", "thinking": "", "signature": "" }), out);
                    }
                    self.delta("thinking_delta", "thinking", &text, out);
                }
                Piece::Call(name) => {
                    let id = self.shape.call_id(self.calls);
                    self.calls += 1;
                    self.open("tool_use", &json!({ "type": "tool_use", "id": id, "name": name, "input": {} }), out);
                }
                Piece::Arguments(text) => self.delta("input_json_delta", "partial_json", &text, out),
            }
        }
        self.end = said.end.or(self.end);
    }

    fn end(&mut self, reply: &Reply, out: &mut Out) {
        self.close(out);
        let delta = json!({ "stop_reason": stop_reason(self.end), "stop_sequence": null });
        out.named("message_delta", &json!({ "type": "message_delta", "delta": delta, "usage": usage(reply) }));
        out.named("message_stop", &json!({ "type": "message_stop" }));
    }

    fn fault(&mut self, refused: &Refused, out: &mut Out) {
        out.named("error", &refused.json_in(Dialect::Anthropic));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_turns() {
        let body = json!({
            "model": "m", "max_tokens": 5, "system": [{ "type": "text", "text": "be brief" }],
            "tools": [{ "name": "f", "input_schema": { "type": "object" } }], "tool_choice": { "type": "any" },
            "messages": [
                { "role": "user", "content": "hi" },
                { "role": "assistant", "content": [{ "type": "text", "text": "well" },
                    { "type": "tool_use", "id": "1", "name": "f", "input": { "x": 1 } }] },
                { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "1", "content": "2" }] },
                { "role": "assistant", "content": "It is" },
            ],
        });
        let mut asked: Asked = serde_json::from_value(body).unwrap();
        let wanted = asked.wanted().unwrap();
        let conversation = asked.conversation(&wanted).unwrap();
        let roles: Vec<_> = conversation.messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(conversation.messages[2]["tool_calls"][0]["function"]["arguments"], json!({ "x": 1 }));
        assert_eq!((conversation.begun.as_deref(), conversation.tools.len()), (Some("It is"), 1));
        let image = json!({ "messages": [{ "role": "user", "content": [{ "type": "image" }] }] });
        let mut asked: Asked = serde_json::from_value(image).unwrap();
        let wanted = asked.wanted().unwrap();
        assert!(asked.conversation(&wanted).unwrap_err().message.contains("image"));
    }
}
