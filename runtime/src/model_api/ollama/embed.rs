//! `/api/embed`, and `/api/embeddings`, which came before it.

use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{keep, times};
use crate::host::embed::Text;
use crate::model_api::ask::Call;
use crate::model_api::body::Given;
use crate::model_api::openai::OneOrMany;
use crate::model_api::openai::embeddings::{check_width, floats};
use crate::model_api::refused::Refused;
use crate::request::Body;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default, alias = "name")]
    model: String,
    input: Option<OneOrMany>,
    /// What the older path has.
    prompt: Option<String>,
    /// Whether what a context has no room for is left away; it is, unless this says not.
    truncate: Option<bool>,
    dimensions: Option<u64>,
    keep_alive: Option<Value>,
}

/// Answers a call of `/api/embed`.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let asked: Asked = body.json().await?;
    let texts = asked.input.map(OneOrMany::all).unwrap_or_default();
    let stay = keep::read(asked.keep_alive.as_ref())?;
    if texts.is_empty() {
        call.keep_or_go(&asked.model, stay).await?;
        return Ok(call.whole(&json!({ "model": asked.model, "embeddings": [] })));
    }
    let found = call.join(&asked.model).await?;
    check_width(&found, asked.dimensions.filter(|wanted| *wanted > 0))?;
    call.keep(&found.name, stay).await;
    let texts = texts.into_iter().map(Text::Words).collect();
    let embedded = call.embed(&found, texts, asked.truncate != Some(false)).await?;
    let rows: Vec<Value> = embedded.rows.iter().map(|row| floats(row)).collect();
    let (total, load) = times(call);
    Ok(call.whole(&json!({
        "model": asked.model, "embeddings": rows, "total_duration": total, "load_duration": load,
        "prompt_eval_count": embedded.tokens,
    })))
}

/// Answers a call of `/api/embeddings`.
pub(in crate::model_api) async fn answer_one(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let asked: Asked = body.json().await?;
    let stay = keep::read(asked.keep_alive.as_ref())?;
    let prompt = asked.prompt.unwrap_or_default();
    if prompt.is_empty() {
        call.keep_or_go(&asked.model, stay).await?;
        return Ok(call.whole(&json!({ "embedding": [] })));
    }
    let found = call.join(&asked.model).await?;
    call.keep(&found.name, stay).await;
    let embedded = call.embed(&found, vec![Text::Words(prompt)], true).await?;
    Ok(call.whole(&json!({ "embedding": embedded.rows.first().map_or(Value::Null, |row| floats(row)) })))
}
