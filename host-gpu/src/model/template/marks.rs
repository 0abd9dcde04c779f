//! How models write what is not for people: thoughts, and calls of tools; and tools for templates that know none.

use super::json::python;
use crate::ask::Conversation;
use serde_json::{Value as Json, json};

/// What a thought stands between.
pub(super) const THOUGHT: (&str, &str) = ("<think>", "</think>");
/// What a call of a tool stands between, unless a family has its own way.
const CALL: (&str, &str) = ("<tool_call>", "</tool_call>");

/// How a model writes a call of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStyle {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, one for each; also for models whose template knows no
    /// tools: they are told so.
    Tagged,
    /// `{"name": ..., "parameters": {...}}` and nothing else, as Llama 3 does.
    Bare,
}

/// How a model writes what is not for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// What its thoughts stand between.
    pub thought: (&'static str, &'static str),
    /// Whether its template knows of thoughts.
    pub thinks: bool,
    /// Whether it can be told to think or not to.
    pub can_choose_to_think: bool,
    /// How it calls tools.
    pub calls: CallStyle,
    /// What a tagged call stands between.
    pub call: (&'static str, &'static str),
    /// Whether its template shows tools; for others a message does.
    pub has_tools: bool,
}

impl Marks {
    /// The marks of the models that have this template.
    pub fn of(template: Option<&str>) -> Self {
        let source = template.unwrap_or_default();
        let has_tools = shows_tools(source);
        let bare = has_tools && source.contains("\"parameters\"") && !source.contains(CALL.0);
        Self {
            thought: THOUGHT,
            thinks: source.contains(THOUGHT.0) || source.contains(THOUGHT.1),
            can_choose_to_think: source.contains("enable_thinking"),
            calls: if bare { CallStyle::Bare } else { CallStyle::Tagged },
            call: CALL,
            has_tools,
        }
    }
}

/// Whether a template shows tools in a way whose answers we can read.
pub(super) fn shows_tools(source: &str) -> bool {
    source.contains("tools") && (source.contains(CALL.0) || source.contains("\"parameters\""))
}

/// Whether a message calls a tool, or is a tool's answer.
pub(super) fn is_about_tools(message: &Json) -> bool {
    message["role"] == "tool" || message.get("tool_calls").is_some()
}

/// The conversation for templates that know only who says what: tools are described to the model, calls and answers are
/// plain text.
pub(super) fn without_tools(conversation: Conversation) -> Conversation {
    let mut messages: Vec<Json> = conversation.messages.iter().map(plain).collect();
    if !conversation.tools.is_empty() {
        let about = describe(&conversation.tools);
        match messages.first_mut().filter(|first| first["role"] == "system") {
            Some(first) => first["content"] = format!("{}\n\n{about}", text(first, "content")).into(),
            None => messages.insert(0, json!({ "role": "system", "content": about })),
        }
    }
    Conversation { messages, ..conversation }
}

fn text<'a>(message: &'a Json, key: &str) -> &'a str {
    message[key].as_str().unwrap_or_default()
}

/// A message as one that only says something.
fn plain(message: &Json) -> Json {
    let content = text(message, "content");
    if message["role"] == "tool" {
        return json!({ "role": "user", "content": format!("<tool_response>\n{content}\n</tool_response>") });
    }
    let calls = message["tool_calls"].as_array().into_iter().flatten().map(|call| {
        let call = json!({ "name": call["function"]["name"], "arguments": call["function"]["arguments"] });
        format!("{}\n{}\n{}", CALL.0, python(&call), CALL.1)
    });
    let said = (!content.is_empty()).then(|| content.to_owned());
    let content: Vec<String> = said.into_iter().chain(calls).collect();
    json!({ "role": message["role"], "content": content.join("\n") })
}

