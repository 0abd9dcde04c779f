//! A command - a component of `wasi:cli/command`, or a core module of WASI 0.1 - run once, as the process that runs it.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi::{I32Exit, p2, p3};

use super::callable::{Granted, limited};
use super::component::{self, ComponentError, Kind};
use super::engine::WasmEngine;
use super::meter::Meter;
use super::module::ModuleCommand;
use crate::config::Grants;
use crate::data::DataDir;
use crate::digest::Digest;
use crate::host::{self, State};
use crate::request::Invocation;

/// A command that is ready to run.
pub struct Command(Form);

enum Form {
    Component(ComponentCommand),
    Module(ModuleCommand),
}

struct ComponentCommand {
    component: Component,
    linker: Linker<State>,
    /// It exports WASI 0.3's `run`.
    is_three: bool,
}

impl Command {
    /// Compiles what `bytes` are, unless `data` has it compiled, checks what it imports and exports, and links it.
    ///
    /// # Errors
    /// See [`ComponentError`].
    pub fn load(wasm: &WasmEngine, data: &DataDir, bytes: Vec<u8>, grants: Grants) -> Result<Self, ComponentError> {
        let digest = Digest::of(&bytes);
        Ok(Self(match component::kind(&bytes)? {
            Kind::Component => {
                let component = component::load_from(wasm, data, &digest, || Ok(bytes))?;
                Form::Component(ComponentCommand::new(wasm, component, grants)?)
            }
            Kind::Module => {
                let module = component::load_module(wasm, data, &digest, || Ok(bytes))?;
                Form::Module(ModuleCommand::new(module, grants)?)
            }
        }))
    }

    /// Runs it; what it exits with.
    ///
    /// # Errors
    /// It trapped, or could not be started.
    pub(crate) async fn run(&self, args: &[String], granted: Granted, invocation: Invocation) -> wasmtime::Result<i32> {
        let (granted, invocation) = (Arc::new(granted), Arc::new(invocation));
        let ended = match &self.0 {
            Form::Component(command) => command.run(args, granted, invocation).await,
            Form::Module(command) => command.run(args, &granted, invocation).await.map(Ok),
        };
        match ended {
            Ok(Ok(())) => Ok(0),
            Ok(Err(())) => Ok(1),
            Err(error) => match error.downcast_ref::<I32Exit>() {
                Some(I32Exit(code)) => Ok(*code),
                None => Err(error),
            },
        }
    }
}

impl ComponentCommand {
    fn new(wasm: &WasmEngine, component: Component, grants: Grants) -> Result<Self, ComponentError> {
        let engine = component.engine().clone();
        let exports =
            |prefix: &str| component.component_type().exports(&engine).any(|(name, _)| name.starts_with(prefix));
        let is_three = exports("wasi:cli/run@0.3.");
        if !is_three && !exports("wasi:cli/run@0.2.") {
            return Err(ComponentError::NotACommand);
        }
        component::check_imports(&component, grants)?;
        let mut linker = Linker::new(&engine);
        let concurrent = !wasmtime::Engine::same(&engine, wasm.wasmtime());
        host::link(&mut linker, grants, concurrent).map_err(ComponentError::Unlinkable)?;
        Ok(Self { component, linker, is_three })
    }

    async fn run(
        &self,
        args: &[String],
        granted: Arc<Granted>,
        invocation: Arc<Invocation>,
    ) -> wasmtime::Result<Result<(), ()>> {
        let limits = granted.limits;
        let meter = Arc::new(Meter::new(Instant::now()));
        let state = State::of_command(args, granted, invocation, meter)?;
        let mut store = limited(Store::new(self.component.engine(), state), &limits);
        if self.is_three {
            let command = p3::bindings::Command::instantiate_async(&mut store, &self.component, &self.linker).await?;
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            run.await.and_then(|ended| ended)
        } else {
            let command = p2::bindings::Command::instantiate_async(&mut store, &self.component, &self.linker).await?;
            command.wasi_cli_run().call_run(&mut store).await
        }
    }
}
