//! Embeddings, for guests and for the model APIs: texts of one call, as many at a time as the engine and the budget take.

use std::collections::VecDeque;
use std::sync::Arc;

use hob_gpu::{Embedding, Refusal, TokenId};
use wasmtime::Result;

use super::infer::{Joined, beside, terms};
use crate::budget::Allowance;
use crate::request::Invocation;

/// Most texts of one call.
pub(crate) const MAX_TEXTS: usize = 2048;
/// So many are with the engine at once: enough to fill its steps, and others' come between.
const AT_ONCE: usize = 16;

/// What is to be embedded.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    /// A text, in which special tokens mean nothing.
    Words(String),
    /// Tokens as they stand.
    Tokens(Vec<TokenId>),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Embedded {
    /// One for each text, in order.
    pub rows: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub tokens: u32,
}

/// One that is being computed. What it has used is noted when it is dropped, however it ended.
struct Running {
    embedding: Embedding,
    invocation: Arc<Invocation>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.invocation.used(self.embedding.usage());
    }
}

/// Embeds texts on behalf of an invocation. If `cut`, what a context has no room for is left away; else that is refused.
pub(crate) async fn embed(
    joined: &Joined,
    texts: Vec<Text>,
    cut: bool,
    invocation: &Arc<Invocation>,
    allowance: Option<&Arc<Allowance>>,
) -> Result<Result<Embedded, Refusal>> {
    if texts.len() > MAX_TEXTS {
        return Ok(Err(Refusal::Invalid(format!("{} texts; at most {MAX_TEXTS} are embedded at once", texts.len()))));
    }
    let (model, bytes) = (joined.model.clone(), texts.iter().map(Text::bytes).sum());
    let tokenize = move |text| match text {
        Text::Words(text) => model.embedding_tokens(&text, cut),
        Text::Tokens(tokens) => tokens,
    };
    let texts: Vec<_> = beside(bytes, move || texts.into_iter().map(tokenize).collect()).await?;
    Ok(compute(joined, texts, invocation, allowance).await)
}

async fn compute(
    joined: &Joined,
    texts: Vec<Vec<TokenId>>,
    invocation: &Arc<Invocation>,
    allowance: Option<&Arc<Allowance>>,
) -> Result<Embedded, Refusal> {
    let start = |tokens: Vec<TokenId>| {
        let embedding = joined.model.embed_on(tokens, invocation.account, terms(joined, invocation, allowance))?;
        Ok::<_, Refusal>(Running { embedding, invocation: invocation.clone() })
    };
    let (mut done, mut running) = (Embedded::default(), VecDeque::with_capacity(AT_ONCE));
    for tokens in texts {
        loop {
            let started = if running.len() < AT_ONCE { Some(start(tokens.clone())) } else { None };
            match started {
                Some(Ok(one)) => {
                    running.push_back(one);
                    break;
                }
                // Others of this call may have taken what it may have at once.
                Some(Err(refusal)) if !matches!(refusal, Refusal::Busy { .. }) || running.is_empty() => {
                    return Err(refusal);
                }
                _ => done.add(running.pop_front()).await?,
            }
        }
    }
    while !running.is_empty() {
        done.add(running.pop_front()).await?;
    }
    Ok(done)
}

impl Embedded {
    async fn add(&mut self, one: Option<Running>) -> Result<(), Refusal> {
        if let Some(mut one) = one {
            self.rows.push(one.embedding.get().await?);
            self.tokens = self.tokens.saturating_add(one.embedding.usage().prompt_tokens);
        }
        Ok(())
    }
}

impl Text {
    fn bytes(&self) -> usize {
        match self {
            Self::Words(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}
