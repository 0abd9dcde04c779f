//! An axum server with routes of its own, whose plugins are WebAssembly components that may use the host's models.
//!
//! `assistant.wasm` answers requests: it is mounted like any other tower service. `moderator.wasm` does not know HTTP: a handler
//! calls it with typed arguments. Either is taken up anew when its file changes, while the server serves.

mod plugins;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use hob::Host;
use hob::names::ModelName;
use plugins::{ASSISTANT, Plugins};

/// A server for comments, extended by plugins
#[derive(Parser)]
struct Args {
    /// The folder with assistant.wasm and moderator.wasm
    plugins: PathBuf,
    /// Where hob keeps models, and what plugins compiled to; as for the `hob` command, unless said
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The model that plugins may use
    #[arg(long, value_name = "NAME", default_value = "smollm2:135m")]
    model: ModelName,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,
}

/// What the server's own handlers share.
#[derive(Clone)]
struct App {
    plugins: Arc<Plugins>,
    comments: Arc<Mutex<Vec<String>>>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let Args { plugins, data, model, listen } = Args::parse();
    let builder = data.map_or_else(Host::builder, |data| Host::builder().data(data));
    // Compiling takes a while, the first time.
    let plugins = tokio::task::spawn_blocking(move || Plugins::load(builder.build()?, plugins, model)).await??;
    plugins.clone().watch()?;

    let app = App { plugins: plugins.clone(), comments: Arc::default() };
    let router = Router::new()
        .route("/", get(async || "comments: GET and POST /comments; a plugin: /assistant; what runs: /plugins\n"))
        .route("/comments", get(comments).post(comment))
        .route("/plugins", get(running))
        .with_state(app)
        // A function is a tower service: it goes where any other would, under the same layers.
        .nest_service("/assistant", plugins.function(ASSISTANT));
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let stopped = async { drop(tokio::signal::ctrl_c().await) };
    Ok(axum::serve(listener, router).with_graceful_shutdown(stopped).await?)
}

async fn comments(State(app): State<App>) -> Json<Vec<String>> {
    Json(app.comments.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Asks the plugin whether a comment may appear.
async fn comment(State(app): State<App>, comment: String) -> Response {
    let verdict = match app.plugins.judge(&comment).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(why)) => return (StatusCode::BAD_GATEWAY, why + "\n").into_response(),
        // Its deadline, its memory, a trap: the status says which; the log has the rest.
        Err(error) => return error.response().into_response(),
    };
    if !verdict.publish {
        return (StatusCode::UNPROCESSABLE_ENTITY, verdict.reply + "\n").into_response();
    }
    app.comments.lock().unwrap_or_else(PoisonError::into_inner).push(comment);
    (StatusCode::CREATED, verdict.reply + "\n").into_response()
}

async fn running(State(app): State<App>) -> Json<plugins::Running> {
    Json(app.plugins.running())
}
