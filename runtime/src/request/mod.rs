//! The life of a request: routed, admitted, given an instance, answered, accounted for.

mod admission;
mod body;
pub mod errors;
mod invocation;
pub mod router;
mod run;

pub use admission::Gate;
pub use body::{Body, BoxError};
pub use errors::RequestError;
pub(crate) use invocation::invocation_id;
pub use invocation::{INVOCATION, Invocation, Marks, Recent, Summary};
pub use run::{Secure, run};
pub(crate) use run::{explain, spent_error};

pub use crate::instance::Callable;
