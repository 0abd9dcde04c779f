//! What a guest can call: one module for each interface that is ours, and the linking of all of them.
//!
//! Nothing reaches a guest that is not linked here. The standard libraries import the command line, the file system,
//! the clocks and sockets whether a program uses them or not, so these are present but give only what was granted: no
//! arguments, the function's own variables, its directories, and no socket without an egress rule for TCP. Outgoing
//! HTTP and TLS come with an egress rule, models with a grant.

mod config;
pub mod egress;
pub(crate) mod embed;
pub mod infer;
pub mod keyvalue;
mod log;
mod logging;
mod names;
pub mod nn;
mod otel;
pub mod preview1;
mod seed;
mod tls;

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http as wasi_http;
use wasmtime_wasi_http::{WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpView, p3};
use wasmtime_wasi_io::IoView;
use wasmtime_wasi_tls::WasiTlsCtx;

use self::egress::{Hooks, Outgoing, Tcp};
use self::log::Printing;
use crate::budget::Allowance;
use crate::config::Grants;
use crate::instance::{Granted, Limiter, Meter};
use crate::models::Library;
use crate::names::ModelName;
use crate::request::Invocation;

/// Most bytes of text that one call takes: a prompt, something to tokenize. Above it, an error that the guest can handle.
pub const MAX_CALL_BYTES: usize = 16 << 20;
/// Most bytes that the tensors of one instance can hold together.
const MAX_TENSOR_BYTES: usize = 64 << 20;
/// Most random bytes that one call gets: making them keeps the thread, and no clock stops a call to the host.
const MAX_RANDOM_BYTES: u64 = 1 << 20;

/// Everything the host keeps for one instance; dropped with it, and with it all that it holds.
pub struct State {
    table: ResourceTable,
    /// Made when it is first needed, unless that could fail: many guests answer without a clock, a variable or chance, and it has
    /// several sources of that.
    wasi: Option<WasiCtx>,
    http: WasiHttpCtx,
    hooks: Hooks,
    /// Its sockets, if a rule is for some.
    tcp: Option<Arc<Tcp>>,
    /// Made when it is first needed.
    tls: Option<WasiTlsCtx>,
    /// The spans that the guest has begun.
    spans: otel::Spans,
    /// Asked by the store before anything grows.
    pub limiter: Limiter,
    /// The request this instance serves; of several, the latest.
    pub invocation: Arc<Invocation>,
    meter: Arc<Meter>,
    granted: Arc<Granted>,
    printing: Printing,
    /// What the tensors in `table` hold.
    tensor_bytes: usize,
}

/// The models a function may use, and where they come from.
#[derive(Clone)]
pub struct Models {
    /// Names, the default first.
    pub names: Arc<[ModelName]>,
    /// The host's models.
    pub library: Arc<Library>,
    /// What generations may use; everything, if nothing is said.
    pub allowance: Option<Arc<Allowance>>,
}

impl State {
    /// The state of a fresh instance.
    ///
    /// # Errors
    /// A directory that was granted cannot be opened.
    pub fn new(granted: Arc<Granted>, invocation: Arc<Invocation>, meter: Arc<Meter>) -> wasmtime::Result<Self> {
        let printing = Printing::new(invocation.clone());
        let mut state = Self::without_wasi(printing, granted, invocation, meter);
        if !state.granted.directories.is_empty() {
            state.wasi = Some(state.make_wasi()?);
        }
        Ok(state)
    }

    /// The state of a command: its streams are this process's, and it has arguments.
    ///
    /// # Errors
    /// A directory that was granted cannot be opened.
    pub fn of_command(
        args: &[String],
        granted: Arc<Granted>,
        invocation: Arc<Invocation>,
        meter: Arc<Meter>,
    ) -> wasmtime::Result<Self> {
        let mut state = Self::without_wasi(Printing::new(invocation.clone()), granted, invocation, meter);
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stdio().args(args);
        state.wasi = Some(state.grant_wasi(wasi)?);
        Ok(state)
    }

