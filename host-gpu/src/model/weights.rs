//! The tensors of a model by their place in the equations. Matrices stay in the mapped file.

use super::config::Config;
use crate::format::gguf::{FormatError, Gguf, TensorInfo};
use crate::format::quant::{self, Quant};
use crate::ops::cpu::matmul::Matrix;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

/// A matrix's place in the file.
#[derive(Clone, Debug)]
pub struct MatrixAt {
    quant: Quant,
    rows: usize,
    cols: usize,
    bytes: Range<usize>,
}

impl MatrixAt {
    /// Some of its rows.
    fn slice(&self, rows: Range<usize>) -> Self {
        let row = self.bytes.len() / self.rows;
        let bytes = self.bytes.start + rows.start * row..self.bytes.start + rows.end * row;
        Self { rows: rows.len(), bytes, ..self.clone() }
    }
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
    /// ((heads + 2 * kv_heads) * head_dim)
    pub qkv_bias: Option<Vec<f32>>,
    /// (head_dim) of queries and of keys
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// (width, heads * head_dim)
    pub o: Out,
    /// (width)
    pub ff_norm: Vec<f32>,
    /// (ff, width)
    pub gate: MatrixAt,
    /// (ff, width)
    pub up: MatrixAt,
    /// (width, ff)
    pub down: Out,
}

/// What brings a result back to the residual stream: `x += norm(w y + bias)`.
#[derive(Debug)]
pub struct Out {
    /// (width, length of the result)
    pub w: MatrixAt,
    /// (width)
    pub bias: Option<Vec<f32>>,
    /// (width)
    pub norm: Option<Vec<f32>>,
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
    /// (rope_dims / 2): divides the frequencies of `Config::rope`
    pub rope_factors: Option<Vec<f32>>,
}

impl Weights {
    /// Finds every tensor and checks its shape and type.
    ///
    /// # Errors
    /// Names the tensor that is missing, of the wrong shape, or of a type we cannot compute with.
    pub fn find(file: std::sync::Arc<Gguf>, c: &Config) -> Result<Self, FormatError> {
        let f = Finder { file: &file, used: RefCell::default() };
        let layers = (0..c.layers).map(|n| f.layer(c, n)).collect::<Result<_, FormatError>>()?;
        let embedding = f.matrix("token_embd.weight", c.vocab, c.width)?;
        let head = match f.has("output.weight") {
            true => f.matrix("output.weight", c.vocab, c.width)?,
            false => embedding.clone(),
        };
        let final_norm = f.vector("output_norm.weight", c.width)?;
        let rope_factors = c.rope.factors.map(|name| f.divisors(name, c.rope_dims / 2)).transpose()?;
        f.refuse_unused()?;
        Ok(Self { embedding, layers, final_norm, head, rope_factors, file })
    }

    /// The matrix at `at`.
    pub fn matrix(&self, at: &MatrixAt) -> Matrix<'_> {
        Matrix { quant: at.quant, rows: at.rows, cols: at.cols, bytes: &self.file.bytes()[at.bytes.clone()] }
    }
}

struct Finder<'a> {
    file: &'a Gguf,
    used: RefCell<HashSet<String>>,
}

