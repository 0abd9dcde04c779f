//! Server-sent events: what `EventSource`, and every chat page, reads.
//!
//! [`tokens`] is all that a chat needs. [`events`] sends whatever a function makes, in its own order:
//!
//! ```no_run
//! # use hob_sdk::{Model, Response, Result, sse};
//! # fn example(model: Model) -> Response {
//! sse::events(async move |events| {
//!     events.send("progress", &"reading").await?;
//!     events.tokens(model.raw("Once upon a time").stream()?).await
//! })
//! # }
//! ```

use crate::{Body, Error, Finish, Response, Result, Tokens, Usage, Writer};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;

/// A response that sends the text of a generation as it is made.
///
/// Each piece is `data: {"text":"..."}`. The end is
/// `event: done`, `data: {"finish":"stop","usage":{"prompt_tokens":12,"generated_tokens":34}}`.
/// If the host cuts the generation short it is `event: error`, `data: {"code":"fault","message":"..."}`.
pub fn tokens(tokens: Tokens) -> Response {
    events(async move |events| events.tokens(tokens).await)
}

/// A response that sends the events which `produce` makes. An error it gives is sent as `event: error`.
pub fn events(produce: impl AsyncFnOnce(&mut Events<'_>) -> Result<()> + 'static) -> Response {
    let mut response = Response::new(Body::produce(async move |out| {
        let mut events = Events(out);
        match produce(&mut events).await {
            Ok(()) => Ok(()),
            Err(error) => events.error(&error).await,
        }
    }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Where events are sent. Each leaves at once.
#[derive(Debug)]
pub struct Events<'w>(&'w mut Writer);

#[derive(Serialize)]
struct Text<'t> {
    text: &'t str,
}

#[derive(Serialize)]
struct Done {
    finish: Option<Finish>,
    usage: Usage,
}

impl Events<'_> {
    /// Sends an event without a name, its data as JSON.
    ///
    /// # Errors
    /// The client has left, or `data` cannot be written as JSON.
    pub async fn data(&mut self, data: &impl Serialize) -> Result<()> {
        self.0.write(event(None, data)?).await
    }

    /// Sends an event with a name, its data as JSON.
    ///
    /// # Errors
    /// The client has left, `name` has a line break, or `data` cannot be written as JSON.
    pub async fn send(&mut self, name: &str, data: &impl Serialize) -> Result<()> {
        self.0.write(event(Some(name), data)?).await
    }

    /// Sends the text of a generation as [`tokens`] does, `done` included.
    ///
    /// # Errors
    /// The client has left, or the host cut the generation short.
    pub async fn tokens(&mut self, mut tokens: Tokens) -> Result<()> {
        while let Some(text) = tokens.next().await {
            self.data(&Text { text: &text? }).await?;
        }
        self.send("done", &Done { finish: tokens.finish(), usage: tokens.usage() }).await
    }

    async fn error(&mut self, error: &Error) -> Result<()> {
        self.send("error", &error.to_json()).await
    }
}

/// One event as it is on the wire. JSON has no raw line breaks, so the data is one line.
fn event(name: Option<&str>, data: &impl Serialize) -> Result<String> {
    let data = serde_json::to_string(data)?;
    match name {
        None => Ok(format!("data: {data}\n\n")),
        Some(name) if name.contains(['\r', '\n']) => {
            Err(Error::bad_request(format!("an event's name has a line break: {name:?}")))
        }
        Some(name) => Ok(format!("event: {name}\ndata: {data}\n\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_data() {
        assert_eq!(event(None, &Text { text: "a\nb" }).unwrap(), "data: {\"text\":\"a\\nb\"}\n\n");
        let done = Done { finish: Some(Finish::Stop), usage: Usage { prompt_tokens: 1, generated_tokens: 2 } };
        assert_eq!(
            event(Some("done"), &done).unwrap(),
            "event: done\ndata: {\"finish\":\"stop\",\"usage\":{\"prompt_tokens\":1,\"generated_tokens\":2}}\n\n"
        );
        assert!(event(Some("a\nb"), &()).is_err());
    }
}
