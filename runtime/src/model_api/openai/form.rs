//! `response_format`, `tools` and `tool_choice`, read.

use hob_gpu::Form;
use serde_json::Value;

use crate::model_api::refused::Refused;
use crate::model_api::tools::{Choice, Tool, Wanted};

/// What a chat asks for beside text.
pub(super) fn wanted(
    tools: Option<&[Value]>,
    choice: Option<&Value>,
    parallel: Option<bool>,
    format: Option<&Value>,
) -> Result<Wanted, Refused> {
    let tools: Vec<Tool> = tools.unwrap_or_default().iter().map(Tool::read).collect::<Result<_, _>>()?;
    Wanted::new(tools, tool_choice(choice)?, parallel != Some(false), response_format(format)?)
}

fn tool_choice(choice: Option<&Value>) -> Result<Choice, Refused> {
    match choice {
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(Choice::None),
            "auto" => Ok(Choice::Auto),
            "required" | "any" => Ok(Choice::Required),
            other => {
                Err(Refused::invalid("tool_choice", format!("tool_choice is `{other}`; give none, auto or required")))
            }
        },
        Some(named) => match named["function"]["name"].as_str().or_else(|| named["name"].as_str()) {
            Some(name) => Ok(Choice::Named(name.to_owned())),
            None => Err(Refused::invalid("tool_choice", "tool_choice names no function")),
        },
    }
}

fn response_format(format: Option<&Value>) -> Result<Option<Form>, Refused> {
    let wrong = |why: String| Refused::invalid("response_format", why);
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Form::Object)),
        Some("json_schema") => {
            // The Responses API has no `json_schema` around it.
            let inner = format.get("json_schema").unwrap_or(format);
            match inner.get("schema") {
                Some(schema @ Value::Object(_)) => Ok(Some(Form::Schema(schema.clone()))),
                _ => Err(wrong("response_format has no json_schema.schema".into())),
            }
        }
        _ => Err(wrong("response_format has no type out of text, json_object and json_schema".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn formats_and_choices_are_read_or_refused() {
        let schema = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "object" } } });
        assert!(matches!(response_format(Some(&schema)), Ok(Some(Form::Schema(_)))));
        assert!(matches!(response_format(Some(&json!({ "type": "json_object" }))), Ok(Some(Form::Object))));
        assert!(matches!(response_format(Some(&json!({ "type": "text" }))), Ok(None)));
        for bad in [json!({}), json!({ "type": "xml" }), json!({ "type": "json_schema" }), json!("json")] {
            assert_eq!(response_format(Some(&bad)).unwrap_err().param.as_deref(), Some("response_format"), "{bad}");
        }
        let named = json!({ "type": "function", "function": { "name": "f" } });
        assert_eq!(tool_choice(Some(&named)).unwrap(), Choice::Named("f".into()));
        assert_eq!(tool_choice(None).unwrap(), Choice::Auto);
        assert!(tool_choice(Some(&json!("maybe"))).is_err() && tool_choice(Some(&json!({ "type": "x" }))).is_err());
    }
}
