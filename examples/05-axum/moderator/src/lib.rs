//! Judges comments: takes no links, and has a model write a reply to the others.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../wit", world: "moderator" });
}

use bindings::exports::example::comments::moderation::{Guest, Verdict};
use hob_sdk::{Message, Model, ModelError};

struct Moderator;

impl Guest for Moderator {
    fn judge(comment: String) -> Result<Verdict, String> {
        if comment.contains("://") {
            return Ok(Verdict { publish: false, reply: "Comments with links are not taken.".into() });
        }
        let reply = hob_sdk::block_on(reply(comment)).map_err(|error| error.to_string())?;
        Ok(Verdict { publish: true, reply })
    }
}

async fn reply(comment: String) -> Result<String, ModelError> {
    // The first model that the host granted.
    let model = Model::open("default")?;
    let generation = model.chat([Message::user(comment)]).system("Thank the writer, in one short sentence.");
    Ok(generation.max_tokens(32).text().await?.text)
}

bindings::export!(Moderator with_types_in bindings);
