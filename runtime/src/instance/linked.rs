//! A component joined with the host's side of its imports. Functions over the same component that are granted the same
//! kinds of things share one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{p2, p3};

use super::component::{self, ComponentError};
use super::engine::WasmEngine;
use crate::config::Grants;
use crate::host::{self, State};

/// A component that is ready to be instantiated.
pub struct Linked {
    pub(super) pre: ProxyPre<State>,
}

/// The host's side of all imports, made once for each engine (with tasks or without) and kind of grants.
#[derive(Default)]
pub(super) struct Linkers(Mutex<HashMap<Kind, Arc<Linker<State>>>>);

type Kind = (bool, Grants);

impl Linkers {
    fn of(&self, engine: &Engine, concurrent: bool, grants: Grants) -> wasmtime::Result<Arc<Linker<State>>> {
        let mut linkers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(linker) = linkers.get(&(concurrent, grants)) {
            return Ok(linker.clone());
        }
        let mut linker = Linker::new(engine);
        host::link(&mut linker, grants, concurrent)?;
        Ok(linkers.entry((concurrent, grants)).or_insert(Arc::new(linker)).clone())
    }
}

impl Linked {
    /// Checks what `component` imports and exports, and links it.
    ///
    /// # Errors
    /// See [`component::check_world`]; `Unlinkable` where a version differs.
    pub fn new(wasm: &WasmEngine, component: &Component, grants: Grants) -> Result<Self, ComponentError> {
        component::check_world(component, grants)?;
        Self::link(wasm, component, grants).map_err(ComponentError::Unlinkable)
    }

    fn link(wasm: &WasmEngine, component: &Component, grants: Grants) -> wasmtime::Result<Self> {
        let engine = component.engine();
        let concurrent = !Engine::same(engine, wasm.wasmtime());
        let pre = wasm.linkers.of(engine, concurrent, grants)?.instantiate_pre(component)?;
        let handles_three =
            component.component_type().exports(engine).any(|(name, _)| name.starts_with("wasi:http/handler@0.3."));
        let pre = match handles_three {
            true => ProxyPre::P3(p3::bindings::ServicePre::new(pre)?),
            false => ProxyPre::P2(p2::bindings::ProxyPre::new(pre)?),
        };
        Ok(Self { pre })
    }

    /// A component of any world, joined with the host's side of its imports.
    ///
    /// # Errors
    /// See [`component::check_imports`]; `Unlinkable` where a version differs.
    pub(crate) fn other(
        wasm: &WasmEngine,
        component: &Component,
        grants: Grants,
    ) -> Result<InstancePre<State>, ComponentError> {
        component::check_imports(component, grants)?;
        let (engine, concurrent) = (component.engine(), !Engine::same(component.engine(), wasm.wasmtime()));
        let linker = wasm.linkers.of(engine, concurrent, grants);
        linker.and_then(|linker| linker.instantiate_pre(component)).map_err(ComponentError::Unlinkable)
    }

    /// Whether it speaks WASI 0.3, whose instances can answer several requests at once.
    pub fn is_concurrent(&self) -> bool {
        matches!(self.pre, ProxyPre::P3(_))
    }
}
