//! Calls hob:infer in the way that `?do=` names and gives what came of it as JSON; an error keeps its status and code.
//!
//! Also in the query: `model`, `text`, `n`, and the options `max_tokens`, `temperature`, `seed`, `stop`.

use hob_sdk::json::{Value, json};
use hob_sdk::serde::Deserialize;
use hob_sdk::{Error, Generation, IntoResponse, Json, Message, Model, Query, Response, Result, handler, sleep, sse};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(crate = "hob_sdk::serde", default)]
struct Ask {
    r#do: String,
    model: String,
    text: String,
    n: usize,
    max_tokens: u32,
    temperature: Option<f32>,
    seed: Option<u64>,
    stop: Option<String>,
}

impl Default for Ask {
    fn default() -> Self {
        let (text, model) = ("The capital of France is".into(), "smollm2:135m".into());
        Self { r#do: "open".into(), model, text, n: 1, max_tokens: 16, temperature: None, seed: None, stop: None }
    }
}

#[handler]
async fn infer(Query(ask): Query<Ask>) -> Result<Response> {
    let model = Model::open(&ask.model)?;
    if ask.r#do == "stream" {
        return Ok(sse::tokens(ask.with_options(model.raw(&ask.text)).stream()?));
    }
    Ok(Json(match ask.r#do.as_str() {
        "open" => {
            let info = model.info();
            json!({ "name": info.name, "context_tokens": info.context_tokens, "chat": info.chat })
        }
        "embed" => json!(model.embed(vec![ask.text.as_str(); ask.n])?),
        "tokenize" => json!({ "tokens": model.tokenize(&ask.text)? }),
        "chat" => json!(ask.with_options(model.chat([Message::user(&ask.text)])).text().await?),
        "raw" => json!(ask.with_options(model.raw(&ask.text)).text().await?),
        "empty" => json!(model.chat([]).text().await?),
        "too-long" => json!(model.raw("word ".repeat(100_000)).text().await?),
        "cancel" => cancel(&ask, &model).await?,
        "leave" | "die" => leave(&ask, &model).await?,
        "many" => many(&ask, &model).await?,
        how => badly(how, &ask, &model).await?,
    })
    .into_response())
}

/// Ends as no guest should, after an answer of `max_tokens`.
async fn badly(how: &str, ask: &Ask, model: &Model) -> Result<Value> {
    let answer = ask.with_options(model.raw(&ask.text)).text().await?;
    match how {
        "trap" => panic!("after {} tokens", answer.usage.generated_tokens),
        "hang" => sleep(Duration::from_secs(3600)).await,
        "memory" => {
            let mut held = Vec::new();
            loop {
                held.push(vec![1_u8; 1 << 20]);
            }
        }
        other => return Err(Error::bad_request(format!("nothing is called {other:?}"))),
    }
    Ok(json!(answer))
}

/// Begins a generation, and after `n` milliseconds lets go of it, or dies.
async fn leave(ask: &Ask, model: &Model) -> Result<Value> {
    let tokens = ask.with_options(model.raw(&ask.text)).stream()?;
    sleep(Duration::from_millis(ask.n as u64)).await;
    assert!(ask.r#do != "die", "after {} ms", ask.n);
    drop(tokens);
    // It stays, so that nothing else than the drop can have ended the generation.
    sleep(Duration::from_millis(500)).await;
    Ok(json!({ "left_after_ms": ask.n }))
}

/// `n` generations at once: what each came to.
async fn many(ask: &Ask, model: &Model) -> Result<Value> {
    let begun: Vec<_> = (0..ask.n).map(|_| ask.with_options(model.raw(&ask.text)).stream()).collect();
    let mut ends = Vec::new();
    for tokens in begun {
        ends.push(match tokens {
            Ok(tokens) => json!(tokens.text().await?),
            Err(error) => json!(Error::from(error).code()),
        });
    }
    Ok(json!(ends))
}

impl Ask {
    fn with_options<'m>(&self, mut generation: Generation<'m>) -> Generation<'m> {
        generation = generation.max_tokens(self.max_tokens);
        if let Some(temperature) = self.temperature {
            generation = generation.temperature(temperature);
        }
        if let Some(seed) = self.seed {
            generation = generation.seed(seed);
        }
        match &self.stop {
            Some(stop) => generation.stop(stop),
            None => generation,
        }
    }
}

/// Drops a long generation after `max_tokens` pieces, then shows that the model still answers.
async fn cancel(ask: &Ask, model: &Model) -> Result<Value> {
    let mut tokens = model.raw(&ask.text).stream()?;
    let mut pieces = Vec::new();
    while pieces.len() < ask.max_tokens as usize {
        let Some(piece) = tokens.next().await else { break };
        pieces.push(piece?);
    }
    drop(tokens);
    let after = model.raw(&ask.text).max_tokens(1).text().await?;
    Ok(json!({ "pieces": pieces, "after": after }))
}
