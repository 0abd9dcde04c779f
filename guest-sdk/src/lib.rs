//! What the author of a [hob](https://github.com/hob-run/hob) function writes against.
//!
//! A function is one attribute on one async function: typed arguments in, a response or a stream of tokens out.
//! Models are already resident on the host; opening one joins it.
//!
//! ```no_run
//! use hob_sdk::{Json, Message, Model, Result, Tokens, handler};
//!
//! #[handler]
//! async fn chat(Json(messages): Json<Vec<Message>>) -> Result<Tokens> {
//!     let model = Model::open("smollm2:135m")?;
//!     Ok(model.chat(messages).max_tokens(256).stream()?)
//! }
//! # fn main() {}
//! ```
//!
//! This is a whole program. Its `Cargo.toml` names one dependency and one crate type:
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! hob-sdk = "0.1"
//! ```
//!
//! `cargo build --release --target wasm32-wasip2` makes the component, `hob deploy` puts it on a route.
//!
//! - [`handler`] says what a handler may take and give.
//! - [`Model`] generates text; [`Tokens`] is that text as it is made.
//! - [`Error`] is what `?` turns every error into: a status and a line of JSON for the client.
//! - [`sse`] streams events, [`Body::produce`] streams anything else.

mod bindings;
mod body;
mod convert;
mod error;
mod generation;
mod message;
mod model;
mod serve;
pub mod sse;
mod tokens;

pub use body::{Body, Writer};
pub use convert::{FromRequest, Html, IntoResponse, Json, Query};
pub use error::{Error, Result};
pub use generation::Generation;
pub use message::{Message, Role};
pub use model::{Info, Model, ModelError};
pub use tokens::{Answer, Finish, Tokens, Usage};

pub use http::{self, Method, StatusCode};
pub use serde;
pub use serde_json as json;

/// Makes an async function the component's HTTP handler.
///
/// The function takes nothing, or one argument that implements [`FromRequest`]: [`Request`], [`Json<T>`](Json),
/// [`Query<T>`](Query), `String` or `Vec<u8>`. It gives something that implements [`IntoResponse`]: [`Response`],
/// text, [`Json`], [`Html`], [`Tokens`] (as server-sent events), or a [`Result`] of one of these. A component has
/// one handler, at the root of the crate; the host starts a fresh instance for each request.
///
/// ```no_run
/// #[hob_sdk::handler]
/// async fn hello() -> &'static str {
///     "hello\n"
/// }
/// # fn main() {}
/// ```
pub use hob_sdk_macros::handler;

/// An HTTP request, whose body is read when the handler asks for it.
pub type Request<T = Body> = http::Request<T>;

/// An HTTP response; `Response::new("text".into())`, or `Response::builder()` for a status and headers.
pub type Response<T = Body> = http::Response<T>;

/// Waits without using the processor; other tasks of the same instance go on.
pub async fn sleep(duration: std::time::Duration) {
    wstd::task::sleep(duration.into()).await;
}

/// Runs a future to its end: for what a component exports that is not HTTP, where no executor runs yet. A handler has one.
///
/// ```no_run
/// // What a world's `export title: func(text: string) -> string` calls.
/// fn title(text: String) -> String {
///     let title = hob_sdk::block_on(async {
///         let model = hob_sdk::Model::open("default")?;
///         model.raw(text).max_tokens(8).text().await
///     });
///     title.map_or_else(|error| error.to_string(), |answer| answer.text)
/// }
/// ```
pub fn block_on<F: Future>(future: F) -> F::Output {
    wstd::runtime::block_on(future)
}

/// What the `handler` attribute expands to. Not part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::serve::{serve, serve_any};
    pub use wasip2;
    pub use wasip2::http::types::{IncomingRequest, ResponseOutparam};
}