fn describe(tools: &[Json]) -> String {
    let list: Vec<String> = tools.iter().map(python).collect();
    format!(
        "You may call functions to help with the user's request. They are, one a line:\n<tools>\n{}\n</tools>\n\nTo call \
         one, answer with its name and arguments as JSON, like this:\n{}\n{{\"name\": <name>, \"arguments\": <object>}}\n{}",
        list.join("\n"),
        CALL.0,
        CALL.1
    )
}

/// The conversation with a system message in front put before what the user says first; `None` if there is no such.
pub(super) fn system_in_first(conversation: &Conversation) -> Option<Conversation> {
    let [system, user, rest @ ..] = conversation.messages.as_slice() else { return None };
    if system["role"] != "system" || user["role"] != "user" {
        return None;
    }
    let mut first = user.clone();
    first["content"] = format!("{}\n\n{}", text(system, "content"), text(user, "content")).into();
    let messages = [first].into_iter().chain(rest.iter().cloned()).collect();
    Some(Conversation { messages, ..conversation.clone() })
}

#[cfg(test)]
mod tests {
    use super::super::Template;
    use super::*;

    const PLAIN: &str = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}";

    fn render(source: &str, conversation: &Conversation) -> String {
        Template::with(source, "<s>".into(), "</s>".into(), true).unwrap().render(conversation).unwrap()
    }

    fn with_tool() -> Conversation {
        let call = json!({ "type": "function", "function": { "name": "time", "arguments": { "in": "Rome" } } });
        Conversation {
            messages: vec![
                json!({ "role": "user", "content": "late?" }),
                json!({ "role": "assistant", "content": "", "tool_calls": [call] }),
                json!({ "role": "tool", "content": "23:00" }),
            ],
            tools: vec![json!({ "type": "function", "function": { "name": "time" } })],
            ..Conversation::default()
        }
    }

    #[test]
    fn templates_without_tools_get_them_as_text() {
        let text = render(PLAIN, &with_tool());
        assert!(text.starts_with("[system: You may call") && text.contains(r#"<tools>"#), "{text}");
        assert!(
            text.contains(
                r#"[assistant: <tool_call>
{"arguments": {"in": "Rome"}, "name": "time"}"#
            ) || text.contains(r#"{"name": "time", "arguments": {"in": "Rome"}}"#),
            "{text}"
        );
        assert!(text.contains("[user: <tool_response>\n23:00\n</tool_response>]"), "{text}");
        assert_eq!(render(PLAIN, &Conversation { begun: Some("Well,".into()), ..Conversation::default() }), "Well,");
    }

    #[test]
    fn templates_with_tools_get_them_as_they_are() {
        let source = "{% if tools %}<tool_call>{{ tools | length }}{% endif %}{% for m in messages %}{% if m.tool_calls %}\
            {{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{% endfor %}{{ enable_thinking is defined }}";
        assert_eq!(render(source, &with_tool()), "<tool_call>1{\"in\": \"Rome\"}False");
        let marks = Marks::of(Some(source));
        assert!(marks.has_tools && marks.calls == CallStyle::Tagged && marks.can_choose_to_think && !marks.thinks);
        let llama = "{{ tools }} respond with {\"name\": x, \"parameters\": y}";
        assert_eq!(Marks::of(Some(llama)).calls, CallStyle::Bare);
        assert!(!Marks::of(None).has_tools);
    }

    #[test]
    fn a_template_that_knows_no_system_message_gets_it_with_the_first() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
            {% for m in messages %}[{{ m.content }}]{% endfor %}";
        let messages =
            vec![json!({ "role": "system", "content": "be brief" }), json!({ "role": "user", "content": "hi" })];
        let conversation = Conversation { messages, ..Conversation::default() };
        assert_eq!(render(source, &conversation), "[be brief\n\nhi]");
    }

    #[test]
    fn a_prompt_that_opens_a_thought_is_known() {
        let opens = |source: &str| {
            let template = Template::with(source, String::new(), String::new(), false).unwrap();
            template.pieces(Conversation::default(), std::iter::empty()).unwrap().begins_thought
        };
        assert!(opens("<|Assistant|><think>\n") && !opens("<think></think>x"));
    }
}
