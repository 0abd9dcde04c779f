//! The arithmetic of a forward pass, and the threads it runs on.
//!
//! [`cpu`] has the operations twice: as plain reference loops and as the kernels that run.
//! [`pool`] spreads one operation over the cores. [`cuda`] has them on a graphics card. Which operations a model needs, and in
//! what order, is `model::forward`'s business.

pub mod cpu;
pub mod cuda;
pub mod pool;
