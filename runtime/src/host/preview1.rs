//! What a core module of WASI 0.1 can call, and what the host keeps for it: the command line, files and clocks as
//! commands of WASI 0.2 have them, and `wasi_ephemeral_nn` where it was granted a model.

use std::sync::Arc;

use wasmtime::Linker;
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi::p1::{self, WasiP1Ctx};

use super::nn::ephemeral::{self, Tables};
use super::{Models, grant};
use crate::config::Grants;
use crate::instance::{Granted, Limiter, Meter};
use crate::request::Invocation;

/// The name modules import WASI 0.1 by.
pub const MODULE: &str = "wasi_snapshot_preview1";

/// Everything the host keeps for one module; dropped with it.
pub struct ModuleState {
    wasi: WasiP1Ctx,
    /// Asked by the store before anything grows.
    pub limiter: Limiter,
    /// What counts its time.
    pub meter: Arc<Meter>,
    pub(super) invocation: Arc<Invocation>,
    pub(super) models: Models,
    pub(super) handles: u32,
    pub(super) nn: Tables,
}

impl ModuleState {
    /// The state of a command: its streams are this process's.
    ///
    /// # Errors
    /// A directory that was granted cannot be opened.
    pub fn of_command(
        args: &[String],
        granted: &Granted,
        invocation: Arc<Invocation>,
        meter: Arc<Meter>,
    ) -> wasmtime::Result<Self> {
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stdio().args(args);
        grant(&mut wasi, granted)?;
        Ok(Self {
            wasi: wasi.build_p1(),
            limiter: Limiter::new(granted.limits, meter.clone()),
            meter,
            invocation,
            models: granted.models.clone(),
            handles: granted.limits.handles,
            nn: Tables::default(),
        })
    }
}

/// Links WASI 0.1, and what comes with its grants.
///
/// # Errors
/// None in practice: the names are distinct.
pub fn link(linker: &mut Linker<ModuleState>, grants: Grants) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, |state| &mut state.wasi)?;
    if grants.models {
        ephemeral::link(linker)?;
    }
    Ok(())
}
