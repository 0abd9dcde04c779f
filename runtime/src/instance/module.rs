//! A core module of WASI 0.1, run once as a command: the form programs had before components.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::{Linker, Module, Store};

use super::callable::{Granted, limited};
use super::component::ComponentError;
use super::meter::Meter;
use crate::config::Grants;
use crate::host::nn::ephemeral;
use crate::host::preview1::{self, ModuleState};
use crate::request::Invocation;

/// The function that a program begins with.
const START: &str = "_start";

/// A module that is ready to run.
pub(super) struct ModuleCommand {
    module: Module,
    linker: Linker<ModuleState>,
}

impl ModuleCommand {
    /// Checks what `module` imports and exports, and links it.
    ///
    /// # Errors
    /// `NoStart`, `NotOffered`, `NotGranted`.
    pub(super) fn new(module: Module, grants: Grants) -> Result<Self, ComponentError> {
        if module.get_export(START).is_none_or(|export| export.func().is_none()) {
            return Err(ComponentError::NoStart);
        }
        for import in module.imports() {
            let name = || format!("{}.{}", import.module(), import.name());
            match import.module() {
                preview1::MODULE => {}
                ephemeral::MODULE if grants.models => {}
                ephemeral::MODULE => return Err(ComponentError::no_model(name())),
                _ => return Err(ComponentError::NotOffered(name())),
            }
        }
        let mut linker = Linker::new(module.engine());
        preview1::link(&mut linker, grants).map_err(ComponentError::Unlinkable)?;
        Ok(Self { module, linker })
    }

    /// Runs it.
    pub(super) async fn run(
        &self,
        args: &[String],
        granted: &Granted,
        invocation: Arc<Invocation>,
    ) -> wasmtime::Result<()> {
        let meter = Arc::new(Meter::new(Instant::now()));
        let state = ModuleState::of_command(args, granted, invocation, meter)?;
        let mut store = limited(Store::new(self.module.engine(), state), &granted.limits);
        let instance = self.linker.instantiate_async(&mut store, &self.module).await?;
        instance.get_typed_func::<(), ()>(&mut store, START)?.call_async(&mut store, ()).await
    }
}
