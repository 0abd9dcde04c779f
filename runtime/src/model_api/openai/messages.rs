//! A chat's messages as clients send them, to a conversation as templates know it.

use hob_gpu::Conversation;
use serde_json::{Map, Value, json};

use crate::model_api::refused::Refused;

/// Reads `messages` and `tools`.
pub(in crate::model_api) fn conversation(messages: Vec<Value>, tools: Vec<Value>) -> Result<Conversation, Refused> {
    if messages.is_empty() {
        return Err(Refused::invalid("messages", "messages is empty; give at least one"));
    }
    let messages = messages.iter().enumerate().map(|(n, message)| read(message, n)).collect::<Result<_, _>>()?;
    Ok(Conversation { messages, tools, ..Conversation::default() })
}

fn wrong(n: usize, why: &str) -> Refused {
    Refused::invalid("messages", format!("messages[{n}] {why}"))
}

fn read(message: &Value, n: usize) -> Result<Value, Refused> {
    let Some(given) = message.as_object() else { return Err(wrong(n, "is no object")) };
    let role = match given.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool" | "function") => "tool",
        _ => return Err(wrong(n, "has no role out of system, developer, user, assistant and tool")),
    };
    let mut out = Map::new();
    out.insert("role".into(), role.into());
    out.insert("content".into(), text(given.get("content"), n)?.into());
    for key in ["name", "tool_call_id"] {
        if let Some(text) = given.get(key).and_then(Value::as_str) {
            out.insert(key.into(), text.into());
        }
    }
    let thought = ["reasoning_content", "reasoning"].iter().find_map(|key| given.get(*key)?.as_str());
    if let Some(thought) = thought.filter(|_| role == "assistant") {
        out.insert("reasoning_content".into(), thought.into());
    }
    if let Some(calls) = given.get("tool_calls").and_then(Value::as_array).filter(|calls| !calls.is_empty()) {
        let calls = calls.iter().map(|call| tool_call(call, n)).collect::<Result<Vec<_>, _>>()?;
        out.insert("tool_calls".into(), calls.into());
    }
    Ok(out.into())
}

/// The text of a message: a string, or parts of which all are text.
fn text(content: Option<&Value>, n: usize) -> Result<String, Refused> {
    let part = |part: &Value| match (part["type"].as_str(), &part["text"], &part["refusal"]) {
        (Some("text" | "input_text" | "output_text"), Value::String(text), _) => Ok(text.clone()),
        (Some("refusal"), _, Value::String(text)) => Ok(text.clone()),
        (Some(kind), _, _) => Err(wrong(n, &format!("has a part of type `{kind}`; models here read text only"))),
        (None, _, _) => Err(wrong(n, "has a part without a type")),
    };
    match content {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => Ok(parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.join("\n")),
        Some(_) => Err(wrong(n, "has a content that is neither text nor parts")),
    }
}

/// A call as templates expect it: its arguments are JSON, not a text with JSON in it.
fn tool_call(call: &Value, n: usize) -> Result<Value, Refused> {
    let function = &call["function"];
    let Some(name) = function["name"].as_str() else {
        return Err(wrong(n, "has a tool call without a function's name"));
    };
    let arguments = match &function["arguments"] {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
        Value::Null => json!({}),
        other => other.clone(),
    };
    let id = call["id"].as_str().unwrap_or_default();
    Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(messages: Value) -> Result<Vec<Value>, Refused> {
        super::conversation(messages.as_array().unwrap().clone(), Vec::new()).map(|conversation| conversation.messages)
    }

    #[test]
    fn messages_become_what_templates_know() {
        let read = conversation(json!([
            { "role": "developer", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [
                { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } }] },
            { "role": "tool", "tool_call_id": "1", "content": "2" },
        ]))
        .unwrap();
        assert_eq!(read[0], json!({ "role": "system", "content": "a\nb" }));
        assert_eq!((&read[1]["content"], &read[1]["reasoning_content"]), (&json!(""), &json!("hm")));
        assert_eq!(read[1]["tool_calls"][0]["function"]["arguments"], json!({ "x": 1 }));
        assert_eq!(read[2], json!({ "role": "tool", "content": "2", "tool_call_id": "1" }));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:" } }] }]);
        for (messages, why) in [
            (json!([]), "empty"),
            (json!(["x"]), "messages[0] is no object"),
            (json!([{ "role": "king", "content": "x" }]), "messages[0] has no role"),
            (image, "`image_url`"),
            (json!([{ "role": "user", "content": 5 }]), "neither text"),
            (json!([{ "role": "assistant", "tool_calls": [{}] }]), "name"),
        ] {
            let refused = conversation(messages).unwrap_err();
            assert!(
                refused.message.contains(why) && refused.param.as_deref() == Some("messages"),
                "{}",
                refused.message
            );
        }
    }
}
