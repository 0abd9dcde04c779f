//! A chat: GET gives a page, POST streams the model's answer as server-sent events.

use hob_sdk::serde::Deserialize;
use hob_sdk::{Error, Html, IntoResponse, Message, Method, Model, Request, Response, Result, handler, sse};

/// `{"messages":[{"role":"user","content":"..."}]}`, or `{"prompt":"..."}` for a single question.
#[derive(Deserialize)]
#[serde(crate = "hob_sdk::serde")]
struct Ask {
    #[serde(default)]
    messages: Vec<Message>,
    prompt: Option<String>,
}

#[handler]
async fn chat(request: Request) -> Result<Response> {
    match *request.method() {
        Method::GET => Ok(Html(include_str!("page.html")).into_response()),
        Method::POST => {
            let ask: Ask = request.into_body().json().await?;
            let messages = ask.messages.into_iter().chain(ask.prompt.map(Message::user));
            let tokens = Model::open("smollm2:135m")?.chat(messages).max_tokens(256).stream()?;
            Ok(sse::tokens(tokens))
        }
        _ => Err(Error::method_not_allowed("GET, POST")),
    }
}
