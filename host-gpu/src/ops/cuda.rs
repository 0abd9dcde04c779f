//! Operations on an NVIDIA card.
//!
//! [`Device`] is the card: its driver, found when the program runs, its memory, and a stream on which what it is asked for happens in
//! order; what is launched again and again is put together as a [`Graph`]. The kernels are in `kernels/*.cu`, compiled ahead of time, and inside the program as PTX ([`ptx`]). [`matrix`],
//! [`rows`], [`pages`], [`draw`](mod@draw) and [`upload`] launch them: each launch checks what it is given, since a kernel checks nothing. [`copies`] keeps
//! weights in the host's memory.
//!
//! A token's results have the same bits in any batch of up to eight tokens, which matrix-vector kernels serve, and in any larger
//! one, which tensor cores serve; between the two, sums are added in another order. Where the head gets its activations in
//! two parts, it is between four and five tokens that want logits. In attention it is between one token of a sequence
//! and several.

mod argument;
pub mod check;
pub mod copies;
mod device;
pub mod draw;
pub mod matrix;
mod memory;
pub mod pages;
pub mod ptx;
pub mod rows;
pub mod upload;
mod wait;

pub use device::{Card, CudaError, Device, Graph, PATIENCE, cards};
pub use memory::{Buffer, Pinned, View};
pub use wait::Mark;
