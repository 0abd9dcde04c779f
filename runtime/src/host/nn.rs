//! `wasi:nn@0.2.0-rc-2024-10-28` over the same resident models.
//!
//! `load-by-name` joins a model; `compute` is one whole generation. The tensors follow what guests of the ggml
//! backends use (WasmEdge's plug-in is the one people write for), by index as a name:
//!
//! | tensor | also called | type | what |
//! |---|---|---|---|
//! | input `0` | `prompt`, `input`; a single input of any name | `U8`, `[bytes]` | the prompt, UTF-8, special tokens obeyed |
//! | input `1` | `options`, `metadata` | `U8`, `[bytes]` | JSON: `n-predict`, `temp`, `top-k`, `top-p`, `min-p`, `repeat-penalty`, `presence-penalty`, `frequency-penalty`, `seed`, `reverse-prompt`; others are ignored |
//! | output `0` | | `U8`, `[bytes]` | the text, UTF-8 |
//! | output `1` | | `U8`, `[bytes]` | JSON: `input_tokens`, `output_tokens`, `finish_reason` |
//!
//! `load` from the guest's own bytes is refused: it would feed untrusted bytes to a parser in the host.

use hob_gpu::{Ask, Event, Finish, Prompt, Refusal};
use serde::Deserialize;
use wasmtime::Result;
use wasmtime::component::{Linker, Resource};

use super::infer::{Joined, TokenStream};
use super::{HasModels, MAX_TENSOR_BYTES, ModelView, State, model_view};
use crate::models::JoinRefusal;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/wasi-nn",
        world: "ml",
        with: {
            "wasi:nn/graph.graph": super::Graph,
            "wasi:nn/tensor.tensor": super::Tensor,
            "wasi:nn/inference.graph-execution-context": super::Execution,
            "wasi:nn/errors.error": super::NnError,
        },
        imports: {
            "wasi:nn/graph.load-by-name": async | trappable,
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
            default: trappable,
        },
    });
}
use bindings::wasi::nn::{errors, graph, inference, tensor};
use errors::ErrorCode;
use tensor::TensorType;

/// Tokens generated when the guest does not say how many.
const DEFAULT_TOKENS: u32 = 512;

/// A joined model, in wasi-nn's words.
pub struct Graph(std::sync::Arc<Joined>);

/// What `compute` runs on; it holds no state between two calls.
pub struct Execution(std::sync::Arc<Joined>);

/// A typed array of the guest's.
pub struct Tensor {
    dimensions: Vec<u32>,
    ty: TensorType,
    data: Vec<u8>,
}

/// An error as a resource: a code, and a sentence.
pub struct NnError {
    code: ErrorCode,
    data: String,
}

impl NnError {
    fn new(code: ErrorCode, data: impl Into<String>) -> Self {
        Self { code, data: data.into() }
    }
}

/// Links `wasi:nn`.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    errors::add_to_linker::<_, HasModels>(linker, model_view)?;
    graph::add_to_linker::<_, HasModels>(linker, model_view)?;
    inference::add_to_linker::<_, HasModels>(linker, model_view)?;
    tensor::add_to_linker::<_, HasModels>(linker, model_view)
}

type Answer<T> = Result<Result<T, Resource<NnError>>>;

impl ModelView<'_> {
    /// Takes a tensor in, if the instance may hold that much. A constructor has no error to return: more is a trap.
    fn push_tensor(&mut self, tensor: Tensor) -> Result<Resource<Tensor>> {
        let held = *self.tensor_bytes + tensor.data.len();
        if held > MAX_TENSOR_BYTES {
            return Err(wasmtime::format_err!(
                "this instance's tensors would hold {held} bytes; {MAX_TENSOR_BYTES} are allowed"
            ));
        }
        let resource = self.table.push(tensor)?;
        *self.tensor_bytes = held;
        Ok(resource)
    }

    /// Takes a tensor out.
    fn take_tensor(&mut self, tensor: Resource<Tensor>) -> Result<Tensor> {
        let tensor = self.table.delete(tensor)?;
        *self.tensor_bytes -= tensor.data.len();
        Ok(tensor)
    }

    fn fail<T>(&mut self, error: NnError) -> Answer<T> {
        Ok(Err(self.table.push(error)?))
    }

    /// One whole generation.
    async fn infer(&mut self, joined: &Joined, inputs: &[(String, Tensor)]) -> Result<(String, String), NnError> {
        let started = super::infer::start(joined, ask(inputs)?, self.invocation, self.models.allowance.as_ref()).await;
        let tokens = started.map_err(|error| NnError::new(ErrorCode::RuntimeError, error.to_string()))??;
        let mut stream = TokenStream::new(tokens, self.invocation.clone());
        let mut text = String::new();
        let finish = loop {
            let event = stream.tokens.next().await;
            self.invocation.saw(&event, &stream.tokens);
            match event {
                Event::Text(piece) => text.push_str(&piece),
                Event::Finished(Finish::Stop) => break "stop",
                Event::Finished(Finish::Length) => break "length",
                Event::Finished(Finish::Budget) => break "budget",
                Event::Fault(why) => return Err(NnError::new(ErrorCode::RuntimeError, why)),
            }
        };
        let usage = stream.tokens.usage();
        let metadata = serde_json::json!({
            "input_tokens": usage.prompt_tokens, "output_tokens": usage.generated_tokens, "finish_reason": finish,
        });
        Ok((text, metadata.to_string()))
    }
}

