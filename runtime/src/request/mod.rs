//! The life of a request: routed, given a fresh instance, answered, accounted for.

pub mod errors;
mod invocation;
pub mod router;
mod run;

pub use errors::RequestError;
pub use invocation::{Invocation, Marks, Recent, Summary};
pub use run::{Body, Callable, run};
