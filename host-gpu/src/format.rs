//! Readers of model files. Every byte they see is untrusted.
//!
//! [`gguf`] reads the container: its metadata and where each tensor lies. [`quant`] is the
//! table of element types: how many bytes a block has and what its bytes mean.

pub mod gguf;
pub mod quant;
