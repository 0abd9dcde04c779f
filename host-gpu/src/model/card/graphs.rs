//! Steps of one shape as graphs: launching hundreds of kernels takes the processor longer than a card takes to run them.

use super::Wanted;
use crate::ops::cuda::{CudaError, Device, Graph};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// More are never kept: shapes are few, and where they are not, graphs do not pay.
const MOST: usize = 256;

/// What the launches of a step depend on, next to its model. Everything else is in the memory that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Sequences, each with its next token.
    pub(super) tokens: usize,
    /// Cuts of the longest.
    pub(super) splits: usize,
    pub(super) wanted: Wanted,
    /// Whether some of the tokens are drawn by the step before.
    pub(super) follows: bool,
}

/// How the next step of a shape is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Kernel by kernel.
    Launch,
    /// As a graph, which is to be put together.
    Capture,
    /// As the graph that is there.
    Replay,
}

/// The graphs of all models.
pub(super) struct Graphs {
    /// On its stream they are put together.
    recorder: Device,
    known: HashMap<(usize, Shape), Known>,
    steps: u64,
    /// Whether the driver makes none.
    off: bool,
}

struct Known {
    /// Gone with the model, whose weights the graph names.
    model: Weak<()>,
    /// `None` after the first step.
    graph: Option<Graph>,
}

fn key(model: &Arc<()>, shape: Shape) -> (usize, Shape) {
    (Arc::as_ptr(model).addr(), shape)
}

impl Graphs {
    /// # Errors
    /// What the driver says.
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self { recorder: device.beside()?, known: HashMap::new(), steps: 0, off: false })
    }

    /// Forgets all: memory that they name is about to go.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    pub(super) fn recorder(&self) -> &Device {
        &self.recorder
    }

    /// Steps that were launched as graphs.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// How to launch a step of `shape`. The first one is noted.
    pub(super) fn next(&mut self, model: &Arc<()>, shape: Shape) -> Next {
        if self.off {
            return Next::Launch;
        }
        // Graphs of models that are gone hold memory of the driver.
        self.known.retain(|_, known| known.model.strong_count() > 0);
        match self.known.get(&key(model, shape)) {
            Some(Known { graph: Some(_), .. }) => Next::Replay,
            Some(_) => Next::Capture,
            None => {
                if self.known.len() >= MOST {
                    self.known.clear();
                }
                self.known.insert(key(model, shape), Known { model: Arc::downgrade(model), graph: None });
                Next::Launch
            }
        }
    }

    /// Keeps what was put together. If nothing was, no more is tried: steps are launched kernel by kernel.
    pub(super) fn put(&mut self, model: &Arc<()>, shape: Shape, graph: Result<Option<Graph>, CudaError>) {
        match (graph, self.known.get_mut(&key(model, shape))) {
            (Ok(Some(graph)), Some(known)) => known.graph = Some(graph),
            (Err(error), _) => {
                tracing::warn!(%error, "no graph can be made; each kernel is launched by itself");
                self.off = true;
                self.known.clear();
            }
            _ => {}
        }
    }

    /// Launches the graph on the stream of `device`; says whether there is one.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// All that it names lives: the model's weights, and the memory for which [`Self::clear`] was not called.
    #[expect(unsafe_code, reason = "what a graph names is known to the caller alone")]
    pub(super) unsafe fn replay(&mut self, device: &Device, model: &Arc<()>, shape: Shape) -> Result<bool, CudaError> {
        let Some(Known { graph: Some(graph), .. }) = self.known.get(&key(model, shape)) else { return Ok(false) };
        // SAFETY: the caller's promise.
        unsafe { device.replay(graph)? };
        self.steps += 1;
        Ok(true)
    }
}