    fn without_wasi(printing: Printing, granted: Arc<Granted>, invocation: Arc<Invocation>, meter: Arc<Meter>) -> Self {
        let limits = granted.limits;
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(limits.header_bytes as usize);
        let outgoing = |egress: &Arc<_>| Outgoing::new(Arc::clone(egress), limits.connections, invocation.clone());
        Self {
            table,
            wasi: None,
            tcp: granted.egress.as_ref().and_then(|egress| Tcp::new(egress, limits.connections, &invocation)),
            tls: None,
            spans: otel::Spans::default(),
            http,
            hooks: Hooks(granted.egress.as_ref().map(outgoing)),
            limiter: Limiter::new(limits, meter.clone()),
            invocation,
            meter,
            granted,
            printing,
            tensor_bytes: 0,
        }
    }

    fn make_wasi(&self) -> wasmtime::Result<WasiCtx> {
        let (out, err) = self.printing.streams();
        let mut wasi = WasiCtx::builder();
        wasi.stdout(out).stderr(err);
        self.grant_wasi(wasi)
    }

    /// With the function's own variables, directories and sockets.
    fn grant_wasi(&self, mut wasi: WasiCtxBuilder) -> wasmtime::Result<WasiCtx> {
        grant(&mut wasi, &self.granted)?;
        if let Some(tcp) = &self.tcp {
            tcp.open(&mut wasi);
        }
        Ok(wasi.build())
    }

    /// From now on it serves another request.
    pub fn renew(&mut self, invocation: Arc<Invocation>, meter: Arc<Meter>) {
        self.limiter.renew(meter.clone());
        self.printing.renew(invocation.clone());
        if let Hooks(Some(outgoing)) = &mut self.hooks {
            outgoing.invocation = invocation.clone();
        }
        if let Some(tcp) = &self.tcp {
            tcp.renew(invocation.clone());
        }
        self.spans = otel::Spans::default();
        self.meter = meter;
        self.invocation = invocation;
    }

    /// What counts its time.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

/// The function's own variables and directories.
fn grant(wasi: &mut WasiCtxBuilder, granted: &Granted) -> wasmtime::Result<()> {
    wasi.max_random_size(MAX_RANDOM_BYTES).envs(&granted.environment);
    for directory in &granted.directories {
        let perms = if directory.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        wasi.preopened_dir(&directory.host, &directory.guest, perms)
            .map_err(|error| error.context(format!("opening {} for the guest", directory.host.display())))?;
    }
    Ok(())
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        if self.wasi.is_none() {
            self.wasi = Some(self.make_wasi().expect("only a directory can fail to open, and there is none"));
        }
        let Self { wasi, table, .. } = self;
        WasiCtxView { ctx: wasi.as_mut().expect("it was made"), table }
    }
}

impl IoView for State {
    fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
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
    models: &'a Models,
    invocation: &'a Arc<Invocation>,
    tensor_bytes: &'a mut usize,
}

struct HasModels;

impl HasData for HasModels {
    type Data<'a> = ModelView<'a>;
}

fn model_view(state: &mut State) -> ModelView<'_> {
    let State { table, granted, invocation, tensor_bytes, .. } = state;
    ModelView { table, models: &granted.models, invocation, tensor_bytes }
}

/// Links what every function gets, and what comes with its grants; for the engine with tasks, WASI 0.3 beside 0.2.
///
/// # Errors
/// None in practice: the interfaces are distinct.
pub fn link(linker: &mut Linker<State>, grants: Grants, concurrent: bool) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    // Those of `wasmtime-wasi` would make all of its context for a stream.
    linker.allow_shadowing(true);
    wasmtime_wasi_io::add_to_linker_async(linker)?;
    linker.allow_shadowing(false);
    let options = wasmtime_wasi_http::p2::bindings::LinkOptions::default();
    wasi_http::types::add_to_linker::<_, WasiHttp>(linker, &(&options).into(), State::http)?;
    config::link(linker)?;
    keyvalue::link(linker)?;
    logging::link(linker)?;
    otel::link(linker)?;
    seed::link(linker)?;
    if concurrent {
        wasmtime_wasi::p3::add_to_linker(linker)?;
        p3::bindings::http::types::add_to_linker::<_, WasiHttp>(linker, State::http)?;
    }
    names::link(linker, concurrent)?;
    if grants.egress {
        wasi_http::outgoing_handler::add_to_linker::<_, WasiHttp>(linker, State::http)?;
        tls::link(linker, concurrent)?;
        if concurrent {
            p3::bindings::http::client::add_to_linker::<_, WasiHttp>(linker, State::http)?;
        }
    }
    if grants.models {
        infer::link(linker)?;
        nn::link(linker)?;
    }
    Ok(())
}