impl Finder<'_> {
    fn layer(&self, c: &Config, n: usize) -> Result<Layer, FormatError> {
        let a = c.architecture;
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let all = q + 2 * kv;
        let [q_at, k_at, v_at] = if a.fused {
            let qkv = self.matrix(&name("attn_qkv"), all, c.width)?;
            [0..q, q..q + kv, q + kv..all].map(|rows| qkv.slice(rows))
        } else {
            let part = |part: &str, rows| self.matrix(&name(part), rows, c.width);
            [part("attn_q", q)?, part("attn_k", kv)?, part("attn_v", kv)?]
        };
        let [gate, up] = if a.fused {
            let both = self.matrix(&name("ffn_up"), 2 * c.ff, c.width)?;
            [0..c.ff, c.ff..2 * c.ff].map(|rows| both.slice(rows))
        } else {
            [self.matrix(&name("ffn_gate"), c.ff, c.width)?, self.matrix(&name("ffn_up"), c.ff, c.width)?]
        };
        let out = |part: &str, cols, norm: &str| -> Result<Out, FormatError> {
            let w = self.matrix(&name(part), c.width, cols)?;
            let bias = self.optional(&format!("blk.{n}.{part}.bias"), c.width)?;
            let norm = a.post_norms.then(|| self.vector(&name(norm), c.width)).transpose()?;
            Ok(Out { w, bias, norm })
        };
        let head_norm = |part: &str| self.vector(&name(part), c.head_dim);
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm"), c.width)?,
            q: q_at,
            k: k_at,
            v: v_at,
            qkv_bias: match a.fused {
                true => self.optional(&format!("blk.{n}.attn_qkv.bias"), all)?,
                false => self.joined(n, &[("attn_q", q), ("attn_k", kv), ("attn_v", kv)])?,
            },
            head_norms: match a.head_norms {
                true => Some([head_norm("attn_q_norm")?, head_norm("attn_k_norm")?]),
                false => None,
            },
            o: out("attn_output", q, "post_attention_norm")?,
            ff_norm: self.vector(&name("ffn_norm"), c.width)?,
            gate,
            up,
            down: out("ffn_down", c.ff, "post_ffw_norm")?,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.file.header().tensors.contains_key(name)
    }

    fn optional(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, FormatError> {
        self.has(name).then(|| self.vector(name, len)).transpose()
    }

    /// The biases of `parts` side by side, zero where there is none; `None` if there is none at all.
    fn joined(&self, n: usize, parts: &[(&str, usize)]) -> Result<Option<Vec<f32>>, FormatError> {
        let (mut all, mut any) = (Vec::new(), false);
        for (part, len) in parts {
            let bias = self.optional(&format!("blk.{n}.{part}.bias"), *len)?;
            any |= bias.is_some();
            all.extend(bias.unwrap_or_else(|| vec![0.0; *len]));
        }
        Ok(any.then_some(all))
    }

    fn divisors(&self, name: &str, len: usize) -> Result<Vec<f32>, FormatError> {
        let factors = self.vector(name, len)?;
        match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
            Some(bad) => {
                let (what, offset) = (format!("tensor `{name}`"), self.find(name, &[len])?.bytes.start as u64);
                Err(FormatError::Corrupt { what, offset, problem: format!("{bad} cannot divide a frequency") })
            }
            None => Ok(factors),
        }
    }

    /// A bias or norm that we do not apply would make a model that runs and is wrong.
    fn refuse_unused(&self) -> Result<(), FormatError> {
        let used = self.used.borrow();
        let ours = |name: &&String| name.starts_with("blk.") || name.starts_with("output");
        let names = self.file.header().tensors.keys().filter(ours);
        match names.filter(|name| !used.contains(*name)).min() {
            Some(name) => Err(FormatError::Unsupported {
                what: format!("tensor `{name}` in this architecture"),
                supported: "the tensors that llama.cpp's conversion writes for it".into(),
            }),
            None => Ok(()),
        }
    }

    fn find(&self, name: &str, dims: &[usize]) -> Result<&TensorInfo, FormatError> {
        let corrupt = |offset, problem| FormatError::Corrupt { what: format!("tensor `{name}`"), offset, problem };
        let tensor = self.file.header().tensors.get(name);
        let tensor = tensor.ok_or_else(|| corrupt(0, "it is missing".into()))?;
        if !tensor.dims.iter().copied().eq(dims.iter().map(|d| *d as u64)) {
            let problem = format!("its shape is {:?}, the metadata says {dims:?}", tensor.dims);
            return Err(corrupt(tensor.bytes.start as u64, problem));
        }
        self.used.borrow_mut().insert(name.into());
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

    /// A norm's weights or a bias: small, and always floats.
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
