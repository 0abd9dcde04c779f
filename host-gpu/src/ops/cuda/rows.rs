//! What happens to rows of activations between products: `kernels/rows.cu`.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::device::{CudaError, Device, int, shape};
use super::matrix::Input;
use super::memory::{Buffer, View};
use crate::model::architecture::Gate;

/// In which forms activations are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    /// As floats.
    pub floats: bool,
    /// As bytes.
    pub bytes: bool,
}

impl Forms {
    fn of(self, input: &Input) -> [Arg; 3] {
        [
            self.floats.then_some(input.floats.view()).into(),
            self.bytes.then_some(input.bytes.view()).into(),
            self.bytes.then_some(input.scales.view()).into(),
        ]
    }
}

/// What joins the residual stream before a norm: `norm(y + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Joins<'a> {
    /// (rows, width)
    pub y: View<'a, f32>,
    /// (width)
    pub bias: Option<&'a Buffer<f32>>,
    /// (width)
    pub norm: Option<&'a Buffer<f32>>,
}

fn as_long(what: &str, vector: Option<&Buffer<f32>>, width: usize) -> Result<(), CudaError> {
    match vector {
        Some(vector) if vector.len() != width => Err(shape(format!("{what} of {} for {width}", vector.len()))),
        _ => Ok(()),
    }
}

impl Device {
    /// `x += joins`, then `out = x / rms(x) * weight`, for `rows` rows; x (all rows, width).
    ///
    /// With `pick` for the rows that it names, whose results lie one behind the other: each once.
    ///
    /// # Errors
    /// `Shape`
    #[expect(clippy::too_many_arguments, reason = "an equation's")]
    pub fn norm(
        &self,
        x: View<'_, f32>,
        joins: Option<Joins<'_>>,
        weight: &Buffer<f32>,
        eps: f32,
        pick: Option<View<'_, u32>>,
        rows: usize,
        (out, forms): (&Input, Forms),
    ) -> Result<(), CudaError> {
        let width = weight.len();
        out.check(rows, width)?;
        let (y, bias, norm) = joins.map_or((None, None, None), |joins| (Some(joins.y), joins.bias, joins.norm));
        as_long("a bias", bias, width)?;
        as_long("a norm", norm, width)?;
        let enough = match pick {
            Some(pick) => pick.len() == rows && y.is_none_or(|y| y.len() >= x.len()),
            None => x.len() >= rows * width && y.is_none_or(|y| y.len() >= rows * width),
        };
        if !enough {
            return Err(shape(format!("norms of {rows} rows of {width} in {}", x.len())));
        }
        let [floats, bytes, scales] = forms.of(out);
        let vector = |v: Option<&Buffer<f32>>| Arg::from(v.map(Buffer::view));
        let arguments: [Arg; 11] = [
            x.into(),
            y.into(),
            vector(bias),
            vector(norm),
            weight.into(),
            pick.into(),
            floats,
            bytes,
            scales,
            int(width)?.into(),
            eps.into(),
        ];
        // SAFETY: in the order of `norm`. Rows are inside x and y: all of them up to `rows`, or those that the forward pass
        // picked, which are of this batch; `out` has `rows` rows in each form.
        unsafe { self.launch("norm", [rows, 1, 1], 256, &arguments) }
    }

    /// The floats `x` (rows, width) as bytes, to `out`. With `rest`, what that leaves of each row becomes another row, behind all of
    /// them.
    ///
    /// # Errors
    /// `Shape`
    pub fn quantise(
        &self,
        x: View<'_, f32>,
        width: usize,
        rows: usize,
        rest: bool,
        out: &Input,
    ) -> Result<(), CudaError> {
        out.check(if rest { 2 * rows } else { rows }, width)?;
        let count = rows * width;
        if x.len() < count {
            return Err(shape(format!("{rows} rows of {width} in {}", x.len())));
        }
        let arguments: [Arg; 5] =
            [x.into(), (&out.bytes).into(), (&out.scales).into(), (count as u64).into(), i32::from(rest).into()];
        // SAFETY: in the order of `quantise`; there are `count` floats, and room for as many bytes or twice as many.
        unsafe { self.launch("quantise", [count.div_ceil(128), 1, 1], 128, &arguments) }
    }

    /// `out = act(gate) * up`; gates (rows, 2 * width): gate, then up.
    ///
    /// # Errors
    /// `Shape`
    pub fn gate(
        &self,
        gates: View<'_, f32>,
        width: usize,
        rows: usize,
        gate: Gate,
        (out, forms): (&Input, Forms),
    ) -> Result<(), CudaError> {
        out.check(rows, width)?;
        let count = rows * width;
        if gates.len() < 2 * count {
            return Err(shape(format!("{rows} gates of {width} in {}", gates.len())));
        }
        let [floats, bytes, scales] = forms.of(out);
        let gelu = i32::from(gate == Gate::GeluTanh);
        let arguments: [Arg; 7] =
            [gates.into(), floats, bytes, scales, int(width)?.into(), (count as u64).into(), gelu.into()];
        // SAFETY: in the order of `gate`; there are `rows` rows of gates, and room for as many results.
        unsafe { self.launch("gate", [count.div_ceil(128), 1, 1], 128, &arguments) }
    }

    /// `whole += rest`, then `whole = cap * tanh(whole / cap)`; both where there is one.
    ///
    /// # Errors
    /// `Shape`
    pub fn finish_logits(
        &self,
        whole: View<'_, f32>,
        rest: Option<View<'_, f32>>,
        cap: Option<f32>,
    ) -> Result<(), CudaError> {
        if rest.is_some_and(|rest| rest.len() < whole.len()) {
            return Err(shape("fewer remainders than logits".into()));
        }
        let arguments: [Arg; 4] = [whole.into(), rest.into(), (whole.len() as u64).into(), cap.unwrap_or(0.0).into()];
        // SAFETY: in the order of `finish_logits`; both have so many.
        unsafe { self.launch("finish_logits", [whole.len().div_ceil(256), 1, 1], 256, &arguments) }
    }
}
