//! What tensors mean to a model that makes text, as guests of the ggml backends use them (WasmEdge's plug-in is the one
//! people write for). Tensors go by their index, which as a name is a text:
//!
//! | tensor | also called | type | what |
//! |---|---|---|---|
//! | input `0` | `prompt`, `input`; a single input of any name | `U8`, `[bytes]` | the prompt, UTF-8, special tokens obeyed |
//! | input `1` | `options`, `metadata` | `U8`, `[bytes]` | JSON: `n-predict`, `temp`, `top-k`, `top-p`, `min-p`, `repeat-penalty`, `presence-penalty`, `frequency-penalty`, `seed`, `reverse-prompt`, `embedding`; others are ignored |
//! | output `0` | | `U8`, `[bytes]` | the text, UTF-8 |
//! | | | `FP32`, `[1, width]` | of a model that embeds, and with the option `embedding`: what the prompt means, of length 1 |
//! | output `1` | | `U8`, `[bytes]` | JSON: `input_tokens`, `output_tokens`, `finish_reason` |

use std::sync::Arc;

use hob_gpu::{Ask, Event, Finish, Prompt, Refusal};
use serde::Deserialize;

use super::super::embed::{Text, embed};
use super::super::infer::{Joined, TokenStream, start};
use super::bindings::wasi::nn::errors::ErrorCode;
use super::bindings::wasi::nn::tensor::TensorType;
use crate::budget::Allowance;
use crate::models::JoinRefusal;
use crate::request::Invocation;

/// Tokens generated when the guest does not say how many.
const DEFAULT_TOKENS: u32 = 512;

/// Why `load` is refused.
pub const LOADS_NO_BYTES: &str =
    "models are not loaded from a guest's bytes; use load-by-name with a model that the function was granted";

/// A typed array of the guest's.
pub struct Tensor {
    /// Its length in each direction.
    pub dimensions: Vec<u32>,
    /// What its elements are.
    pub ty: TensorType,
    /// The elements' bytes.
    pub data: Vec<u8>,
}

/// An error as a resource: a code, and a sentence.
pub struct NnError {
    /// What kind of error.
    pub code: ErrorCode,
    /// What happened.
    pub data: String,
}

impl NnError {
    /// An error.
    pub fn new(code: ErrorCode, data: impl Into<String>) -> Self {
        Self { code, data: data.into() }
    }
}

/// One whole generation, or an embedding: what comes of it, and what is to be said about it.
pub(super) async fn compute(
    joined: &Joined,
    inputs: &[(String, Tensor)],
    invocation: &Arc<Invocation>,
    allowance: Option<&Arc<Allowance>>,
) -> Result<(Tensor, Tensor), NnError> {
    let (text, options) = read(inputs)?;
    if joined.model.generates() && !options.embedding {
        let (text, about) = generate(joined, ask(text, options), invocation, allowance).await?;
        return Ok((Tensor::text(text), Tensor::text(about)));
    }
    let embedded = embed(joined, vec![Text::Words(text.into())], false, invocation, allowance).await;
    let embedded = embedded.map_err(|error| NnError::new(ErrorCode::RuntimeError, error.to_string()))??;
    let about = serde_json::json!({ "input_tokens": embedded.tokens, "output_tokens": 0, "finish_reason": "stop" });
    Ok((Tensor::floats(&embedded.rows.concat()), Tensor::text(about.to_string())))
}

async fn generate(
    joined: &Joined,
    ask: Ask,
    invocation: &Arc<Invocation>,
    allowance: Option<&Arc<Allowance>>,
) -> Result<(String, String), NnError> {
    let started = start(joined, ask, invocation, allowance).await;
    let tokens = started.map_err(|error| NnError::new(ErrorCode::RuntimeError, error.to_string()))??;
    let mut stream = TokenStream::new(tokens, invocation.clone());
    let mut text = String::new();
    let finish = loop {
        let event = stream.tokens.next().await;
        invocation.saw(&event, &stream.tokens);
        match event {
            Event::Text(piece) => text.push_str(&piece),
            Event::Finished(Finish::Stop) => break "stop",
            Event::Finished(Finish::Length) => break "length",
            Event::Finished(Finish::Budget) => break "budget",
            Event::Busy { retry_after } => return Err(Refusal::Busy { retry_after }.into()),
            Event::Fault(why) => return Err(NnError::new(ErrorCode::RuntimeError, why)),
        }
    };
    let usage = stream.tokens.usage();
    let metadata = serde_json::json!({
        "input_tokens": usage.prompt_tokens, "output_tokens": usage.generated_tokens, "finish_reason": finish,
    });
    Ok((text, metadata.to_string()))
}

