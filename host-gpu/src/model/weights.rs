//! The tensors of a model by their place in the equations. Matrices stay in the mapped file.

use super::config::Config;
use crate::format::gguf::{FormatError, Gguf, TensorInfo};
use crate::format::quant::{self, Quant};
use crate::ops::cpu::matmul::Matrix;
use std::ops::Range;

/// A matrix's place in the file.
#[derive(Clone, Debug)]
pub struct MatrixAt {
    quant: Quant,
    rows: usize,
    cols: usize,
    bytes: Range<usize>,
}

/// One layer's tensors.
#[derive(Debug)]
pub struct Layer {
    /// (width)
    pub attn_norm: Vec<f32>,
    /// (heads * head_dim, width)
    pub q: MatrixAt,
    /// (kv_heads * head_dim, width)
    pub k: MatrixAt,
    /// (kv_heads * head_dim, width)
    pub v: MatrixAt,
    /// (width, heads * head_dim)
    pub o: MatrixAt,
    /// (width)
    pub ff_norm: Vec<f32>,
    /// (ff, width)
    pub gate: MatrixAt,
    /// (ff, width)
    pub up: MatrixAt,
    /// (width, ff)
    pub down: MatrixAt,
}

/// All tensors of a model.
#[derive(Debug)]
pub struct Weights {
    file: std::sync::Arc<Gguf>,
    /// (vocab, width)
    pub embedding: MatrixAt,
    /// In order.
    pub layers: Vec<Layer>,
    /// (width)
    pub final_norm: Vec<f32>,
    /// (vocab, width); often the embedding again
    pub head: MatrixAt,
}

impl Weights {
    /// Finds every tensor and checks its shape and type.
    ///
    /// # Errors
    /// Names the tensor that is missing, of the wrong shape, or of a type we cannot compute with.
    pub fn find(file: std::sync::Arc<Gguf>, c: &Config) -> Result<Self, FormatError> {
        let f = Finder { file: &file };
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layers = (0..c.layers)
            .map(|n| {
                let name = |part: &str| format!("blk.{n}.{part}.weight");
                Ok(Layer {
                    attn_norm: f.vector(&name("attn_norm"), c.width)?,
                    q: f.matrix(&name("attn_q"), q, c.width)?,
                    k: f.matrix(&name("attn_k"), kv, c.width)?,
                    v: f.matrix(&name("attn_v"), kv, c.width)?,
                    o: f.matrix(&name("attn_output"), c.width, q)?,
                    ff_norm: f.vector(&name("ffn_norm"), c.width)?,
                    gate: f.matrix(&name("ffn_gate"), c.ff, c.width)?,
                    up: f.matrix(&name("ffn_up"), c.ff, c.width)?,
                    down: f.matrix(&name("ffn_down"), c.width, c.ff)?,
                })
            })
            .collect::<Result<_, FormatError>>()?;
        let embedding = f.matrix("token_embd.weight", c.vocab, c.width)?;
        let head = match file.header().tensors.contains_key("output.weight") {
            true => f.matrix("output.weight", c.vocab, c.width)?,
            false => embedding.clone(),
        };
        let final_norm = f.vector("output_norm.weight", c.width)?;
        Ok(Self { embedding, layers, final_norm, head, file })
    }

    /// The matrix at `at`.
    pub fn matrix(&self, at: &MatrixAt) -> Matrix<'_> {
        Matrix { quant: at.quant, rows: at.rows, cols: at.cols, bytes: &self.file.bytes()[at.bytes.clone()] }
    }
}

struct Finder<'a> {
    file: &'a Gguf,
}

impl Finder<'_> {
    fn find(&self, name: &str, dims: &[usize]) -> Result<&TensorInfo, FormatError> {
        let corrupt = |offset, problem| FormatError::Corrupt { what: format!("tensor `{name}`"), offset, problem };
        let tensor = self.file.header().tensors.get(name);
        let tensor = tensor.ok_or_else(|| corrupt(0, "it is missing".into()))?;
        if !tensor.dims.iter().copied().eq(dims.iter().map(|d| *d as u64)) {
            let problem = format!("its shape is {:?}, the metadata says {dims:?}", tensor.dims);
            return Err(corrupt(tensor.bytes.start as u64, problem));
        }
        Ok(tensor)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixAt, FormatError> {
        let tensor = self.find(name, &[cols, rows])?;
        let quant = tensor.row.quant.ok_or_else(|| FormatError::Unsupported {
            what: format!("tensor `{name}` of type {}", tensor.row.name),
            supported: computable(),
        })?;
        let whole = quant.row().weights.max(32); // kernels take floats in groups of 32, too
        if !cols.is_multiple_of(whole) {
            return Err(FormatError::Unsupported {
                what: format!("tensor `{name}` with rows of {cols}"),
                supported: format!("multiples of {whole}"),
            });
        }
        Ok(MatrixAt { quant, rows, cols, bytes: tensor.bytes.clone() })
    }

    /// A norm's weights: small, and always floats.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, FormatError> {
        let tensor = self.find(name, &[len])?;
        if tensor.row.quant != Some(Quant::F32) {
            return Err(FormatError::Unsupported {
                what: format!("tensor `{name}` of type {}", tensor.row.name),
                supported: "F32".into(),
            });
        }
        let (floats, _) = self.file.bytes()[tensor.bytes.clone()].as_chunks::<4>();
        Ok(floats.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

fn computable() -> String {
    let names = quant::TYPES.iter().filter(|t| t.quant.is_some()).map(|t| t.name);
    names.collect::<Vec<_>>().join(", ")
}
