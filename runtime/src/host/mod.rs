//! What a guest can call: one module for each interface that is ours, and the linking of all of them.
//!
//! Nothing reaches a guest that is not linked here. The standard library of `wasm32-wasip2` imports the command
//! line, the file system and the clocks whether a program uses them or not, so these are present but empty: no
//! arguments, no variables, no directories. Sockets and outgoing HTTP are absent. Models come with a grant.

pub mod infer;
mod log;
pub mod nn;

use std::sync::Arc;

use http::HeaderName;
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime::{StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::p2::bindings as wasi;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http as wasi_http;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::config::Limits;
use crate::models::Library;
use crate::names::ModelName;
use crate::request::Invocation;

/// Most host resources (streams, headers, tensors, models...) that one instance can hold at once. Some of them keep up
/// to 128 KiB in the host.
const MAX_RESOURCES: usize = 1000;
/// Most bytes of text that one call takes: a prompt, something to tokenize. Above it, an error that the guest can handle.
pub const MAX_CALL_BYTES: usize = 16 << 20;
/// Most bytes that one call may bring into the host at all. Above it, a trap.
pub const MAX_TRANSFER_BYTES: usize = 2 * MAX_CALL_BYTES;
/// Most bytes that the tensors of one instance can hold together.
const MAX_TENSOR_BYTES: usize = 64 << 20;

/// Everything the host keeps for one instance; dropped with it, and with it all that it holds.
pub struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoNetwork,
    /// Enforced by the store.
    pub limits: StoreLimits,
    /// The request this instance was made for.
    pub invocation: Arc<Invocation>,
    models: Grant,
    /// What the tensors in `table` hold.
    tensor_bytes: usize,
}

/// The models a function may use, and where they come from.
#[derive(Clone)]
pub struct Grant {
    /// Names, the default first.
    pub names: Arc<[ModelName]>,
    /// The host's models.
    pub library: Arc<Library>,
}

impl State {
    /// The state of a fresh instance.
    pub fn new(limits: Limits, models: Grant, invocation: Arc<Invocation>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let (out, err) = log::streams(&invocation);
        Self {
            table,
            wasi: WasiCtx::builder().stdout(out).stderr(err).build(),
            http: WasiHttpCtx::new(),
            hooks: NoNetwork,
            limits: StoreLimitsBuilder::new().memory_size((limits.memory_mib as usize) << 20).build(),
            invocation,
            models,
            tensor_bytes: 0,
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// The host's side of the model interfaces, borrowed from a [`State`] for one call.
pub struct ModelView<'a> {
    table: &'a mut ResourceTable,
    models: &'a Grant,
    invocation: &'a Arc<Invocation>,
    tensor_bytes: &'a mut usize,
}

struct HasModels;

impl HasData for HasModels {
    type Data<'a> = ModelView<'a>;
}

fn model_view(state: &mut State) -> ModelView<'_> {
    let State { table, models, invocation, tensor_bytes, .. } = state;
    ModelView { table, models, invocation, tensor_bytes }
}

/// Refuses every outgoing request. Outgoing HTTP is not linked; this stands behind it should that ever change.
struct NoNetwork;

type Sent = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for NoNetwork {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _sent: Sent,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Sent), Error>> + Send> {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }
}

/// Links what every function gets, and the model interfaces if it was granted a model.
///
/// # Errors
/// None in practice: the interfaces are distinct.
pub fn link(linker: &mut Linker<State>, has_model: bool) -> wasmtime::Result<()> {
    // The interfaces of the `wasi:http/proxy` world, without outgoing-handler.
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(linker)?;
    let options = wasmtime_wasi_http::p2::bindings::LinkOptions::default();
    wasi_http::types::add_to_linker::<_, WasiHttp>(linker, &(&options).into(), State::http)?;
    link_std(linker)?;
    if has_model {
        infer::link(linker)?;
        nn::link(linker)?;
    }
    Ok(())
}

/// What the standard library imports beyond that.
fn link_std(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
    use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView as _};
    use wasmtime_wasi::random::WasiRandom;

    wasi::cli::environment::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::cli::exit::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::cli::terminal_input::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::cli::terminal_output::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    wasi::filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem)?;
    wasi::filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem)?;
    wasi::random::insecure::add_to_linker::<_, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    wasi::random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    Ok(())
}
