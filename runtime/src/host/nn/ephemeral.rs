//! `wasi_ephemeral_nn`: the functions of the `wasi-nn` crate, for core modules, over the same models and tensors.
//!
//! What a module passes are numbers: handles, and places in its memory. None is trusted: a place is read or written
//! only inside the memory as it is at that moment, a handle only if it was given out. The interface has no way to
//! give a handle back, so these are counted, as is what tensors hold. An error is a number too; its sentence goes to
//! the log.

use std::sync::Arc;

use wasmtime::{Caller, Extern, Linker, Memory, Result};

use super::super::preview1::ModuleState;
use super::bindings::wasi::nn::errors::ErrorCode;
use super::bindings::wasi::nn::tensor::TensorType;
use super::ggml::{self, LOADS_NO_BYTES, NnError, Tensor};
use crate::host::MAX_TENSOR_BYTES;
use crate::host::infer::Joined;

/// The name modules import it by.
pub const MODULE: &str = "wasi_ephemeral_nn";

/// Longest name of a model that is looked at.
const MAX_NAME: u32 = 1024;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 16;
/// Bytes of a tensor as it lies in memory: place and number of its dimensions, type, place and number of its bytes.
const TENSOR_RECORD: u32 = 20;

/// What a module holds; handles are indices.
#[derive(Default)]
pub struct Tables {
    graphs: Vec<Arc<Joined>>,
    executions: Vec<Execution>,
    /// What all inputs and outputs hold.
    tensor_bytes: usize,
}

/// A joined model with what goes in and what has come out.
struct Execution {
    joined: Arc<Joined>,
    inputs: Vec<(String, Tensor)>,
    outputs: Option<[Vec<u8>; 2]>,
}

/// Error numbers of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Errno {
    InvalidArgument = 1,
    MissingMemory = 3,
    Busy = 4,
    RuntimeError = 5,
    UnsupportedOperation = 6,
    TooLarge = 7,
    NotFound = 8,
}

/// A call that is refused: a number for the guest, a sentence for the log.
struct Refused(Errno, String);

type Answer<T> = std::result::Result<T, Refused>;

/// Links the six functions.
///
/// # Errors
/// None in practice: the names are distinct.
pub fn link(linker: &mut Linker<ModuleState>) -> Result<()> {
    linker.func_wrap(MODULE, "load", |_: Caller<'_, ModuleState>, _: u32, _: u32, _: u32, _: u32, _: u32| {
        code("load", Err(Refused(Errno::UnsupportedOperation, LOADS_NO_BYTES.into())))
    })?;
    linker.func_wrap_async(MODULE, "load_by_name", |caller, (name, len, out): (u32, u32, u32)| {
        Box::new(async move { code("load_by_name", Call(caller).load_by_name(name, len, out).await) })
    })?;
    linker.func_wrap(MODULE, "init_execution_context", |caller: Caller<'_, _>, graph: u32, out: u32| {
        code("init_execution_context", Call(caller).init_execution_context(graph, out))
    })?;
    linker.func_wrap(MODULE, "set_input", |caller: Caller<'_, _>, execution: u32, index: u32, tensor: u32| {
        code("set_input", Call(caller).set_input(execution, index, tensor))
    })?;
    linker.func_wrap_async(MODULE, "compute", |caller, (execution,): (u32,)| {
        Box::new(async move { code("compute", Call(caller).compute(execution).await) })
    })?;
    linker.func_wrap(
        MODULE,
        "get_output",
        |caller: Caller<'_, _>, execution: u32, index: u32, to: u32, most: u32, written: u32| {
            code("get_output", Call(caller).get_output(execution, index, to, most, written))
        },
    )?;
    Ok(())
}

fn code(call: &str, answer: Answer<()>) -> u32 {
    match answer {
        Ok(()) => 0,
        Err(Refused(errno, why)) => {
            tracing::warn!(target: "hob::guest", code = ?errno, "{MODULE}.{call}: {why}");
            errno as u32
        }
    }
}

/// A call of the guest's, with its memory and what it holds.
struct Call<'a>(Caller<'a, ModuleState>);