impl graph::Host for ModelView<'_> {
    fn load(&mut self, _: Vec<Vec<u8>>, _: graph::GraphEncoding, _: graph::ExecutionTarget) -> Answer<Resource<Graph>> {
        let why =
            "models are not loaded from a guest's bytes; use load-by-name with a model that the function was granted";
        self.fail(NnError::new(ErrorCode::UnsupportedOperation, why))
    }

    async fn load_by_name(&mut self, name: String) -> Answer<Resource<Graph>> {
        match self.join(&name).await {
            Ok(joined) => Ok(Ok(self.table.push(Graph(joined.into()))?)),
            Err(refusal) => self.fail(refusal.into()),
        }
    }
}

impl graph::HostGraph for ModelView<'_> {
    fn init_execution_context(&mut self, graph: Resource<Graph>) -> Answer<Resource<Execution>> {
        let joined = self.table.get(&graph)?.0.clone();
        Ok(Ok(self.table.push(Execution(joined))?))
    }

    fn drop(&mut self, graph: Resource<Graph>) -> Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for ModelView<'_> {}

impl inference::HostGraphExecutionContext for ModelView<'_> {
    async fn compute(
        &mut self,
        context: Resource<Execution>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> Answer<Vec<(String, Resource<Tensor>)>> {
        // The call owns its inputs: they are taken out first, so that a refusal leaves none behind.
        let inputs = inputs
            .into_iter()
            .map(|(name, tensor)| Ok((name, self.take_tensor(tensor)?)))
            .collect::<Result<Vec<_>>>()?;
        let joined = self.table.get(&context)?.0.clone();
        match self.infer(&joined, &inputs).await {
            Ok((text, metadata)) => {
                let text = self.push_tensor(Tensor::text(text))?;
                let metadata = self.push_tensor(Tensor::text(metadata))?;
                Ok(Ok(vec![("0".into(), text), ("1".into(), metadata)]))
            }
            Err(error) => self.fail(error),
        }
    }

    fn drop(&mut self, context: Resource<Execution>) -> Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

impl Tensor {
    fn text(text: String) -> Self {
        let data = text.into_bytes();
        Self { dimensions: vec![u32::try_from(data.len()).unwrap_or(u32::MAX)], ty: TensorType::U8, data }
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

impl tensor::Host for ModelView<'_> {}

impl tensor::HostTensor for ModelView<'_> {
    fn new(&mut self, dimensions: Vec<u32>, ty: TensorType, data: Vec<u8>) -> Result<Resource<Tensor>> {
        self.push_tensor(Tensor { dimensions, ty, data })
    }

    fn dimensions(&mut self, tensor: Resource<Tensor>) -> Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<Tensor>) -> Result<TensorType> {
        Ok(self.table.get(&tensor)?.ty)
    }

    fn data(&mut self, tensor: Resource<Tensor>) -> Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.data.clone())
    }

    fn drop(&mut self, tensor: Resource<Tensor>) -> Result<()> {
        self.take_tensor(tensor)?;
        Ok(())
    }
}

impl errors::Host for ModelView<'_> {}

impl errors::HostError for ModelView<'_> {
    fn code(&mut self, error: Resource<NnError>) -> Result<ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<NnError>) -> Result<String> {
        Ok(self.table.get(&error)?.data.clone())
    }

    fn drop(&mut self, error: Resource<NnError>) -> Result<()> {
        self.table.delete(error)?;
        Ok(())
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
}

fn ask(inputs: &[(String, Tensor)]) -> Result<Ask, NnError> {
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
    Ok(ask)
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
