//! Weights on the card, and their products with activations: `kernels/matvec.cuh`, `matmul.cuh`, `float.cuh`.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::device::{CudaError, Device, int, shape};
use super::memory::{Buffer, View};
use crate::format::quant::Quant;
use crate::ops::cpu::matmul::Matrix;

/// 32 activations as bytes have one: a float, and the sums of both halves as 16 bits each.
pub type Scale = u64;
/// Products of more tokens go to the tensor cores.
pub const FEW: usize = 8;
/// Tokens, and rows of weights, in a tile of these.
const TILE: usize = 64;
/// Matrices that one launch takes.
const TOGETHER: usize = 3;

/// A weight matrix on the card.
#[derive(Debug)]
pub struct DeviceMatrix {
    quant: Quant,
    rows: usize,
    cols: usize,
    data: Buffer<u8>,
}

/// (offset, length) of a block's parts in the order of the card's planes: see `kernels/blocks.cuh`.
fn planes(quant: Quant) -> &'static [(usize, usize)] {
    match quant {
        Quant::F32 | Quant::F16 | Quant::Bf16 => &[],
        Quant::Q4_0 | Quant::Iq4Nl => &[(2, 16), (0, 2)],
        Quant::Q4_1 => &[(4, 16), (0, 4)],
        Quant::Q5_0 => &[(6, 16), (2, 4), (0, 2)],
        Quant::Q5_1 => &[(8, 16), (4, 4), (0, 4)],
        Quant::Q8_0 => &[(2, 16), (18, 16), (0, 2)],
        Quant::Q2K => &[(16, 64), (0, 16), (80, 4)],
        Quant::Q3K => &[(32, 64), (0, 32), (96, 12), (108, 2)],
        Quant::Q4K => &[(16, 128), (0, 16)],
        Quant::Q5K => &[(48, 128), (16, 32), (0, 16)],
        Quant::Q6K => &[(0, 128), (128, 64), (192, 16), (208, 2)],
        Quant::Iq4Xs => &[(8, 128), (0, 8)],
    }
}

/// What kernels of a type end in.
fn suffix(quant: Quant) -> &'static str {
    match quant {
        Quant::F32 => "f32",
        Quant::F16 => "f16",
        Quant::Bf16 => "bf16",
        Quant::Q4_0 => "q4_0",
        Quant::Q4_1 => "q4_1",
        Quant::Q5_0 => "q5_0",
        Quant::Q5_1 => "q5_1",
        Quant::Q8_0 => "q8_0",
        Quant::Q2K => "q2_k",
        Quant::Q3K => "q3_k",
        Quant::Q4K => "q4_k",
        Quant::Q5K => "q5_k",
        Quant::Q6K => "q6_k",
        Quant::Iq4Nl => "iq4_nl",
        Quant::Iq4Xs => "iq4_xs",
    }
}

/// The kernel of a type for so many tokens, and how many it takes.
fn kernel(quant: Quant, tokens: usize) -> String {
    let family = match tokens {
        1 => "matvec1",
        2 => "matvec2",
        3..=4 => "matvec4",
        5..=FEW => "matvec8",
        _ => "matmul",
    };
    format!("{family}_{}", suffix(quant))
}

impl DeviceMatrix {
    /// Room for `w` on the card: see [`super::upload`].
    ///
    /// # Errors
    /// `NoMemory`, or `Shape` for a matrix that is larger than kernels count.
    pub fn empty(device: &Device, w: &Matrix<'_>) -> Result<Self, CudaError> {
        let size = w.rows * w.row_bytes();
        if w.bytes.len() != size || !w.cols.is_multiple_of(32) || w.rows == 0 {
            return Err(shape(format!("a matrix of {} by {} in {} bytes", w.rows, w.cols, w.bytes.len())));
        }
        let (rows, cols) = (int(w.rows)? as usize, int(w.cols)? as usize);
        Ok(Self { quant: w.quant, rows, cols, data: device.buffer(size)? })
    }

