//! The summary of a document longer than the model's context.
//!
//! The document is cut into chunks that fit, each is summarised, and the summaries together are the next document,
//! until one chunk is left. Every chunk is told as `event: progress`, the summary comes as `event: done`.

use hob_sdk::serde::Serialize;
use hob_sdk::{Answer, Error, Message, Model, Response, Result, StatusCode, Tokens, Usage, handler, json::json, sse};

const MODEL: &str = "smollm2:135m";
const INSTRUCTIONS: &str = "Summarize the text in a few sentences. Keep names and numbers. Write only the summary.";

/// Chunks that are summarised at the same time: the host makes one batch of them.
const AT_ONCE: usize = 4;

/// Each round leaves an eighth of the text or less; eight are enough for any document that can be sent.
const MOST_ROUNDS: usize = 8;

/// The summary so far, and what it took.
#[derive(Serialize)]
#[serde(crate = "hob_sdk::serde")]
struct Summary {
    summary: String,
    chunks: u32,
    usage: Usage,
}

#[handler]
async fn summarize(document: String) -> Result<Response> {
    if document.trim().is_empty() {
        return Err(Error::bad_request("there is no document; POST it as text"));
    }
    let model = Model::open(MODEL)?;
    // Half of the context leaves room for instructions and summary; small models lose the thread in long texts.
    let room = (model.info().context_tokens / 2).min(1024);
    Ok(sse::events(async move |events| {
        let mut result = Summary::of(document);
        for _ in 0..MOST_ROUNDS {
            let chunks = chunks(&model, &result.summary, room as usize)?;
            result.summary.clear();
            let before = result.chunks;
            for batch in chunks.chunks(AT_ONCE) {
                let summaries = batch.iter().map(|chunk| summary(&model, chunk, room / 8));
                for tokens in summaries.collect::<Result<Vec<_>>>()? {
                    let answer = tokens.text().await?;
                    result.add(&answer);
                    let chunk = result.chunks - before;
                    let progress = json!({ "chunk": chunk, "of": chunks.len(), "summary": answer.text });
                    events.send("progress", &progress).await?;
                }
            }
            if chunks.len() == 1 {
                return events.send("done", &result).await;
            }
        }
        Err(Error::new(StatusCode::UNPROCESSABLE_ENTITY, "the text does not get shorter"))
    }))
}

fn summary(model: &Model, chunk: &str, most_tokens: u32) -> Result<Tokens> {
    let messages = [Message::system(INSTRUCTIONS), Message::user(chunk)];
    Ok(model.chat(messages).max_tokens(most_tokens).stream()?)
}

impl Summary {
    fn of(document: String) -> Self {
        Self { summary: document, chunks: 0, usage: Usage::default() }
    }

    fn add(&mut self, answer: &Answer) {
        let separator = if self.summary.is_empty() { "" } else { "\n" };
        self.summary += separator;
        self.summary += answer.text.trim();
        self.chunks += 1;
        self.usage.prompt_tokens += answer.usage.prompt_tokens;
        self.usage.generated_tokens += answer.usage.generated_tokens;
    }
}

/// Packs whole sentences into chunks of at most `room` tokens.
fn chunks(model: &Model, text: &str, room: usize) -> Result<Vec<String>> {
    let mut chunks = vec![String::new()];
    let mut filled = 0;
    for sentence in text.split_inclusive(['.', '\n']).flat_map(|sentence| pieces(sentence, room)) {
        let tokens = model.tokenize(sentence)?.len();
        if filled > 0 && filled + tokens > room {
            chunks.push(String::new());
            filled = 0;
        }
        filled += tokens;
        chunks.last_mut().expect("it starts with one").push_str(sentence);
    }
    Ok(chunks)
}

/// Cuts a sentence that has no end: a token is at least a byte, so `room` bytes always fit.
fn pieces(mut sentence: &str, room: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = sentence.split_at(sentence.floor_char_boundary(room));
        sentence = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
