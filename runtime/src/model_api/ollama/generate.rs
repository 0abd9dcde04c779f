//! `/api/generate`: an answer to a prompt, framed by the model's template unless `raw` says not to.

use hob_gpu::model::template::Marks;
use hob_gpu::{Conversation, Prompt};
use http::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::options::{self, Options};
use super::stream::{Lines, Shape};
use super::{done_reason, keep, now, numbers};
use crate::model_api::ask::Call;
use crate::model_api::body::Given;
use crate::model_api::openai::converse;
use crate::model_api::refused::Refused;
use crate::model_api::stream;
use crate::model_api::tools::{Choice, Wanted};
use crate::request::Body;

/// What both ways to ask have.
#[derive(Debug, Deserialize)]
pub(super) struct Common {
    #[serde(default, alias = "name")]
    pub model: String,
    pub stream: Option<bool>,
    pub format: Option<Value>,
    pub options: Option<Map<String, Value>>,
    pub keep_alive: Option<Value>,
    pub think: Option<Value>,
}

impl Common {
    /// Whether the model can do as it is told.
    pub fn check_think(&self, marks: &Marks, think: Option<bool>) -> Result<(), Refused> {
        match think {
            Some(true) if !marks.thinks => {
                Err(Refused::invalid("think", format!("\"{}\" does not support thinking", self.model)))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(flatten)]
    common: Common,
    prompt: Option<String>,
    suffix: Option<String>,
    images: Option<Vec<Value>>,
    system: Option<String>,
    template: Option<String>,
    raw: Option<bool>,
}

/// Answers a call.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let asked: Asked = body.json().await?;
    let stay = keep::read(asked.common.keep_alive.as_ref())?;
    let prompt = asked.prompt.clone().unwrap_or_default();
    if prompt.is_empty() {
        let reason = call.keep_or_go(&asked.common.model, stay).await?;
        let line = json!({ "model": asked.common.model, "created_at": now(), "response": "",
            "done": true, "done_reason": reason });
        return Ok(call.whole(&line));
    }
    check(&asked)?;
    let wanted = Wanted::new(Vec::new(), Choice::None, false, options::format(asked.common.format.as_ref())?)?;
    let think = options::think(asked.common.think.as_ref())?;
    let found = call.join(&asked.common.model).await?;
    asked.common.check_think(&found.model.marks(), think)?;
    call.keep(&found.name, stay).await;
    let defaults = found.defaults.clone();
    let ask = Options::read(asked.common.options, &defaults.parameters)?.ask();
    // A model without a template, or one that nobody knows, goes on from the text.
    let raw = asked.raw == Some(true) || !found.model.can_chat();
    let mut reply = if raw {
        let form = wanted.form(&plain(found.model.marks()), false);
        call.start(&found, vec![Prompt::Raw(prompt)], form, vec![ask]).await?
    } else {
        let system = asked.system.or(defaults.system).filter(|system| !system.is_empty());
        let system = system.map(|system| json!({ "role": "system", "content": system }));
        let user = json!({ "role": "user", "content": prompt });
        let messages = system.into_iter().chain([user]).collect();
        let conversation = Conversation { messages, think, ..Conversation::default() };
        converse(call, &found, conversation, &wanted, vec![ask]).await?
    };
    let shape = Shape { model: asked.common.model, chat: false };
    if asked.common.stream != Some(false) {
        return Ok(stream::response(reply, Lines::new(shape)));
    }
    let whole = reply.whole().await?.pop().unwrap_or_default();
    let mut line = json!({ "model": shape.model, "created_at": now(), "response": whole.text() });
    if let Some(thought) = whole.thought() {
        line["thinking"] = thought.into();
    }
    line["done"] = true.into();
    line["done_reason"] = done_reason(whole.end).into();
    numbers(&reply, &mut line);
    Ok(call.whole(&line))
}

fn check(asked: &Asked) -> Result<(), Refused> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if given(&asked.suffix) {
        return Err(Refused::invalid("suffix", format!("\"{}\" does not support insert", asked.common.model)));
    }
    if given(&asked.template) {
        return Err(Refused::invalid(
            "template",
            "the model's own template is used; write the prompt yourself with raw",
        ));
    }
    if asked.images.as_ref().is_some_and(|images| !images.is_empty()) {
        return Err(Refused::invalid("images", "models here read text only; leave images out"));
    }
    Ok(())
}

/// Marks of one that does not think before it goes on.
fn plain(marks: Marks) -> Marks {
    Marks { thinks: false, ..marks }
}
