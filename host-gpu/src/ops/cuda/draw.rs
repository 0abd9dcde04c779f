//! The next tokens, chosen on the card: `kernels/draw.cu`.

#![expect(unsafe_code, reason = "launches kernels, which take addresses")]

use super::argument::Arg;
use super::device::{CudaError, Device, int, shape};
use super::memory::View;
use bytemuck::{Pod, Zeroable};

/// How a token is chosen: [`crate::ask::Sampling`], as a card reads it.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Draw {
    /// 0 takes the likeliest.
    pub temperature: f32,
    /// As there.
    pub top_p: f32,
    /// How far below the largest a logit may be: `-ln(min_p)`.
    pub depth: f32,
    /// As there.
    pub top_k: u32,
    /// The number that decides, in 0..1, in units of 2^-64.
    pub at: u64,
}

impl Draw {
    /// Takes the likeliest.
    pub const LIKELIEST: Self = Self { temperature: 0.0, top_p: 1.0, depth: f32::INFINITY, top_k: 0, at: 0 };
}

/// The most tokens of a vocabulary: their numbers have 24 bits.
const MOST_TOKENS: usize = 1 << 24;
/// Of a token that no row has drawn.
pub(crate) const NOT_DRAWN: u32 = u32::MAX;

impl Device {
    /// The next token of each row of `n` logits: `ids`, as many as `draws`. What is no number counts least. A row gives the same whatever the
    /// others are.
    ///
    /// The order in which tokens are drawn from, and the filters, are those of the processor; the weights are rounded to 2^-40 of
    /// the largest, and no token more than 32 below the largest is drawn (times the temperature, where it is above 1).
    ///
    /// # Errors
    /// `Shape`
    pub fn draw(
        &self,
        (logits, n): (View<'_, f32>, usize),
        draws: View<'_, Draw>,
        ids: View<'_, u32>,
    ) -> Result<(), CudaError> {
        let rows = draws.len();
        if logits.len() < rows * n || ids.len() < rows || n == 0 || n > MOST_TOKENS {
            return Err(shape(format!("{rows} draws of {n} in {}, to {}", logits.len(), ids.len())));
        }
        let arguments: [Arg; 4] = [logits.into(), int(n)?.into(), draws.into(), ids.into()];
        // SAFETY: in the order of `draw`; there are `rows` rows of `n`, of draws, and room for as many tokens.
        unsafe { self.launch("draw", [rows, 1, 1], 256, &arguments) }
    }

    /// Makes token `i` of `ids` the one that row `from[i]` drew, unless that is [`u32::MAX`].
    ///
    /// # Errors
    /// `Shape`
    ///
    /// # Safety
    /// The others of `from` are rows of `drawn`.
    pub(crate) unsafe fn follow(
        &self,
        ids: View<'_, u32>,
        from: View<'_, u32>,
        drawn: View<'_, u32>,
    ) -> Result<(), CudaError> {
        let n = ids.len();
        if from.len() < n {
            return Err(shape(format!("{} rows for {n} tokens", from.len())));
        }
        let arguments: [Arg; 4] = [ids.into(), from.into(), drawn.into(), int(n)?.into()];
        // SAFETY: in the order of `follow`; there are `n` tokens and as many rows; the rest is the caller's promise.
        unsafe { self.launch("follow", [n.div_ceil(256), 1, 1], 256, &arguments) }
    }
}
