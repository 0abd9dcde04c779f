//! A command (`wasi:cli/command`) run once, as the process that runs it.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi::{I32Exit, p2, p3};

use super::callable::{Granted, limited};
use super::component::{self, ComponentError};
use super::engine::WasmEngine;
use super::meter::Meter;
use crate::config::Grants;
use crate::host::{self, State};
use crate::request::Invocation;

/// A command that is ready to run.
pub struct Command {
    component: Component,
    linker: Linker<State>,
    /// It exports WASI 0.3's `run`.
    is_three: bool,
}

impl Command {
    /// Checks what `component` imports and exports, and links it.
    ///
    /// # Errors
    /// `NotACommand`, `NotOffered`, `NotGranted`.
    pub fn new(wasm: &WasmEngine, component: Component, grants: Grants) -> Result<Self, ComponentError> {
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

    /// Runs it; what it exits with.
    ///
    /// # Errors
    /// It trapped, or could not be started.
    pub async fn run(&self, args: &[String], granted: Granted, invocation: Invocation) -> wasmtime::Result<i32> {
        let limits = granted.limits;
        let meter = Arc::new(Meter::new(Instant::now()));
        let state = State::of_command(args, Arc::new(granted), Arc::new(invocation), meter)?;
        let mut store = limited(Store::new(self.component.engine(), state), &limits);
        let ended = if self.is_three {
            let command = p3::bindings::Command::instantiate_async(&mut store, &self.component, &self.linker).await?;
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            run.await.and_then(|ended| ended)
        } else {
            let command = p2::bindings::Command::instantiate_async(&mut store, &self.component, &self.linker).await?;
            command.wasi_cli_run().call_run(&mut store).await
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
