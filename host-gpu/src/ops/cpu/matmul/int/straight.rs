//! Few tokens: weights are unpacked in registers and multiplied at once.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::super::super::bytes::Bytes;
use super::super::super::groups::Groups;
use super::super::super::lanes::LANES;
use super::super::super::woven::Woven;
use super::activations::{SCALE, SUM, Tiles, WORDS};
use super::strips::Strip;
use super::{Out, dot, scale, sum_at};

/// `T` tokens, one or two.
#[inline(always)]
pub(super) fn direct_all<L: Bytes, B: Groups, S: Strip<B>, const T: usize>(
    strips: impl Iterator<Item = S>,
    per_row: usize,
    x: &[u32],
    out: &mut Out<'_, '_>,
) {
    let x = &x.as_chunks::<T>().0.as_chunks::<WORDS>().0[..per_row * B::GROUPS];
    for (n, strip) in strips.enumerate() {
        let sums = match B::SIGNED {
            true => direct::<L, B, S, true, T>(&strip, per_row, x),
            false => direct::<L, B, S, false, T>(&strip, per_row, x),
        };
        for t in 0..T {
            out.put::<L>(t, n * LANES, sums[t]);
        }
    }
}

/// A strip times `T` tokens.
#[inline(always)]
fn direct<L: Bytes, B: Groups, S: Strip<B>, const SIGNED: bool, const T: usize>(
    strip: &S,
    per_row: usize,
    x: &[[[u32; T]; WORDS]],
) -> [L::V; T] {
    let mut sums = [L::splat(0.0); T];
    for k in 0..per_row {
        let blocks = strip.blocks::<L>(k);
        let affine = S::affine::<L>(blocks);
        for g in 0..B::GROUPS {
            let w = S::unpack::<L>(blocks, g);
            let x = &x[k * B::GROUPS + g];
            for n in 0..B::PARTS {
                let part = B::part::<L>(&affine, g * B::PARTS + n);
                for t in 0..T {
                    let mut ints = L::zero();
                    for j in n * 8 / B::PARTS..(n + 1) * 8 / B::PARTS {
                        ints = dot::<L, SIGNED>(ints, w[j], x[j][t]);
                    }
                    sums[t] = scale::<L>(sums[t], ints, part, x[SCALE][t], x[sum_at(n, B::PARTS)][t]);
                }
            }
        }
    }
    sums
}

/// Woven strips of blocks of one scale.
pub(super) struct WovenStrips<'a> {
    /// (strips, per_row, sixteen blocks)
    pub(super) blocks: &'a [u8],
    pub(super) per_row: usize,
}

impl WovenStrips<'_> {
    /// Multiplies every strip with every tile, `S` strips at a time.
    #[inline(always)]
    pub(super) fn multiply<L: Bytes, B: Groups, const T: usize, const S: usize>(
        &self,
        x: Tiles<'_>,
        out: &mut Out<'_, '_>,
    ) {
        let size = self.per_row * LANES * size_of::<B>();
        let (strips, groups) = (self.blocks.len() / size, self.per_row * B::GROUPS);
        for (n, tile) in x.words.as_chunks::<T>().0.as_chunks::<WORDS>().0.chunks_exact(groups).enumerate() {
            let tokens = T.min(x.tokens - n * T);
            let mut strip = 0;
            while strip < strips {
                let left = &self.blocks[strip * size..];
                if strip + S <= strips {
                    let sums = match B::SIGNED {
                        true => woven_product::<L, B, true, T, S>(left, size, tile),
                        false => woven_product::<L, B, false, T, S>(left, size, tile),
                    };
                    out.put_all::<L, T, S>(&sums, strip, (n * T, tokens));
                    strip += S;
                } else {
                    let sums = match B::SIGNED {
                        true => woven_product::<L, B, true, T, 1>(left, size, tile),
                        false => woven_product::<L, B, false, T, 1>(left, size, tile),
                    };
                    out.put_all::<L, T, 1>(&sums, strip, (n * T, tokens));
                    strip += 1;
                }
            }
        }
    }
}

/// The first `S` strips of `size` bytes in `blocks` times a tile of `T` tokens.
#[inline(always)]
fn woven_product<L: Bytes, B: Groups, const SIGNED: bool, const T: usize, const S: usize>(
    blocks: &[u8],
    size: usize,
    tile: &[[[u32; T]; WORDS]],
) -> [[L::V; T]; S] {
    let block = LANES * size_of::<B>();
    let mut strips = [&blocks[..size]; S];
    for s in 1..S {
        strips[s] = &blocks[s * size..][..size];
    }
    let mut sums = [[L::splat(0.0); T]; S];
    for (k, x) in tile.iter().enumerate() {
        let mut at = [Woven(&strips[0][k * block..][..block]); S];
        for s in 1..S {
            at[s] = Woven(&strips[s][k * block..][..block]);
        }
        let mut ints = [[L::zero(); T]; S];
        for j in 0..8 {
            let mut w = [B::woven_four::<L>(at[0], 0, j); S];
            for s in 1..S {
                w[s] = B::woven_four::<L>(at[s], 0, j);
            }
            for t in 0..T {
                for s in 0..S {
                    ints[s][t] = dot::<L, SIGNED>(ints[s][t], w[s], x[j][t]);
                }
            }
        }
        for s in 0..S {
            let part = B::part::<L>(&B::woven_affine::<L>(at[s]), 0);
            for t in 0..T {
                sums[s][t] = scale::<L>(sums[s][t], ints[s][t], part, x[SCALE][t], x[SUM][t]);
            }
        }
    }
    sums
}
