//! The tensors of an encoder: biases everywhere, norms that shift, and positions that have embeddings.

use super::{Finder, Layer, Out};
use crate::format::FormatError;
use crate::model::config::Config;

/// Where a text enters: `x = norm(word + position + kind)`.
#[derive(Debug)]
pub struct Entry {
    /// (positions, width)
    pub positions: Vec<f32>,
    /// (width): the first of two kinds of text; a single text is all of that kind
    pub kind: Vec<f32>,
    /// (width)
    pub norm: Vec<f32>,
    /// (width)
    pub norm_bias: Vec<f32>,
}

impl Entry {
    /// How many floats its vectors have.
    pub(super) fn len(&self) -> usize {
        self.positions.len() + self.kind.len() + self.norm.len() + self.norm_bias.len()
    }
}

impl Finder<'_> {
    pub(super) fn entry(&self, c: &Config) -> Result<Entry, FormatError> {
        Ok(Entry {
            positions: self.floats("position_embd.weight", &[c.width, c.positions])?,
            kind: self.first_row("token_types.weight", c.width)?,
            norm: self.vector("token_embd_norm.weight", c.width)?,
            norm_bias: self.vector("token_embd_norm.bias", c.width)?,
        })
    }

    pub(super) fn encoder_layer(&self, c: &Config, n: usize) -> Result<Layer, FormatError> {
        let name = |part: &str| format!("blk.{n}.{part}");
        let square = |part: &str| self.matrix(&name(&format!("{part}.weight")), c.width, c.width);
        let out = |part: &str, cols, norm: &str| -> Result<Out, FormatError> {
            Ok(Out {
                w: self.matrix(&name(&format!("{part}.weight")), c.width, cols)?,
                bias: self.optional(&name(&format!("{part}.bias")), c.width)?,
                norm: Some(self.vector(&name(&format!("{norm}.weight")), c.width)?),
                norm_bias: Some(self.vector(&name(&format!("{norm}.bias")), c.width)?),
            })
        };
        Ok(Layer {
            attn_norm: Vec::new(),
            q: square("attn_q")?,
            k: square("attn_k")?,
            v: square("attn_v")?,
            qkv_bias: self.joined(n, &[("attn_q", c.width), ("attn_k", c.width), ("attn_v", c.width)])?,
            head_norms: None,
            o: out("attn_output", c.width, "attn_output_norm")?,
            ff_norm: Vec::new(),
            gate: None,
            up: self.matrix(&name("ffn_up.weight"), c.ff, c.width)?,
            up_bias: self.optional(&name("ffn_up.bias"), c.ff)?,
            down: out("ffn_down", c.ff, "layer_output_norm")?,
        })
    }

    /// The first row of a matrix that has some.
    fn first_row(&self, name: &str, cols: usize) -> Result<Vec<f32>, FormatError> {
        let tensor = self.tensors.get(&(self.naming.of)(name));
        let rows = tensor.and_then(|tensor| tensor.dims.get(1)).map_or(1, |rows| *rows as usize);
        let mut all = self.floats(name, &[cols, rows])?;
        all.truncate(cols);
        Ok(all)
    }
}
