//! Sixteen rows of blocks, where they stand and what they unpack to.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::super::super::bytes::Bytes;
use super::super::super::groups::Groups;
use super::super::super::lanes::{LANES, Lanes};
use super::super::super::woven::Woven;

/// Sixteen rows of blocks.
pub(super) trait Strip<B: Groups> {
    /// One block of each row.
    type Blocks<'b>: Copy
    where
        Self: 'b;
    /// Blocks `k`. Asks for what comes next.
    fn blocks<L: Lanes>(&self, k: usize) -> Self::Blocks<'_>;
    /// See [`Groups::affine`].
    fn affine<L: Bytes>(blocks: Self::Blocks<'_>) -> B::Affine<L>;
    /// Group `g`: vectors of four weights of each row, in order.
    fn unpack<L: Bytes>(blocks: Self::Blocks<'_>, g: usize) -> [L::B; 8];
}

/// Row by row; where there are fewer than sixteen, the last one again.
pub(super) struct Rows<'a, B>([&'a [B]; LANES]);

impl<'a, B> Rows<'a, B> {
    #[inline(always)]
    pub(super) fn new(blocks: &'a [B], per_row: usize) -> Self {
        let last = blocks.len() / per_row - 1;
        let mut rows = [&blocks[..per_row]; LANES];
        for r in 1..LANES {
            rows[r] = &blocks[r.min(last) * per_row..][..per_row];
        }
        Self(rows)
    }

    /// Asks for what follows the strip in memory, a part of it for each `k`: rows are so short that the processor does
    /// not see that others follow.
    #[inline(always)]
    fn prefetch<L: Lanes>(&self, k: usize) {
        let step = LANES * size_of::<B>();
        let ahead = self.0[LANES - 1].as_ptr_range().end.cast::<u8>().wrapping_add(k * step);
        L::prefetch_bytes(ahead, step);
    }
}

impl<B: Groups> Strip<B> for Rows<'_, B> {
    type Blocks<'b>
        = [&'b B; LANES]
    where
        Self: 'b;

    #[inline(always)]
    fn blocks<L: Lanes>(&self, k: usize) -> [&B; LANES] {
        self.prefetch::<L>(k);
        let mut blocks = [&self.0[0][k]; LANES];
        for r in 1..LANES {
            blocks[r] = &self.0[r][k];
        }
        blocks
    }

    #[inline(always)]
    fn affine<L: Bytes>(blocks: [&B; LANES]) -> B::Affine<L> {
        B::affine::<L>(&blocks)
    }

    #[inline(always)]
    fn unpack<L: Bytes>(strip: [&B; LANES], g: usize) -> [L::B; 8] {
        let mut halves = [[L::gather([&[0; 16]; 4]); 4]; 2];
        for half in 0..2 {
            let mut quads = halves[half];
            for q in 0..4 {
                quads[q] = B::quad::<L>([strip[q], strip[4 + q], strip[8 + q], strip[12 + q]], g, half);
            }
            halves[half] = L::transpose(quads);
        }
        let [[a, b, c, d], [e, f, i, j]] = halves;
        [a, b, c, d, e, f, i, j]
    }
}

/// Woven rows, see [`woven`](super::super::super::woven). Memory is read in one go.
pub(super) struct WovenRows<'a>(pub(super) Woven<'a>);

impl<B: Groups> Strip<B> for WovenRows<'_> {
    type Blocks<'b>
        = Woven<'b>
    where
        Self: 'b;

    #[inline(always)]
    fn blocks<L: Lanes>(&self, k: usize) -> Woven<'_> {
        let blocks = self.0.at(k, B::WOVEN);
        blocks.ask_ahead::<L>();
        blocks
    }

    #[inline(always)]
    fn affine<L: Bytes>(blocks: Woven<'_>) -> B::Affine<L> {
        B::woven_affine::<L>(blocks)
    }

    #[inline(always)]
    fn unpack<L: Bytes>(blocks: Woven<'_>, g: usize) -> [L::B; 8] {
        let mut fours = [B::woven_four::<L>(blocks, g, 0); 8];
        for j in 1..8 {
            fours[j] = B::woven_four::<L>(blocks, g, j);
        }
        fours
    }
}
