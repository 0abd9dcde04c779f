//! Tools and answers of a given form: what the model is shown, and the grammar that its answer is held to.
//!
//! Wherever a call of a tool begins, its name is one that was given, and its arguments are what that tool's schema accepts.

use std::fmt::Write as _;

use hob_gpu::Form;
use hob_gpu::model::template::{CallStyle, Marks};
use serde_json::{Value, json};

use super::refused::Refused;

/// Most tools of one call.
const MAX_TOOLS: usize = 128;
/// Most bytes of tools and of the schema of an answer, together: they are compiled, and written into the prompt.
const MAX_BYTES: usize = 1 << 20;
/// Most calls of one answer: small models like to go on for ever.
const MAX_CALLS: usize = 16;

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// The schema of its arguments.
    pub parameters: Value,
}

impl Tool {
    /// As OpenAI's API and chat templates have it.
    pub fn shown(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] = self.parameters.clone();
        json!({ "type": "function", "function": function })
    }

    /// The same, read: `{"type":"function","function":{...}}`.
    pub fn read(tool: &Value) -> Result<Self, Refused> {
        let wrong = |why: &str| Refused::invalid("tools", format!("a tool {why}"));
        if tool["type"].as_str().is_some_and(|kind| kind != "function") {
            return Err(wrong(&format!("is of type {}; there are functions only", tool["type"])));
        }
        let function = tool.get("function").ok_or_else(|| wrong("has no function"))?;
        let description = function["description"].as_str().map(str::to_owned);
        Self::new(&function["name"], description, function.get("parameters"))
    }

    /// About how many it has.
    fn bytes(&self) -> usize {
        self.name.len() + self.description.as_ref().map_or(0, String::len) + size(&self.parameters)
    }

    /// Checks its parts.
    pub fn new(name: &Value, description: Option<String>, parameters: Option<&Value>) -> Result<Self, Refused> {
        let name = name.as_str().unwrap_or_default();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
        if name.is_empty() || name.len() > 128 || !name.chars().all(good) {
            let why = format!("a tool is called `{}`; use 1 to 128 letters, digits, _ and -", name.escape_debug());
            return Err(Refused::invalid("tools", why));
        }
        let parameters = match parameters {
            None | Some(Value::Null) => json!({ "type": "object" }),
            Some(Value::Object(empty)) if empty.is_empty() => json!({ "type": "object" }),
            Some(schema @ Value::Object(_)) => schema.clone(),
            Some(_) => return Err(Refused::invalid("tools", format!("tool {name} has parameters that are no schema"))),
        };
        Ok(Self { name: name.to_owned(), description, parameters })
    }
}

/// About how many bytes a value has as text.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(list) => list.iter().map(|value| size(value) + 1).sum::<usize>() + 2,
        Value::Object(object) => object.iter().map(|(key, value)| key.len() + size(value) + 4).sum::<usize>() + 2,
        _ => 4,
    }
}

/// Whether tools are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Never.
    None,
    /// As the model likes.
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// What a call asks for beside text.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    tools: Vec<Tool>,
    choice: Choice,
    /// Several tools may be called at once.
    parallel: bool,
    /// What the answer must be where no tool is called.
    answer: Option<Form>,
}

