//! Instances: how a component becomes one, what it may use, and when it must stop.

mod callable;
pub mod command;
pub mod component;
pub mod engine;
mod limiter;
mod linked;
mod meter;
mod module;
mod serve;
mod shared;
mod ticker;
mod warm;

pub(crate) use callable::{Bounds, limited};
pub use callable::{Callable, Granted, Services};
pub use limiter::Limiter;
pub use linked::Linked;
pub use meter::{Meter, Spent};
pub(crate) use serve::{Call, Head};
