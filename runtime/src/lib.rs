//! hob: a serverless GPU runtime for WebAssembly.
//!
//! A [`Host`] keeps functions: WebAssembly components that answer HTTP requests, each in a fresh sandboxed instance,
//! and that share the models which the host keeps resident. The `hob` command is a thin layer over this library.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use hob::Host;
//! use tower_service::Service as _;
//!
//! let host = Host::builder().data("functions").build()?;
//! let request = || http::Request::get("http://localhost/chat").body(http_body_util::Empty::new());
//! // By its routes, as a server does.
//! let response = host.handle(request()?).await;
//! // By its name: a tower service, for a router or under layers of your own.
//! let mut chat = host.function("chat").expect("it was deployed");
//! let response = chat.call(request()?).await?;
//! # let _ = response;
//! # Ok(())
//! # }
//! ```
//!
//! What is not HTTP is a [`Plugin`]: a component of a world that the embedder chose, called with typed arguments
//! ([`Host::plugin`]). `examples/05-axum` has both, and takes up a new version of either while it serves.

#![deny(unsafe_code)]

pub mod api;
pub mod budget;
pub mod cli;
pub mod client;
pub mod components;
pub mod compose;
pub mod config;
pub mod data;
pub mod digest;
pub mod function_host;
pub mod host;
pub mod instance;
pub mod keys;
pub mod model_api;
pub mod models;
pub mod names;
pub mod records;
pub mod request;
pub mod server;
pub mod sources;
pub mod telemetry;
pub mod traffic;
pub mod usage;

pub use data::DataDir;
pub use function_host::{CallError, FunctionService, Host, HostBuilder, HostConfig, Plugin};
pub use host::State;
pub use model_api::{ModelApi, ModelApiConfig};
pub use server::{Server, ServerConfig, ServerTls};
/// The version that plugins are called with.
pub use wasmtime;