impl Tensor {
    /// Text as a tensor.
    pub fn text(text: String) -> Self {
        let data = text.into_bytes();
        Self { dimensions: vec![u32::try_from(data.len()).unwrap_or(u32::MAX)], ty: TensorType::U8, data }
    }

    /// One row of floats as a tensor.
    fn floats(row: &[f32]) -> Self {
        let data = row.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dimensions: vec![1, u32::try_from(row.len()).unwrap_or(u32::MAX)], ty: TensorType::Fp32, data }
    }

    /// The tensor as text.
    fn as_text(&self, name: &str) -> Result<&str, NnError> {
        let bad = |why: String| NnError::new(ErrorCode::InvalidArgument, format!("tensor `{name}` {why}"));
        if self.ty != TensorType::U8 {
            return Err(bad(format!("is {:?}; give text as U8", self.ty)));
        }
        let elements = self.dimensions.iter().try_fold(1_usize, |product, &n| product.checked_mul(n as usize));
        if elements != Some(self.data.len()) {
            return Err(bad(format!("has {} bytes, but its dimensions say {:?}", self.data.len(), self.dimensions)));
        }
        std::str::from_utf8(&self.data).map_err(|error| bad(format!("is not UTF-8: {error}")))
    }
}

/// The options that ggml guests send and that mean something here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Options {
    n_predict: Option<i64>,
    temp: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
    reverse_prompt: Option<String>,
    embedding: bool,
}

/// The prompt, and what else is said.
fn read(inputs: &[(String, Tensor)]) -> Result<(&str, Options), NnError> {
    let find = |names: &[&str]| inputs.iter().find(|(name, _)| names.contains(&name.as_str()));
    let invalid = |why: String| NnError::new(ErrorCode::InvalidArgument, why);
    let prompt = match (find(&["0", "prompt", "input"]), inputs) {
        (Some(named), _) => named,
        (None, [only]) => only,
        _ => return Err(invalid("no tensor `0`: give the prompt as U8".into())),
    };
    let options: Options = match find(&["1", "options", "metadata"]) {
        Some((name, tensor)) => serde_json::from_str(tensor.as_text(name)?)
            .map_err(|error| invalid(format!("tensor `{name}` is not JSON options: {error}")))?,
        None => Options::default(),
    };
    let text = prompt.1.as_text(&prompt.0)?;
    if text.is_empty() {
        return Err(invalid(format!("tensor `{}` is empty; a prompt needs text", prompt.0)));
    }
    Ok((text, options))
}

fn ask(text: &str, options: Options) -> Ask {
    let mut ask = Ask::new(Prompt::Raw(text.to_owned()));
    // ggml's -1 is "until the end", which here has a bound all the same: the context.
    ask.max_tokens = match options.n_predict {
        None => Some(DEFAULT_TOKENS),
        Some(n) if n < 0 => None,
        Some(n) => Some(u32::try_from(n).unwrap_or(u32::MAX)),
    };
    let sampling = &mut ask.sampling;
    sampling.temperature = options.temp.unwrap_or(sampling.temperature);
    sampling.top_k = options.top_k.unwrap_or(sampling.top_k);
    sampling.top_p = options.top_p.unwrap_or(sampling.top_p);
    sampling.min_p = options.min_p.unwrap_or(sampling.min_p);
    let penalties = &mut sampling.penalties;
    penalties.repetition = options.repeat_penalty.unwrap_or(penalties.repetition);
    penalties.presence = options.presence_penalty.unwrap_or(penalties.presence);
    penalties.frequency = options.frequency_penalty.unwrap_or(penalties.frequency);
    sampling.seed = options.seed;
    ask.stop = options.reverse_prompt.into_iter().filter(|stop| !stop.is_empty()).collect();
    ask
}

impl From<Refusal> for NnError {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::TooLong { .. } => ErrorCode::TooLarge,
            Refusal::Invalid(_) => ErrorCode::InvalidArgument,
            // The draft has no word for busy; a timeout is what a caller would retry.
            Refusal::Busy { .. } => ErrorCode::Timeout,
            Refusal::Fault(_) => ErrorCode::RuntimeError,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<JoinRefusal> for NnError {
    fn from(refusal: JoinRefusal) -> Self {
        let code = match &refusal {
            JoinRefusal::NotFound(_) => ErrorCode::NotFound,
            JoinRefusal::NotGranted(_) => ErrorCode::Security,
            JoinRefusal::Busy(_) => ErrorCode::Timeout,
            JoinRefusal::Fault(_) => ErrorCode::RuntimeError,
        };
        Self::new(code, refusal.to_string())
    }
}