    /// All of it.
    pub fn data(&self) -> View<'_, u8> {
        self.data.view()
    }

    /// (offset, length) of a block's parts in the order of the card's planes; none of what stays as it is.
    pub(super) fn planes(&self) -> &'static [(usize, usize)] {
        planes(self.quant)
    }

    /// Bytes of a block of the file.
    pub(super) fn block_bytes(&self) -> usize {
        self.quant.row().bytes
    }

    /// The kernels that it needs: see [`Device::compile`].
    pub fn module(&self) -> &'static str {
        suffix(self.quant)
    }

    /// How its numbers are stored.
    pub fn quant(&self) -> Quant {
        self.quant
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether it meets bytes, rather than floats.
    pub fn takes_bytes(&self) -> bool {
        !planes(self.quant).is_empty()
    }
}

/// Activations, as matrices take them: (tokens, cols) in up to three forms.
#[derive(Debug)]
pub struct Input {
    cols: usize,
    tokens: usize,
    /// As they are.
    pub floats: Buffer<f32>,
    /// As bytes.
    pub bytes: Buffer<i8>,
    /// (tokens, cols / 32)
    pub scales: Buffer<Scale>,
    halves: Buffer<u16>,
    /// (tokens)
    powers: Buffer<f32>,
}

impl Input {
    /// Room for so many tokens of up to `cols` activations.
    ///
    /// # Errors
    /// `NoMemory`
    pub fn new(device: &Device, tokens: usize, cols: usize) -> Result<Self, CudaError> {
        let cols = cols.next_multiple_of(32);
        Ok(Self {
            cols,
            tokens,
            floats: device.buffer(tokens * cols)?,
            bytes: device.buffer(tokens * cols)?,
            scales: device.buffer(tokens * cols / 32)?,
            halves: device.buffer(tokens * cols)?,
            powers: device.buffer(tokens)?,
        })
    }

    pub(super) fn check(&self, tokens: usize, cols: usize) -> Result<(), CudaError> {
        match cols.is_multiple_of(32) && tokens > 0 && tokens * cols <= self.tokens * self.cols && tokens <= self.tokens
        {
            true => Ok(()),
            false => Err(shape(format!("{tokens} tokens of {cols} where {} of {} fit", self.tokens, self.cols))),
        }
    }
}

impl Device {
    /// `out[t][r] = w[r] . x[t]` for matrices whose rows lie one behind the other in `out`: (tokens, rows of all).
    ///
    /// `input` has the form that each matrix takes: see [`DeviceMatrix::takes_bytes`].
    ///
    /// # Errors
    /// `Shape`
    pub fn product(
        &self,
        weights: &[&DeviceMatrix],
        input: &Input,
        tokens: usize,
        out: View<'_, f32>,
    ) -> Result<(), CudaError> {
        let Some(first) = weights.first() else { return Err(shape("no matrix".into())) };
        let (cols, rows) = (first.cols, weights.iter().map(|w| w.rows).sum::<usize>());
        input.check(tokens, cols)?;
        if weights.iter().any(|w| w.cols != cols) || out.len() < tokens * rows {
            return Err(shape(format!("products of {tokens} tokens with {rows} rows to {} places", out.len())));
        }
        if tokens > FEW && weights.iter().any(|w| !w.takes_bytes()) {
            self.halve(input, tokens, cols)?;
        }
        let mut column = 0;
        for alike in weights.chunk_by(|a, b| a.quant == b.quant) {
            for together in alike.chunks(TOGETHER) {
                self.launch_product(together, input, tokens, (out, rows, column))?;
                column += together.iter().map(|w| w.rows).sum::<usize>();
            }
        }
        Ok(())
    }

