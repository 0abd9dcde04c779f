//! A response in events: each item is announced, grows and is done; the whole of it comes last.

use serde_json::{Value, json};

use super::responses::{Item, Items, Shape, part};
use crate::model_api::reader::Piece;
use crate::model_api::refused::{Dialect, Refused};
use crate::model_api::reply::{End, Reply, Said};
use crate::model_api::stream::{Out, Voice};

/// A response in events.
pub(super) struct Events {
    shape: Shape,
    items: Items,
    number: u64,
    end: Option<End>,
}

impl Events {
    pub fn new(shape: Shape) -> Self {
        Self { shape, items: Items::default(), number: 0, end: None }
    }

    fn tell(&mut self, name: &str, mut event: Value, out: &mut Out) {
        event["type"] = name.into();
        event["sequence_number"] = self.number.into();
        self.number += 1;
        out.named(name, &event);
    }

    /// The place of the item that grows, and its id.
    fn place(&self) -> (usize, Value) {
        let n = self.items.all.len() - 1;
        (n, self.items.all[n].view(&self.shape.id, n, "in_progress")["id"].clone())
    }

    fn open(&mut self, out: &mut Out) {
        let (n, id) = self.place();
        let item = self.items.all[n].view(&self.shape.id, n, "in_progress");
        self.tell("response.output_item.added", json!({ "output_index": n, "item": item }), out);
        if let Item::Text(_) = self.items.all[n] {
            let event = json!({ "item_id": id, "output_index": n, "content_index": 0, "part": part("") });
            self.tell("response.content_part.added", event, out);
        }
    }

    fn close(&mut self, out: &mut Out) {
        if self.items.all.is_empty() {
            return;
        }
        let (n, id) = self.place();
        let item = self.items.all[n].clone();
        let at = json!({ "item_id": id, "output_index": n, "content_index": 0 });
        let with = |key: &str, value: Value| {
            let mut event = at.clone();
            event[key] = value;
            event
        };
        match &item {
            Item::Text(text) => {
                let mut done = with("text", text.as_str().into());
                done["logprobs"] = json!([]);
                self.tell("response.output_text.done", done, out);
                self.tell("response.content_part.done", with("part", part(text)), out);
            }
            Item::Thought(text) => self.tell("response.reasoning_text.done", with("text", text.as_str().into()), out),
            Item::Call(name, arguments) => {
                let event = json!({ "item_id": id, "output_index": n, "name": name, "arguments": arguments });
                self.tell("response.function_call_arguments.done", event, out);
            }
        }
        let item = item.view(&self.shape.id, n, "completed");
        self.tell("response.output_item.done", json!({ "output_index": n, "item": item }), out);
    }

    fn grow(&mut self, piece: Piece, out: &mut Out) {
        let before = self.items.all.len();
        let (name, delta) = match &piece {
            Piece::Text(text) => ("response.output_text.delta", text.clone()),
            Piece::Thought(text) => ("response.reasoning_text.delta", text.clone()),
            Piece::Arguments(text) => ("response.function_call_arguments.delta", text.clone()),
            Piece::Call(_) => ("", String::new()),
        };
        let is_text = matches!(piece, Piece::Text(_));
        let begins = !matches!(
            (self.items.all.last(), &piece),
            (_, Piece::Arguments(_))
                | (Some(Item::Text(_)), Piece::Text(_))
                | (Some(Item::Thought(_)), Piece::Thought(_))
        );
        if begins && before > 0 {
            self.close(out);
        }
        // Announced empty: what it says comes as its first delta.
        if begins {
            self.items.all.push(match &piece {
                Piece::Text(_) => Item::Text(String::new()),
                Piece::Thought(_) => Item::Thought(String::new()),
                Piece::Call(name) => Item::Call(name.clone(), String::new()),
                Piece::Arguments(_) => return,
            });
            self.open(out);
        }
        if name.is_empty() || self.items.all.is_empty() {
            return;
        }
        self.items.add(piece);
        let (n, id) = self.place();
        let mut event = json!({ "item_id": id, "output_index": n, "delta": delta });
        if name != "response.function_call_arguments.delta" {
            event["content_index"] = 0.into();
        }
        if is_text {
            event["logprobs"] = json!([]);
        }
        self.tell(name, event, out);
    }
}

impl Voice for Events {
    fn begin(&mut self, _reply: &Reply, out: &mut Out) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.shape.base.clone();
            self.tell(name, json!({ "response": response }), out);
        }
    }

    fn say(&mut self, said: Said, _reply: &Reply, out: &mut Out) {
        said.pieces.into_iter().for_each(|piece| self.grow(piece, out));
        self.end = said.end.or(self.end);
    }

    fn end(&mut self, reply: &Reply, out: &mut Out) {
        self.close(out);
        let items = self.items.all.iter().enumerate();
        let output = items.map(|(n, item)| item.view(&self.shape.id, n, "completed")).collect();
        let response = self.shape.complete(output, self.end, reply);
        let name = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.tell(name, json!({ "response": response }), out);
    }

    fn fault(&mut self, refused: &Refused, out: &mut Out) {
        let mut response = self.shape.base.clone();
        response["status"] = "failed".into();
        response["error"] = json!({ "code": "server_error", "message": refused.message });
        let error = refused.json_in(Dialect::OpenAi);
        self.tell("response.failed", json!({ "response": response, "error": error["error"] }), out);
    }
}