impl Call<'_> {
    async fn load_by_name(mut self, name: u32, len: u32, out: u32) -> Answer<()> {
        self.check(out, 4)?;
        if len > MAX_NAME {
            return Err(invalid(format!("a name of {len} bytes; no model has one of more than {MAX_NAME}")));
        }
        let name = self.read(name, len)?.to_vec();
        let name = str::from_utf8(&name).map_err(|_| invalid("the model's name is not UTF-8"))?;
        self.room_for_a_handle()?;
        let state = self.0.data();
        let (models, invocation) = (state.models.clone(), state.invocation.clone());
        let joined = models.join(name, &invocation).await.map_err(NnError::from)?;
        let graphs = &mut self.nn().graphs;
        graphs.push(joined.into());
        let handle = handle(graphs.len() - 1);
        self.write(out, &handle)
    }

    fn init_execution_context(mut self, graph: u32, out: u32) -> Answer<()> {
        self.check(out, 4)?;
        self.room_for_a_handle()?;
        let nn = self.nn();
        let joined = nn.graphs.get(graph as usize).ok_or_else(|| no_such("graph", graph))?.clone();
        nn.executions.push(Execution { joined, inputs: Vec::new(), outputs: None });
        let handle = handle(nn.executions.len() - 1);
        self.write(out, &handle)
    }

    fn set_input(mut self, execution: u32, index: u32, tensor: u32) -> Answer<()> {
        self.nn().find(execution)?;
        if index > 1 {
            return Err(invalid(format!("there is no input {index}: 0 is the prompt, 1 the options")));
        }
        let record = self.read(tensor, TENSOR_RECORD)?;
        let word = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
        let (dimensions, rank, data, len) = (word(0), word(4), word(12), word(16));
        let ty = element_type(record[8])?;
        if rank > MAX_DIMENSIONS {
            return Err(invalid(format!("a tensor of {rank} dimensions; {MAX_DIMENSIONS} are allowed")));
        }
        let dimensions = self.read(dimensions, rank * 4)?.chunks_exact(4);
        let dimensions = dimensions.map(|four| u32::from_le_bytes(four.try_into().expect("four bytes"))).collect();
        self.read(data, len)?;
        let name = index.to_string();
        let nn = self.nn();
        let before = nn.find(execution)?.inputs.iter().find(|(own, _)| *own == name);
        let before = before.map_or(0, |(_, tensor)| tensor.data.len());
        nn.hold(len as usize, before)?;
        let tensor = Tensor { dimensions, ty, data: self.read(data, len)?.to_vec() };
        let inputs = &mut self.nn().find(execution)?.inputs;
        inputs.retain(|(own, _)| *own != name);
        inputs.push((name, tensor));
        Ok(())
    }

    async fn compute(mut self, execution: u32) -> Answer<()> {
        let nn = self.nn();
        let own = nn.find(execution)?;
        let before = own.outputs.take().map_or(0, |outputs| outputs.iter().map(Vec::len).sum());
        let (joined, inputs) = (own.joined.clone(), std::mem::take(&mut own.inputs));
        nn.hold(0, before)?;
        let invocation = self.0.data().invocation.clone();
        let allowance = self.0.data().models.allowance.clone();
        let made = ggml::compute(&joined, &inputs, &invocation, allowance.as_ref()).await;
        let nn = self.nn();
        nn.find(execution)?.inputs = inputs;
        let (made, about) = made?;
        nn.hold(made.data.len() + about.data.len(), 0)?;
        nn.find(execution)?.outputs = Some([made.data, about.data]);
        Ok(())
    }

    fn get_output(mut self, execution: u32, index: u32, to: u32, most: u32, written: u32) -> Answer<()> {
        self.check(written, 4)?;
        self.check(to, most)?;
        let Some(outputs) = &self.nn().find(execution)?.outputs else {
            return Err(Refused(Errno::RuntimeError, "nothing was computed yet; call compute first".into()));
        };
        let output = outputs.get(index as usize);
        let output = output.ok_or_else(|| {
            invalid(format!("there is no output {index}: 0 is the text or the embedding, 1 its numbers"))
        })?;
        if output.len() > most as usize {
            let why = format!("output {index} has {} bytes, the buffer {most}", output.len());
            return Err(Refused(Errno::TooLarge, why));
        }
        let output = output.clone();
        self.write(to, &output)?;
        self.write(written, &u32::try_from(output.len()).unwrap_or(u32::MAX).to_le_bytes())
    }

    fn nn(&mut self) -> &mut Tables {
        &mut self.0.data_mut().nn
    }

    fn room_for_a_handle(&mut self) -> Answer<()> {
        let most = self.0.data().handles as usize;
        let nn = self.nn();
        if nn.graphs.len() + nn.executions.len() < most {
            return Ok(());
        }
        Err(Refused(Errno::TooLarge, format!("it holds {most} graphs and contexts, and may not hold more")))
    }

    fn memory(&mut self) -> Answer<Memory> {
        let memory = self.0.get_export("memory").and_then(Extern::into_memory);
        memory.ok_or_else(|| Refused(Errno::MissingMemory, "the module exports no memory named `memory`".into()))
    }

    /// Looks whether `len` bytes at `at` are in the guest's memory, which never shrinks.
    fn check(&mut self, at: u32, len: u32) -> Answer<()> {
        self.read(at, len).map(drop)
    }

    fn read(&mut self, at: u32, len: u32) -> Answer<&[u8]> {
        let memory = self.memory()?;
        // Both are 32 bits wide, and this host's addresses are not: their sum cannot overflow.
        let (from, to) = (at as usize, at as usize + len as usize);
        memory.data(&self.0).get(from..to).ok_or_else(|| outside(at, len as usize))
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Answer<()> {
        let memory = self.memory()?;
        memory.write(&mut self.0, at as usize, bytes).map_err(|_| outside(at, bytes.len()))
    }
}

