//! Where a model's tensors lie, whatever the format.

use super::quant::TypeRow;
use std::ops::Range;

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its dimensions, fastest first: `dims[0]` is the length of a row.
    pub dims: Vec<u64>,
    /// Its element type.
    pub row: &'static TypeRow,
    /// Its bytes, as a range of the file that was checked to exist.
    pub bytes: Range<usize>,
    /// Which of the model's files that is.
    pub file: usize,
}

impl TensorInfo {
    /// How many numbers it holds.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}
