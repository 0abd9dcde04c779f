//! From bytes to something that can be instantiated: compiled once, at deploy time, and mapped from then on.

use std::path::Path;

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::engine::WasmEngine;
use crate::data::DataDir;
use crate::digest::Digest;

/// Why a component cannot run here. All final: another component is needed.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// Not WebAssembly at all.
    #[error("this is not WebAssembly (it starts with {0:02x?}); deploy the .wasm file that the build wrote")]
    NotWasm(Vec<u8>),
    /// A core module.
    #[error("this is a core WebAssembly module, not a component; build it with `--target wasm32-wasip2`")]
    CoreModule,
    /// The compiler refused it.
    #[error("this component does not compile: {0:#}")]
    Invalid(wasmtime::Error),
    /// It imports what hob does not have.
    #[error("it imports `{0}`, which hob does not offer{hint}", hint = hint(.0))]
    NotOffered(String),
    /// It imports what the function was not granted.
    #[error("it imports `{0}`, but was granted no model; add `--model NAME`")]
    NotGranted(String),
    /// It does not handle HTTP.
    #[error(
        "it does not export wasi:http/incoming-handler@0.2, so there is nothing to call; build it as an HTTP handler"
    )]
    NotAHandler,
    /// It links, but not at the version it wants.
    #[error("it does not link: {0:#}")]
    Unlinkable(wasmtime::Error),
    /// What was compiled could not be kept or read.
    #[error("its compiled form could not be kept ({0}); is the disk full?")]
    Disk(#[from] std::io::Error),
}

/// Loads a component, from its compiled form if there is one for this engine; compiles and keeps it otherwise.
/// Blocks: call it off the async threads.
///
/// # Errors
/// `NotWasm`, `CoreModule`, `Invalid`, `Disk`.
pub fn load(engine: &WasmEngine, data: &DataDir, digest: &Digest) -> Result<Component, ComponentError> {
    let compiled = data.compiled(engine.compatibility(), digest);
    if compiled.exists() {
        match map(engine, &compiled) {
            Ok(component) => return Ok(component),
            Err(error) => {
                tracing::warn!(path = %compiled.display(), %error, "compiled component is unusable; compiling again")
            }
        }
    }
    let bytes = std::fs::read(data.component(digest))?;
    let code = compile(engine, &bytes)?;
    data.write(&compiled, &code)?;
    map(engine, &compiled).map_err(ComponentError::Invalid)
}

/// Compiles a component to this engine's machine code.
fn compile(engine: &WasmEngine, bytes: &[u8]) -> Result<Vec<u8>, ComponentError> {
    check_kind(bytes)?;
    engine.wasmtime().precompile_component(bytes).map_err(ComponentError::Invalid)
}

/// Says what `bytes` are when they are no component.
///
/// # Errors
/// `NotWasm`, `CoreModule`.
pub fn check_kind(bytes: &[u8]) -> Result<(), ComponentError> {
    // Preamble: magic, then a version (2 bytes) and a layer (2 bytes): 0 a core module, 1 a component.
    match bytes {
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', _, _, 0, 0, ..] => Err(ComponentError::CoreModule),
        _ => Err(ComponentError::NotWasm(bytes.iter().take(8).copied().collect())),
    }
}

#[allow(unsafe_code)]
fn map(engine: &WasmEngine, compiled: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by `load` from `precompile_component`'s output, appears only when whole, and lies in a
    // directory that only this user may write; wasmtime checks that it was compiled for this engine.
    unsafe { Component::deserialize_file(engine.wasmtime(), compiled) }
}

/// The interfaces that every function gets, without versions. wasm32-wasip2's standard library imports most of them
/// whether the program uses them or not: no directory is opened and no variable set behind them.
const ALWAYS: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

/// The interfaces that come with the first model.
const WITH_A_MODEL: &[&str] =
    &["hob:infer/models", "wasi:nn/errors", "wasi:nn/graph", "wasi:nn/inference", "wasi:nn/tensor"];

/// Checks that `component` is an HTTP handler and imports nothing beyond what it gets.
///
/// # Errors
/// `NotAHandler`, `NotOffered`, `NotGranted`, with the import's name.
pub fn check_world(engine: &WasmEngine, component: &Component, has_model: bool) -> Result<(), ComponentError> {
    let world = component.component_type();
    for (name, item) in world.imports(engine.wasmtime()) {
        let interface = name.split('@').next().unwrap_or(name);
        let granted = ALWAYS.contains(&interface) || has_model && WITH_A_MODEL.contains(&interface);
        match item {
            _ if granted => {}
            // An import of types alone needs no host.
            wasmtime::component::types::ComponentExtern { ty: ComponentItem::Type(_), .. } => {}
            _ if WITH_A_MODEL.contains(&interface) => return Err(ComponentError::NotGranted(name.to_owned())),
            _ => return Err(ComponentError::NotOffered(name.to_owned())),
        }
    }
    let handles = world.exports(engine.wasmtime()).any(|(name, _)| name.starts_with("wasi:http/incoming-handler@0.2."));
    if handles { Ok(()) } else { Err(ComponentError::NotAHandler) }
}

fn hint(import: &str) -> &'static str {
    if import.starts_with("wasi:http/outgoing-handler") || import.starts_with("wasi:sockets/") {
        ": functions have no network of their own yet"
    } else {
        ""
    }
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
        let message = ComponentError::NotOffered("wasi:sockets/tcp@0.2.0".into()).to_string();
        assert!(message.contains("`wasi:sockets/tcp@0.2.0`") && message.contains("network"), "{message}");
    }
}