impl Tables {
    fn find(&mut self, execution: u32) -> Answer<&mut Execution> {
        self.executions.get_mut(execution as usize).ok_or_else(|| no_such("context", execution))
    }

    /// Counts `more` bytes in place of `less`, if that many may be held.
    fn hold(&mut self, more: usize, less: usize) -> Answer<()> {
        let held = self.tensor_bytes - less + more;
        if held > MAX_TENSOR_BYTES {
            let why = format!("this instance's tensors would hold {held} bytes; {MAX_TENSOR_BYTES} are allowed");
            return Err(Refused(Errno::TooLarge, why));
        }
        self.tensor_bytes = held;
        Ok(())
    }
}

fn element_type(code: u8) -> Answer<TensorType> {
    Ok(match code {
        0 => TensorType::Fp16,
        1 => TensorType::Fp32,
        2 => TensorType::Fp64,
        3 => TensorType::U8,
        4 => TensorType::I32,
        5 => TensorType::I64,
        _ => return Err(invalid(format!("{code} is no type of a tensor's elements"))),
    })
}

fn handle(index: usize) -> [u8; 4] {
    u32::try_from(index).unwrap_or(u32::MAX).to_le_bytes()
}

fn invalid(why: impl Into<String>) -> Refused {
    Refused(Errno::InvalidArgument, why.into())
}

fn no_such(what: &str, handle: u32) -> Refused {
    invalid(format!("there is no {what} {handle}"))
}

fn outside(at: u32, len: usize) -> Refused {
    invalid(format!("{len} bytes at {at} are not in the module's memory"))
}

impl From<NnError> for Refused {
    fn from(error: NnError) -> Self {
        let errno = match error.code {
            ErrorCode::InvalidArgument | ErrorCode::InvalidEncoding => Errno::InvalidArgument,
            // A model that is busy, or still loads: later it may do.
            ErrorCode::Timeout => Errno::Busy,
            ErrorCode::UnsupportedOperation => Errno::UnsupportedOperation,
            ErrorCode::TooLarge => Errno::TooLarge,
            // This interface has no word for what is not allowed.
            ErrorCode::NotFound | ErrorCode::Security => Errno::NotFound,
            ErrorCode::RuntimeError | ErrorCode::Unknown => Errno::RuntimeError,
        };
        Self(errno, error.data)
    }
}
