//! Instances: how a component becomes one, what it may use, and when it must stop.

pub mod component;
pub mod engine;
mod ticker;
