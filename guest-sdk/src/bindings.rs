//! Rust for `wit/hob-infer`, generated; the rest of the crate is the readable face of it.

#![allow(missing_docs, clippy::all, rust_2018_idioms)]

wit_bindgen::generate!({
    path: ["../wit/wasi-io", "../wit/hob-infer"],
    world: "hob:infer/guest",
    // The executor's own type, so that a component has one kind of pollable.
    with: { "wasi:io/poll@0.2.12": wasip2::io::poll },
});

pub use hob::infer::models::*;
