//! `wasi:nn@0.2.0-rc-2024-10-28` over the same resident models.
//!
//! `load-by-name` joins a model; `compute` is one whole generation. What the tensors mean is in `ggml`; core modules
//! have the older functions of [`ephemeral`]. `load` from the guest's own bytes is refused in both: it would feed
//! untrusted bytes to a parser in the host.

pub mod ephemeral;
mod ggml;

use wasmtime::Result;
use wasmtime::component::{Linker, Resource};

use self::ggml::LOADS_NO_BYTES;
pub use self::ggml::{NnError, Tensor};
use super::infer::Joined;
use super::{HasModels, MAX_TENSOR_BYTES, ModelView, State, model_view};

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

/// A joined model, in wasi-nn's words.
pub struct Graph(std::sync::Arc<Joined>);

/// What `compute` runs on; it holds no state between two calls.
pub struct Execution(std::sync::Arc<Joined>);

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
}

impl graph::Host for ModelView<'_> {
    fn load(&mut self, _: Vec<Vec<u8>>, _: graph::GraphEncoding, _: graph::ExecutionTarget) -> Answer<Resource<Graph>> {
        self.fail(NnError::new(ErrorCode::UnsupportedOperation, LOADS_NO_BYTES))
    }

    async fn load_by_name(&mut self, name: String) -> Answer<Resource<Graph>> {
        match self.models.join(&name, self.invocation).await {
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
        match ggml::compute(&joined, &inputs, self.invocation, self.models.allowance.as_ref()).await {
            Ok((made, metadata)) => {
                let made = self.push_tensor(made)?;
                let metadata = self.push_tensor(metadata)?;
                Ok(Ok(vec![("0".into(), made), ("1".into(), metadata)]))
            }
            Err(error) => self.fail(error),
        }
    }

    fn drop(&mut self, context: Resource<Execution>) -> Result<()> {
        self.table.delete(context)?;
        Ok(())
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