impl Wanted {
    /// Checks that the parts fit each other.
    pub fn new(tools: Vec<Tool>, choice: Choice, parallel: bool, answer: Option<Form>) -> Result<Self, Refused> {
        if tools.len() > MAX_TOOLS {
            return Err(Refused::invalid("tools", format!("{} tools; give up to {MAX_TOOLS}", tools.len())));
        }
        let schema = |form: &Form| if let Form::Schema(schema) = form { size(schema) } else { 0 };
        let bytes = tools.iter().map(Tool::bytes).sum::<usize>() + answer.as_ref().map_or(0, schema);
        if bytes > MAX_BYTES {
            let param = if tools.is_empty() { "response_format" } else { "tools" };
            let why = format!("tools and schemas have {bytes} bytes together; give up to {MAX_BYTES}");
            return Err(Refused::invalid(param, why));
        }
        let wrong = |why: &str| Err(Refused::invalid("tool_choice", why));
        match &choice {
            Choice::Required | Choice::Named(_) if tools.is_empty() => wrong("tool_choice needs tools"),
            Choice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
                wrong(&format!("tool_choice names `{name}`, which is not among the tools"))
            }
            _ => Ok(Self { tools, choice, parallel, answer }),
        }
    }

    /// Whether the model may call tools.
    pub fn calls(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::None
    }

    /// Tools, as templates have them.
    pub fn shown(&self) -> Vec<Value> {
        if self.calls() { self.tools.iter().map(Tool::shown).collect() } else { Vec::new() }
    }

    /// What an answer is held to. `in_thought`: it begins within a thought.
    pub fn form(&self, marks: &Marks, in_thought: bool) -> Option<Form> {
        let thinks = in_thought || marks.thinks;
        if !self.calls() && !thinks {
            return self.answer.clone();
        }
        if !self.calls() && self.answer.is_none() {
            return None;
        }
        let mut grammar = format!("start: {}main\n", thought(marks, in_thought));
        if thinks {
            let close = marks.thought.1.replace('/', "\\/");
            let _ = writeln!(grammar, "opened: {}", literal(marks.thought.0));
            let _ = writeln!(grammar, "thought[lazy]: /(.|\\n)*{close}/\nGAP: /\\n{{0,2}}/");
        }
        if self.calls() {
            self.calls_in(marks, &mut grammar);
        } else {
            grammar += "main: answer\n";
        }
        if let Some(answer) = &self.answer {
            let _ = writeln!(grammar, "answer: {}", rule(answer));
        }
        Some(Form::Grammar(grammar))
    }

    fn calls_in(&self, marks: &Marks, grammar: &mut String) {
        let named = |tool: &&Tool| !matches!(&self.choice, Choice::Named(name) if tool.name != *name);
        let tools: Vec<&Tool> = self.tools.iter().filter(named).collect();
        let forced = self.choice != Choice::Auto;
        let many = self.parallel && !matches!(self.choice, Choice::Named(_));
        let (open, close) = (format!("{}\n", marks.call.0), format!("\n{}", marks.call.1));
        match (marks.calls, forced, self.answer.is_some()) {
            (CallStyle::Bare, true, _) => *grammar += "main: body\n",
            (CallStyle::Bare, false, true) => *grammar += "main: body | answer\n",
            (CallStyle::Bare, false, false) => *grammar += "main: body | TEXT\nTEXT: /([^{ \\n\\t](.|\\n)*)?/\n",
            (CallStyle::Tagged, false, false) => {
                let again = if many { format!("{{0,{MAX_CALLS}}}") } else { "?".to_owned() };
                let mark = marks.call.0;
                let _ = write!(
                    grammar,
                    "main: called{again} TEXT\ncalled: begin body {}\nbegin[lazy]: /(.|\\n)*{mark}\\n/\n\
                     TEXT: /(.|\\n)*/ & ~/(.|\\n)*{mark}(.|\\n)*/\n",
                    literal(&close)
                );
            }
            (CallStyle::Tagged, _, has_answer) => {
                let rest = if many { format!(" again{{0,{}}}", MAX_CALLS - 1) } else { String::new() };
                if many {
                    *grammar += "again: \"\\n\" called\n";
                }
                let or = if has_answer && !forced { " | answer" } else { "" };
                let _ =
                    write!(grammar, "main: called{rest}{or}\ncalled: {} body {}\n", literal(&open), literal(&close));
            }
        }
        let bodies: Vec<String> = (0..tools.len()).map(|n| format!("body{n}")).collect();
        let _ = writeln!(grammar, "body: {}", bodies.join(" | "));
        let key = if marks.calls == CallStyle::Bare { "parameters" } else { "arguments" };
        for (n, tool) in tools.iter().enumerate() {
            let begin = literal(&format!("{{\"name\": {}, \"{key}\": ", Value::from(tool.name.as_str())));
            // A rule for each: references within a schema are to its own root.
            let schema = rule(&Form::Schema(tool.parameters.clone()));
            let _ = writeln!(grammar, "body{n}: {begin} args{n} \"}}\"\nargs{n}: {schema}");
        }
    }
}

fn thought(marks: &Marks, in_thought: bool) -> &'static str {
    match (in_thought, marks.thinks) {
        (true, _) => "thought GAP ",
        (false, true) => "(opened thought GAP)? ",
        (false, false) => "",
    }
}

/// A text as the grammar writes it.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A form as the right side of a rule.
fn rule(form: &Form) -> String {
    let style = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
    let mut schema = match form {
        Form::Schema(schema) => schema.clone(),
        Form::Object => json!({ "type": "object" }),
        Form::Grammar(text) => return text.clone(),
    };
    if let Some(schema) = schema.as_object_mut() {
        schema.entry("x-guidance").or_insert(style);
    }
    format!("%json {schema}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Tool {
        Tool { name: name.into(), description: None, parameters: json!({ "type": "object" }) }
    }

    const MARKS: Marks = Marks {
        thought: ("<think>", "</think>"),
        thinks: false,
        can_choose_to_think: false,
        calls: CallStyle::Tagged,
        call: ("<tool_call>", "</tool_call>"),
        has_tools: false,
    };

    #[test]
    fn parts_must_fit_each_other() {
        let wanted =
            |tools: &[&str], choice| Wanted::new(tools.iter().map(|name| tool(name)).collect(), choice, true, None);
        assert!(wanted(&["a"], Choice::Named("a".into())).is_ok());
        for (tools, choice) in [(&[][..], Choice::Required), (&["a"][..], Choice::Named("b".into()))] {
            assert_eq!(wanted(tools, choice).unwrap_err().param.as_deref(), Some("tool_choice"));
        }
        let long = Tool { description: Some("x".repeat(MAX_BYTES)), ..tool("a") };
        let refused = Wanted::new(vec![long], Choice::Auto, true, None).unwrap_err();
        assert!(
            refused.param.as_deref() == Some("tools") && refused.message.contains("1048576"),
            "{}",
            refused.message
        );
        let schema = Form::Schema(json!({ "enum": vec!["word"; MAX_BYTES / 6] }));
        let refused = Wanted::new(Vec::new(), Choice::Auto, true, Some(schema)).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("response_format"));
        let hidden = wanted(&["a"], Choice::None).unwrap();
        assert!(hidden.shown().is_empty() && hidden.form(&MARKS, false).is_none());
        assert!(
            Tool::new(&"a b".into(), None, None).is_err() && Tool::new(&"a".into(), None, Some(&json!(5))).is_err()
        );
    }

    #[test]
    fn a_form_without_tools_or_thoughts_is_itself() {
        let wanted = Wanted::new(Vec::new(), Choice::Auto, true, Some(Form::Object)).unwrap();
        assert_eq!(wanted.form(&MARKS, false), Some(Form::Object));
        let Some(Form::Grammar(grammar)) = wanted.form(&MARKS, true) else { panic!("a thought comes first") };
        assert!(grammar.starts_with("start: thought GAP main\n") && grammar.contains("main: answer"), "{grammar}");
    }
}
