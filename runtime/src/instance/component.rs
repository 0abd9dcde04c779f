//! From bytes to something that can be instantiated: compiled once, at deploy time, and mapped from then on.

use std::path::Path;

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wasmtime::{Engine, Module};

use super::engine::WasmEngine;
use crate::config::Grants;
use crate::data::DataDir;
use crate::digest::Digest;

/// Why a component cannot run here. All final: another component is needed.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// Not WebAssembly at all.
    #[error("this is not WebAssembly (it starts with {0:02x?}); deploy the .wasm file that the build wrote")]
    NotWasm(Vec<u8>),
    /// A core module.
    #[error(
        "this is a core WebAssembly module, not a component; build it with `--target wasm32-wasip2`, or run it with `hob run` if it is a program"
    )]
    CoreModule,
    /// The compiler refused it.
    #[error("this component does not compile: {0:#}")]
    Invalid(wasmtime::Error),
    /// It imports what hob does not have.
    #[error("it imports `{0}`, which hob does not offer")]
    NotOffered(String),
    /// It is middleware, without a handler behind it.
    #[error(
        "it imports `{0}`: it is middleware, to be named under `middleware` before the handler that it hands requests on to"
    )]
    Middleware(String),
    /// It imports what the function was not granted.
    #[error("it imports `{import}`, but was granted {grant}; {way_out}")]
    NotGranted {
        /// The import.
        import: String,
        /// What is missing.
        grant: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// It is no command.
    #[error("it exports no wasi:cli/run@0.2 or 0.3, so there is nothing to run; deploy it if it handles HTTP")]
    NotACommand,
    /// It is no program.
    #[error("it exports no function `_start`, so there is nothing to run; build a program, not a library")]
    NoStart,
    /// It does not handle HTTP.
    #[error(
        "it exports neither wasi:http/incoming-handler@0.2 nor wasi:http/handler@0.3, so there is nothing to call; build it as an HTTP handler"
    )]
    NotAHandler,
    /// It does not export what its caller calls.
    #[error("it is not of the world that it is called in: {0:#}")]
    OtherWorld(wasmtime::Error),
    /// It links, but not at the version it wants.
    #[error("it does not link: {0:#}")]
    Unlinkable(wasmtime::Error),
    /// What was compiled could not be kept or read.
    #[error("its compiled form could not be kept ({0}); is the disk full?")]
    Disk(#[from] std::io::Error),
}

impl ComponentError {
    /// An import that comes with the first model.
    pub(super) fn no_model(import: String) -> Self {
        Self::NotGranted { import, grant: "no model", way_out: "add `--model NAME`" }
    }
}

/// What WebAssembly can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the component model.
    Component,
    /// A core module.
    Module,
}

/// Loads a component, from its compiled form if there is one for this engine; compiles and keeps it otherwise.
/// Blocks: call it off the async threads.
///
/// # Errors
/// `NotWasm`, `CoreModule`, `Invalid`, `Disk`.
pub fn load(engine: &WasmEngine, data: &DataDir, digest: &Digest) -> Result<Component, ComponentError> {
    load_from(engine, data, digest, || std::fs::read(data.component(digest)))
}