    fn launch_product(
        &self,
        weights: &[&DeviceMatrix],
        input: &Input,
        tokens: usize,
        (out, stride, column): (View<'_, f32>, usize, usize),
    ) -> Result<(), CudaError> {
        let (quant, cols) = (weights[0].quant, weights[0].cols);
        let rows = |n: usize| weights.get(n).map_or(0, |w| w.rows);
        let data = |n: usize| Arg::from(weights.get(n).map(|w| w.data.view()));
        let grid = match tokens {
            0..=FEW => [(rows(0) + rows(1) + rows(2)).div_ceil(4), 1, 1],
            _ => [(0..TOGETHER).map(|n| rows(n).div_ceil(TILE)).sum(), tokens.div_ceil(TILE), 1],
        };
        let mut arguments: Vec<Arg> = vec![data(0), data(1), data(2)];
        for n in 0..TOGETHER {
            arguments.push(int(rows(n))?.into());
        }
        match (weights[0].takes_bytes(), tokens) {
            (true, _) => arguments.extend([Arg::from(&input.bytes), (&input.scales).into()]),
            (false, 0..=FEW) => arguments.push((&input.floats).into()),
            (false, _) => arguments.extend([Arg::from(&input.halves), (&input.powers).into()]),
        }
        let out = out.part(column..out.len());
        arguments.extend([Arg::from(out), int(cols)?.into(), int(tokens)?.into(), int(stride)?.into()]);
        // SAFETY: in the order of HOB_MATVEC_ARGS, HOB_FLOATVEC_ARGS or HOB_FLOATMUL_ARGS. `input` has `tokens` rows of `cols`
        // in each form; matrices have `rows` rows of `cols`; `out` has `tokens` rows of `stride`, of which these
        // are from `column` on.
        unsafe { self.launch(&kernel(quant, tokens), grid, 128, &arguments) }
    }

    /// `x[t] = w[tokens[t]] * scale`: tokens (count), x (count, cols).
    ///
    /// The caller has seen that every token is a row of `w`.
    ///
    /// # Errors
    /// `Shape`
    pub fn embed(
        &self,
        w: &DeviceMatrix,
        tokens: View<'_, u32>,
        scale: f32,
        x: View<'_, f32>,
    ) -> Result<(), CudaError> {
        if tokens.len() * w.cols > x.len() {
            return Err(shape(format!("{} embeddings of {} to {} places", tokens.len(), w.cols, x.len())));
        }
        let arguments: [Arg; 6] =
            [(&w.data).into(), int(w.rows)?.into(), int(w.cols)?.into(), tokens.into(), x.into(), scale.into()];
        let name = format!("embed_{}", suffix(w.quant));
        // SAFETY: in the order of `embed`; the caller has seen to the tokens.
        unsafe { self.launch(&name, [tokens.len(), 1, 1], 128, &arguments) }
    }

    /// Floats of `input` to halves.
    fn halve(&self, input: &Input, tokens: usize, cols: usize) -> Result<(), CudaError> {
        let arguments: [Arg; 4] =
            [(&input.floats).into(), (&input.halves).into(), (&input.powers).into(), int(cols)?.into()];
        // SAFETY: in the order of `halve` in rows.cu; `input` has so many rows in each form.
        unsafe { self.launch("halve", [tokens, 1, 1], 256, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::quant::TYPES;

    #[test]
    fn planes_have_each_byte_of_a_block_once_and_stay_aligned() {
        for row in TYPES {
            let quant = row.quant.unwrap();
            let mut seen = vec![0; row.bytes];
            let mut begin = 0;
            for (offset, length) in planes(quant) {
                seen[*offset..offset + length].fill(1);
                // A plane begins at a multiple of this, whatever the number of blocks; kernels read no more at once.
                let read = [16, 8, 4, 2].into_iter().find(|n| length % n == 0 && length / n < 16).unwrap();
                assert!(begin % read == 0, "{}: a plane of {length} from {begin} on", row.name);
                begin += length;
            }
            if !planes(quant).is_empty() {
                assert!(begin == row.bytes && seen.iter().all(|n| *n == 1), "{}", row.name);
            }
        }
    }
}
