//! hob-gpu: inference for hob. Model files, tokenizer, scheduler and kernels behind one handle.
//!
//! [`Engine::start`] starts the thread that owns the device. [`Engine::join`] leases a model,
//! loading it if need be. [`Model::generate`] queues a prompt and gives [`Tokens`], which come as
//! they are computed; dropping them cancels. Sequences of all callers run as one batch.
//!
//! This package knows nothing of WebAssembly, HTTP or tenants beyond an opaque account number.

#![deny(unsafe_code)]

mod ask;
mod embedding;
mod engine;
mod form;
pub mod format;
mod kv;
pub mod measure;
pub mod model;
pub mod ops;
mod residency;
mod sampling;
mod schedule;
mod stop;
mod terms;
mod tokens;
mod turns;

pub use ask::{Ask, Conversation, Message, Penalties, Prompt, Refusal, Role, Sampling, TokenId};
pub use embedding::Embedding;
pub use engine::{Engine, EngineConfig, EngineDevice, EngineStats, Engines, StartError};
pub use form::Form;
pub use format::FormatError;
pub use format::quantize::Quantize;
pub use kv::KvType;
pub use model::{Memory, Model, ModelInfo, ModelSource, Scores, Written, chat_template, inspect};
pub use ops::cpu::{Activations, CodePath};
pub use residency::{EvictError, JoinError, ModelState, ModelStatus, Moves, Policy};
pub use terms::{Bill, Billed, Budget, Grant, Priority, Terms, WEIGHT};
pub use tokens::{Event, Finish, Logprob, Timing, Tokens, Usage};
pub use turns::short_turns;
