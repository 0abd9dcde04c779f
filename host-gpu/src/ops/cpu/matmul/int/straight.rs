//! Few tokens: weights are unpacked in registers and multiplied at once.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::super::super::bytes::Bytes;
use super::super::super::groups::Groups;
use super::super::super::lanes::LANES;
use super::super::super::woven::Woven;
use super::super::CACHE_LINE;
use super::activations::{Tiles, WORDS};
use super::strips::Strip;
use super::{Out, dot, raised, scale, start};

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
        let sums = match (B::SIGNED, B::MINIMUM) {
            (true, _) => direct::<L, B, S, true, false, T>(&strip, per_row, x),
            (_, true) => direct::<L, B, S, false, true, T>(&strip, per_row, x),
            _ => direct::<L, B, S, false, false, T>(&strip, per_row, x),
        };
        for t in 0..T {
            out.put::<L>(t, n * LANES, sums[t]);
        }
    }
}

/// A strip times `T` tokens.
#[inline(always)]
fn direct<L: Bytes, B: Groups, S: Strip<B>, const SIGNED: bool, const MINIMUM: bool, const T: usize>(
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
                    let mut ints = start::<L, T, MINIMUM>(x, t, (n, B::PARTS), raised::<L, B>());
                    for j in n * 8 / B::PARTS..(n + 1) * 8 / B::PARTS {
                        ints = dot::<L, SIGNED>(ints, w[j], x[j][t]);
                    }
                    sums[t] = scale::<L, T, MINIMUM>(sums[t], ints, part, x, t, (n, B::PARTS));
                }
            }
        }
    }
    sums
}

/// Woven strips.
pub(super) struct WovenStrips<'a> {
    /// (strips, per_row, sixteen blocks)
    pub(super) blocks: Woven<'a>,
    pub(super) per_row: usize,
}

impl<'a> WovenStrips<'a> {
    /// How many.
    #[inline(always)]
    pub(super) fn count<B: Groups>(&self) -> usize {
        self.blocks.fields.len() / (self.per_row * B::WOVEN[0])
    }

    /// Number `n`.
    #[inline(always)]
    pub(super) fn strip<B: Groups>(&self, n: usize) -> Woven<'a> {
        self.blocks.at(n, B::WOVEN.map(|bytes| bytes * self.per_row))
    }

    /// Multiplies every strip with every tile, `S` strips at a time.
    #[inline(always)]
    pub(super) fn multiply<L: Bytes, B: Groups, const T: usize, const S: usize>(
        &self,
        x: Tiles<'_>,
        out: &mut Out<'_, '_>,
    ) {
        let strips = self.count::<B>();
        let mut strip = 0;
        while strip + S <= strips {
            self.multiply_strips::<L, B, T, S>(strip, x, out);
            strip += S;
        }
        while strip < strips {
            self.multiply_strips::<L, B, T, 1>(strip, x, out);
            strip += 1;
        }
    }

    /// The `S` strips from `strip` on times every tile.
    #[inline(always)]
    fn multiply_strips<L: Bytes, B: Groups, const T: usize, const S: usize>(
        &self,
        strip: usize,
        x: Tiles<'_>,
        out: &mut Out<'_, '_>,
    ) {
        let mut strips = [self.strip::<B>(strip); S];
        for s in 1..S {
            strips[s] = self.strip::<B>(strip + s);
        }
        let tiles = x.words.as_chunks::<T>().0.as_chunks::<WORDS>().0.chunks_exact(self.per_row * B::GROUPS);
        // What follows in memory is asked for meanwhile, a share of it with each tile.
        let [after, apart] = [strips[S - 1].fields, strips[S - 1].lower].map(|bytes| bytes.as_ptr_range().end);
        let share = |bytes: usize| (S * bytes).div_ceil(CACHE_LINE * tiles.len());
        let mut ahead =
            [Ahead { at: after, lines: share(B::WOVEN[0]) }, Ahead { at: apart, lines: share(B::WOVEN[1]) }];
        for (n, tile) in tiles.enumerate() {
            let sums = match (B::SIGNED, B::MINIMUM) {
                (true, _) => woven_product::<L, B, true, false, T, S>(strips, tile, &mut ahead),
                (_, true) => woven_product::<L, B, false, true, T, S>(strips, tile, &mut ahead),
                _ => woven_product::<L, B, false, false, T, S>(strips, tile, &mut ahead),
            };
            out.put_all::<L, T, S>(&sums, strip, (n * T, T.min(x.tokens - n * T)));
        }
    }
}

/// Memory that will be read.
struct Ahead {
    at: *const u8,
    /// Cache lines to ask for at a time.
    lines: usize,
}

impl Ahead {
    #[inline(always)]
    fn ask<L: Bytes>(&mut self) {
        let bytes = self.lines * CACHE_LINE;
        L::prefetch_bytes(self.at, bytes);
        self.at = self.at.wrapping_add(bytes);
    }
}

/// The strips times a tile of `T` tokens.
#[inline(always)]
fn woven_product<L: Bytes, B: Groups, const SIGNED: bool, const MINIMUM: bool, const T: usize, const S: usize>(
    strips: [Woven<'_>; S],
    tile: &[[[u32; T]; WORDS]],
    ahead: &mut [Ahead; 2],
) -> [[L::V; T]; S] {
    let mut sums = [[L::splat(0.0); T]; S];
    for (k, x) in tile.iter().enumerate() {
        ahead[0].ask::<L>();
        ahead[1].ask::<L>();
        let mut at = [strips[0].at(k, B::WOVEN); S];
        for s in 1..S {
            at[s] = strips[s].at(k, B::WOVEN);
        }
        let mut ints = [[L::zero(); T]; S];
        for t in 0..T {
            let start = start::<L, T, MINIMUM>(x, t, (0, 1), raised::<L, B>());
            for s in 0..S {
                ints[s][t] = start;
            }
        }
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
                sums[s][t] = scale::<L, T, MINIMUM>(sums[s][t], ints[s][t], part, x, t, (0, 1));
            }
        }
    }
    sums
}
