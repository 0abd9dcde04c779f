//! An answer in lines of JSON, the last of which has `done` and the numbers.

use serde_json::{Value, json};

use super::chat::tool_call;
use super::{done_reason, now, numbers};
use crate::model_api::reader::Piece;
use crate::model_api::refused::{Dialect, Refused};
use crate::model_api::reply::{End, Reply, Said};
use crate::model_api::stream::{Out, Voice};

/// What all lines have.
pub(super) struct Shape {
    pub model: String,
    /// Lines have messages rather than texts.
    pub chat: bool,
}

/// An answer in lines.
pub(super) struct Lines {
    shape: Shape,
    /// A call of a tool that is not whole yet: here calls come whole.
    call: Option<(String, String)>,
    end: Option<End>,
}

impl Lines {
    pub fn new(shape: Shape) -> Self {
        Self { shape, call: None, end: None }
    }

    fn line(&self, text: &str, thought: &str, call: Option<Value>) -> Value {
        let mut line = json!({ "model": self.shape.model, "created_at": now() });
        if self.shape.chat {
            line["message"] = json!({ "role": "assistant", "content": text });
        } else {
            line["response"] = text.into();
        }
        let place = if self.shape.chat { &mut line["message"] } else { &mut line };
        if !thought.is_empty() {
            place["thinking"] = thought.into();
        }
        if let Some(call) = call {
            place["tool_calls"] = json!([call]);
        }
        line["done"] = false.into();
        line
    }

    /// The line of the call that has come to its end.
    fn take_call(&mut self, out: &mut Out) {
        if let Some((name, arguments)) = self.call.take() {
            out.line(&self.line("", "", Some(tool_call(&name, &arguments))));
        }
    }
}

impl Voice for Lines {
    fn kind(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn say(&mut self, said: Said, _reply: &Reply, out: &mut Out) {
        for piece in said.pieces {
            match piece {
                Piece::Text(text) => {
                    self.take_call(out);
                    out.line(&self.line(&text, "", None));
                }
                Piece::Thought(text) => out.line(&self.line("", &text, None)),
                Piece::Call(name) => {
                    self.take_call(out);
                    self.call = Some((name, String::new()));
                }
                Piece::Arguments(more) => self.call.iter_mut().for_each(|call| call.1.push_str(&more)),
            }
        }
        self.end = said.end.or(self.end);
    }

    fn end(&mut self, reply: &Reply, out: &mut Out) {
        self.take_call(out);
        let mut line = self.line("", "", None);
        line["done"] = true.into();
        line["done_reason"] = done_reason(self.end).into();
        numbers(reply, &mut line);
        out.line(&line);
    }

    fn fault(&mut self, refused: &Refused, out: &mut Out) {
        out.line(&refused.json_in(Dialect::Ollama));
    }

    fn silence(&self) -> &'static [u8] {
        b"" // every line must mean something
    }
}
