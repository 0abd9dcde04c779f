//! The same in pieces: the role first, then what is said, the reason it ended, what it used, and `[DONE]`.

use serde_json::{Value, json};

use super::chat::Shape;
use super::{finish_reason, logprobs, usage};
use crate::model_api::reader::Piece;
use crate::model_api::refused::{Dialect, Refused};
use crate::model_api::reply::{Reply, Said};
use crate::model_api::stream::{Out, Voice};

const KIND: &str = "chat.completion.chunk";

/// A chat in pieces.
pub(super) struct Chat {
    shape: Shape,
    /// What was used is told at the end, and with each piece.
    tells: (bool, bool),
    logprobs: bool,
    /// Calls begun by each choice.
    calls: Vec<usize>,
}

impl Chat {
    pub fn new(shape: Shape, tells: (bool, bool), logprobs: bool) -> Self {
        Self { shape, tells, logprobs, calls: Vec::new() }
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish: Option<&str>, reply: &Reply) -> Value {
        let choice = json!({ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        let mut chunk = self.shape.object(KIND, json!([choice]));
        match self.tells {
            (true, true) => chunk["usage"] = usage(reply.counts(reply.choices())),
            (true, false) => chunk["usage"] = Value::Null,
            _ => {}
        }
        chunk
    }

    fn delta(&mut self, choice: usize, piece: Piece) -> Value {
        match piece {
            Piece::Text(text) => json!({ "content": text }),
            Piece::Thought(text) => json!({ "reasoning_content": text }),
            Piece::Call(name) => {
                let n = self.calls[choice];
                self.calls[choice] += 1;
                let function = json!({ "name": name, "arguments": "" });
                let id = self.shape.call_id(choice, n);
                json!({ "tool_calls": [{ "index": n, "id": id, "type": "function", "function": function }] })
            }
            Piece::Arguments(text) => {
                let n = self.calls[choice].saturating_sub(1);
                json!({ "tool_calls": [{ "index": n, "function": { "arguments": text } }] })
            }
        }
    }
}

impl Voice for Chat {
    fn begin(&mut self, reply: &Reply, out: &mut Out) {
        self.calls = vec![0; reply.choices()];
        for n in 0..reply.choices() {
            out.event(&self.chunk(n, json!({ "role": "assistant", "content": "" }), Value::Null, None, reply));
        }
    }

    fn say(&mut self, said: Said, reply: &Reply, out: &mut Out) {
        let mut likely = match self.logprobs && !said.logprobs.is_empty() {
            true => logprobs::chat(&said.logprobs),
            false => Value::Null,
        };
        for piece in said.pieces {
            let delta = self.delta(said.choice, piece);
            out.event(&self.chunk(said.choice, delta, std::mem::take(&mut likely), None, reply));
        }
        if !likely.is_null() && said.end.is_none() {
            // Tokens whose text is held back, since it may be the beginning of something else.
            out.event(&self.chunk(said.choice, json!({ "content": "" }), std::mem::take(&mut likely), None, reply));
        }
        if let Some(end) = said.end {
            out.event(&self.chunk(said.choice, json!({}), likely, Some(finish_reason(Some(end))), reply));
        }
    }

    fn end(&mut self, reply: &Reply, out: &mut Out) {
        if self.tells.0 {
            let mut chunk = self.shape.object(KIND, json!([]));
            chunk["usage"] = usage(reply.counts(reply.choices()));
            out.event(&chunk);
        }
        out.text("[DONE]");
    }

    fn fault(&mut self, refused: &Refused, out: &mut Out) {
        out.event(&refused.json_in(Dialect::OpenAi));
        out.text("[DONE]");
    }
}
