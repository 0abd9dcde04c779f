//! Readers of model files. Every byte they see is untrusted.
//!
//! [`gguf`] reads a container with everything a model needs; [`safetensors`] one that has tensors
//! only, beside JSON files that `model::checkpoint` reads. Both say where each tensor lies
//! ([`tensor`]) in mapped files ([`mapped`]). [`quant`] is the table of element types: how many bytes
//! a block has and what its bytes mean; [`quantize`] makes such blocks. [`reader`] reads parts of a file on their way elsewhere.

mod cursor;
pub mod error;
pub mod gguf;
pub(crate) mod huge;
pub(crate) mod json;
pub mod mapped;
pub mod quant;
pub mod quantize;
pub mod reader;
pub mod safetensors;
pub mod tensor;

pub use error::FormatError;