/// The same for a component whose bytes are elsewhere; read only if it was never compiled.
///
/// # Errors
/// As for [`load`].
pub fn load_from(
    engine: &WasmEngine,
    data: &DataDir,
    digest: &Digest,
    read: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Result<Component, ComponentError> {
    load_as(engine, data, digest, read, compile, map)
}

/// The same for a core module.
///
/// # Errors
/// `Invalid`, `Disk`.
pub fn load_module(
    engine: &WasmEngine,
    data: &DataDir,
    digest: &Digest,
    read: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Result<Module, ComponentError> {
    load_as(engine, data, digest, read, compile_module, map_module)
}

fn load_as<T>(
    engine: &WasmEngine,
    data: &DataDir,
    digest: &Digest,
    read: impl FnOnce() -> std::io::Result<Vec<u8>>,
    compile: fn(&WasmEngine, &[u8]) -> Result<Vec<u8>, ComponentError>,
    map: fn(&WasmEngine, &Path) -> wasmtime::Result<T>,
) -> Result<T, ComponentError> {
    let compiled = data.compiled(engine.compatibility(), digest);
    if compiled.exists() {
        match map(engine, &compiled) {
            Ok(mapped) => return Ok(mapped),
            Err(error) => {
                tracing::warn!(path = %compiled.display(), %error, "compiled component is unusable; compiling again")
            }
        }
    }
    let code = compile(engine, &read()?)?;
    data.write(&compiled, &code)?;
    map(engine, &compiled).map_err(ComponentError::Invalid)
}

/// Compiles a component to the machine code of one of the engines: a component that needs tasks, streams or futures is
/// invalid to the plain one.
fn compile(engine: &WasmEngine, bytes: &[u8]) -> Result<Vec<u8>, ComponentError> {
    check_kind(bytes)?;
    if let Ok(code) = engine.wasmtime().precompile_component(bytes) {
        return Ok(code);
    }
    let concurrent = engine.concurrent().map_err(ComponentError::Invalid)?;
    concurrent.precompile_component(bytes).map_err(ComponentError::Invalid)
}

fn compile_module(engine: &WasmEngine, bytes: &[u8]) -> Result<Vec<u8>, ComponentError> {
    engine.wasmtime().precompile_module(bytes).map_err(ComponentError::Invalid)
}

/// Says what `bytes` are when they are no component.
///
/// # Errors
/// `NotWasm`, `CoreModule`.
pub fn check_kind(bytes: &[u8]) -> Result<(), ComponentError> {
    match kind(bytes)? {
        Kind::Component => Ok(()),
        Kind::Module => Err(ComponentError::CoreModule),
    }
}

/// What `bytes` are, as their first eight say.
///
/// # Errors
/// `NotWasm`.
pub fn kind(bytes: &[u8]) -> Result<Kind, ComponentError> {
    // Preamble: magic, then a version (2 bytes) and a layer (2 bytes): 0 a core module, 1 a component.
    match bytes {
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(Kind::Component),
        [0, b'a', b's', b'm', _, _, 0, 0, ..] => Ok(Kind::Module),
        _ => Err(ComponentError::NotWasm(bytes.iter().take(8).copied().collect())),
    }
}

fn map(engine: &WasmEngine, compiled: &Path) -> wasmtime::Result<Component> {
    map_for(engine.wasmtime(), compiled).or_else(|_| map_for(engine.concurrent()?, compiled))
}

#[allow(unsafe_code)]
fn map_for(engine: &Engine, compiled: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by `load` from `precompile_component`'s output, appears only when whole, and lies in a
    // directory that only this user may write; wasmtime checks that it was compiled for this engine.
    unsafe { Component::deserialize_file(engine, compiled) }
}

#[allow(unsafe_code)]
fn map_module(engine: &WasmEngine, compiled: &Path) -> wasmtime::Result<Module> {
    // SAFETY: as in `map_for`, from `precompile_module`'s output; what was compiled as a component is refused.
    unsafe { Module::deserialize_file(engine.wasmtime(), compiled) }
}

/// The packages whose interfaces every function gets, in the versions that are linked. The standard libraries import most
/// of them whether a program uses them or not: behind them are only the directories and variables that were granted,
/// and no socket but where an egress rule for TCP leads to.
const ALWAYS: &[&str] = &[
    "wasi:cli",
    "wasi:clocks",
    "wasi:config",
    "wasi:filesystem",
    "wasi:http",
    "wasi:io",
    "wasi:keyvalue",
    "wasi:logging",
    "wasi:otel",
    "wasi:random",
    "wasi:sockets",
];

/// The interfaces that come with the first model.
const WITH_A_MODEL: &[&str] =
    &["hob:infer/models", "wasi:nn/errors", "wasi:nn/graph", "wasi:nn/inference", "wasi:nn/tensor"];

/// The interfaces that come with the first egress rule: outgoing requests of WASI 0.2 and 0.3, and TLS.
const WITH_EGRESS: &[&str] = &["wasi:http/outgoing-handler", "wasi:http/client", "wasi:tls/client", "wasi:tls/types"];

/// What middleware hands requests on to; within a chain it is not an import.
const NEXT_HANDLER: &str = "wasi:http/handler";

/// Checks that `component` is an HTTP handler and imports nothing beyond what it gets. Versions are the linker's to check.
///
/// # Errors
/// `NotAHandler`, `NotOffered`, `NotGranted`, with the import's name.
pub fn check_world(component: &Component, grants: Grants) -> Result<(), ComponentError> {
    check_imports(component, grants)?;
    let world = component.component_type();
    let handles = world.exports(component.engine()).any(|(name, _)| {
        name.starts_with("wasi:http/incoming-handler@0.2.") || name.starts_with("wasi:http/handler@0.3.")
    });
    if handles { Ok(()) } else { Err(ComponentError::NotAHandler) }
}

/// Checks that `component` imports nothing beyond what it gets.
///
/// # Errors
/// `NotOffered`, `NotGranted`, with the import's name.
pub fn check_imports(component: &Component, grants: Grants) -> Result<(), ComponentError> {
    let world = component.component_type();
    for (name, item) in world.imports(component.engine()) {
        let interface = name.split('@').next().unwrap_or(name);
        let package = interface.split('/').next().unwrap_or(interface);
        // An import of types alone needs no host.
        if matches!(item.ty, ComponentItem::Type(_)) {
            continue;
        }
        let missing = |grant, way_out| ComponentError::NotGranted { import: name.to_owned(), grant, way_out };
        if interface == NEXT_HANDLER {
            return Err(ComponentError::Middleware(name.to_owned()));
        }
        if WITH_A_MODEL.contains(&interface) {
            if !grants.models {
                return Err(ComponentError::no_model(name.to_owned()));
            }
        } else if WITH_EGRESS.contains(&interface) {
            if !grants.egress {
                return Err(missing(
                    "no egress to the network",
                    "say where it may send requests, as in `egress = [\"https://api.example.com\"]`",
                ));
            }
        } else if !ALWAYS.contains(&package) {
            return Err(ComponentError::NotOffered(name.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_is_not() {
        assert!(matches!(check_kind(b"<html>"), Err(ComponentError::NotWasm(_))));
        assert!(matches!(check_kind(b""), Err(ComponentError::NotWasm(_))));
        assert!(matches!(check_kind(b"\0asm\x01\0\0\0"), Err(ComponentError::CoreModule)));
        assert!(check_kind(b"\0asm\x0d\0\x01\0").is_ok());
    }
}
