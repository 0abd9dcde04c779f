//! `/api/chat`.

use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::generate::Common;
use super::options::{self, Options};
use super::stream::{Lines, Shape};
use super::{done_reason, keep, now, numbers};
use crate::model_api::ask::Call;
use crate::model_api::body::Given;
use crate::model_api::openai::{conversation, converse};
use crate::model_api::refused::Refused;
use crate::model_api::stream;
use crate::model_api::tools::{Choice, Tool, Wanted};
use crate::request::Body;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(flatten)]
    common: Common,
    #[serde(default)]
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
}

/// Answers a call.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let asked: Asked = body.json().await?;
    let stay = keep::read(asked.common.keep_alive.as_ref())?;
    if asked.messages.is_empty() {
        let reason = call.keep_or_go(&asked.common.model, stay).await?;
        let message = json!({ "role": "assistant", "content": "" });
        let line = json!({ "model": asked.common.model, "created_at": now(), "message": message,
            "done_reason": reason, "done": true });
        return Ok(call.whole(&line));
    }
    let tools = asked.tools.unwrap_or_default().iter().map(Tool::read).collect::<Result<_, _>>()?;
    let form = options::format(asked.common.format.as_ref())?;
    let wanted = Wanted::new(tools, Choice::Auto, true, form)?;
    let messages = asked.messages.into_iter().map(as_openai).collect::<Result<Vec<_>, _>>()?;
    let mut conversation = conversation(messages, wanted.shown())?;
    conversation.think = options::think(asked.common.think.as_ref())?;
    let found = call.join(&asked.common.model).await?;
    asked.common.check_think(&found.model.marks(), conversation.think)?;
    call.keep(&found.name, stay).await;
    let defaults = found.defaults.clone();
    let system = defaults.system.as_deref().filter(|_| conversation.messages.iter().all(|m| m["role"] != "system"));
    if let Some(system) = system {
        conversation.messages.insert(0, json!({ "role": "system", "content": system }));
    }
    let ask = Options::read(asked.common.options, &defaults.parameters)?.ask();
    let mut reply = converse(call, &found, conversation, &wanted, vec![ask]).await?;
    let shape = Shape { model: asked.common.model, chat: true };
    if asked.common.stream != Some(false) {
        return Ok(stream::response(reply, Lines::new(shape)));
    }
    let whole = reply.whole().await?.pop().unwrap_or_default();
    let mut message = json!({ "role": "assistant", "content": whole.text() });
    if let Some(thought) = whole.thought() {
        message["thinking"] = thought.into();
    }
    let calls: Vec<Value> = whole.calls().iter().map(|(name, arguments)| tool_call(name, arguments)).collect();
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let mut line = json!({ "model": shape.model, "created_at": now(), "message": message, "done": true,
        "done_reason": done_reason(whole.end) });
    numbers(&reply, &mut line);
    Ok(call.whole(&line))
}

/// A call of a tool: here its arguments are an object.
pub(super) fn tool_call(name: &str, arguments: &str) -> Value {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({ "function": { "name": name, "arguments": arguments } })
}

/// A message in OpenAI's shape.
fn as_openai(message: Value) -> Result<Value, Refused> {
    let Value::Object(mut message) = message else {
        return Err(Refused::invalid("messages", "a message is no object"));
    };
    if message.get("images").and_then(Value::as_array).is_some_and(|images| !images.is_empty()) {
        return Err(Refused::invalid("messages", "models here read text only; leave images out"));
    }
    for (own, theirs) in [("thinking", "reasoning_content"), ("tool_name", "name")] {
        if let Some(value) = message.remove(own) {
            message.insert(theirs.into(), value);
        }
    }
    Ok(message.into())
}
