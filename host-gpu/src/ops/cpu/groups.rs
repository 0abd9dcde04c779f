//! What the bytes of each block type mean as small integers: `w = s * q + b` for groups of sixteen or 32 weights.
//!
//! Kernels that compute with quantised activations work on strips of sixteen rows, a lane for each row. Loops stand
//! where closures would read better, as in [`lanes`](super::lanes).

use super::blocks::{Scales, halves, scaled, scales_and_minima};
use super::bytes::Bytes;
use super::lanes::LANES;
use crate::format::quant::*;
use bytemuck::Pod;

/// A block of one or more groups of 32 weights, `w = s * q + b`.
pub trait Groups: Pod + Sync {
    /// Groups in a block.
    const GROUPS: usize = 1;
    /// Pairs of `s` and `b` in a group: 1, or 2 where each sixteen weights have their own.
    const PARTS: usize = 1;
    /// Whether `q` is a signed byte; otherwise it is 0 to 127.
    const SIGNED: bool = false;
    /// `s` and `b` of all groups of a strip's blocks.
    type Affine<L: Bytes>: Copy;
    /// Reads them.
    fn affine<L: Bytes>(strip: &[&Self; LANES]) -> Self::Affine<L>;
    /// `s` and `b` of part `n` (of group `n / PARTS`), a lane for each row. Those of signed types take
    /// [`Bytes::BIAS`] back.
    fn part<L: Bytes>(affine: &Self::Affine<L>, n: usize) -> [L::V; 2];
    /// `q` of sixteen weights of group `g` of four rows: the first ones or the others.
    fn quad<L: Bytes>(rows: [&Self; 4], g: usize, half: usize) -> L::B;
}

/// The sixteen bytes that `$bytes` finds in each of four rows.
macro_rules! gather {
    ($L:ty, $rows:ident, |$row:ident| $bytes:expr) => {{
        let mut all: [&[u8; 16]; 4] = [&[0; 16]; 4];
        for (to, $row) in all.iter_mut().zip($rows) {
            *to = $bytes;
        }
        <$L>::gather(all)
    }};
}

/// `n` of 32 bytes' halves.
#[inline(always)]
fn half_of(all: &[u8; 32], n: usize) -> &[u8; 16] {
    halves(all)[n]
}

/// `s`, and `s` times `by`.
#[inline(always)]
fn and_times<L: Bytes>(s: L::V, by: f32) -> [L::V; 2] {
    [s, L::mul(s, L::splat(by))]
}

/// Adds fifth bits: bit `16 half + i` of a row's `h` is weight `i`'s.
#[inline(always)]
fn add_fifths<L: Bytes>(low: L::B, h: [[u8; 4]; 4], half: usize) -> L::B {
    let mut bits = [0; 4];
    for r in 0..4 {
        bits[r] = u16::from_le_bytes([h[r][2 * half], h[r][2 * half + 1]]);
    }
    L::add_where(low, bits, 16)
}

/// Blocks of 32 weights with one f16: `w = d * (q - $offset)`.
macro_rules! one_scale {
    ($block:ty, signed: $signed:expr, offset: $offset:expr, |$L:ident, $rows:ident, $half:ident| $quad:expr) => {
        impl Groups for $block {
            const SIGNED: bool = $signed;
            type Affine<L: Bytes> = L::V;

            #[inline(always)]
            fn affine<L: Bytes>(strip: &[&Self; LANES]) -> L::V {
                let mut column = [[0; 2]; LANES];
                for (to, row) in column.iter_mut().zip(strip) {
                    *to = row.d;
                }
                L::halves(&column)
            }

            #[inline(always)]
            fn part<L: Bytes>(d: &L::V, _: usize) -> [L::V; 2] {
                let bias = if $signed { L::BIAS } else { $offset };
                and_times::<L>(*d, -bias)
            }

            #[inline(always)]
            fn quad<$L: Bytes>($rows: [&Self; 4], _: usize, $half: usize) -> $L::B {
                $quad
            }
        }
    };
}

one_scale!(BlockQ4_0, signed: false, offset: 8.0, |L, rows, half| {
    L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15)
});
one_scale!(BlockQ5_0, signed: false, offset: 16.0, |L, rows, half| {
    let h = [rows[0].h, rows[1].h, rows[2].h, rows[3].h];
    add_fifths::<L>(L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15), h, half)
});
one_scale!(BlockIq4Nl, signed: true, offset: 0.0, |L, rows, half| {
    let names = L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15);
    L::biased(L::entries(&CODEBOOK, names))
});
one_scale!(BlockQ8_0, signed: true, offset: 0.0, |L, rows, half| {
    L::biased(gather!(L, rows, |row| half_of(bytemuck::cast_ref(&row.q), half)))
});

/// Blocks of 32 weights with two f16: `w = d * q + m`.
macro_rules! scale_and_minimum {
    ($block:ty, |$L:ident, $rows:ident, $half:ident| $quad:expr) => {
        impl Groups for $block {
            type Affine<L: Bytes> = [L::V; 2];

            #[inline(always)]
            fn affine<L: Bytes>(strip: &[&Self; LANES]) -> [L::V; 2] {
                let mut columns = [0; LANES];
                for (to, row) in columns.iter_mut().zip(strip) {
                    *to = u32::from_le_bytes([row.d[0], row.d[1], row.m[0], row.m[1]]);
                }
                L::pairs_of_halves(&columns)
            }

            #[inline(always)]
            fn part<L: Bytes>(affine: &[L::V; 2], _: usize) -> [L::V; 2] {
                *affine
            }

            #[inline(always)]
            fn quad<$L: Bytes>($rows: [&Self; 4], _: usize, $half: usize) -> $L::B {
                $quad
            }
        }
    };
}

scale_and_minimum!(BlockQ4_1, |L, rows, half| L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15));
scale_and_minimum!(BlockQ5_1, |L, rows, half| {
    let h = [rows[0].h, rows[1].h, rows[2].h, rows[3].h];
    add_fifths::<L>(L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15), h, half)
});

/// The sixteen floats that `$floats` gives for each row of a strip, turned so that a lane is a row.
macro_rules! columns {
    ($L:ty, $strip:ident, |$row:ident| $floats:expr) => {{
        let (mut rows, mut columns) = ([[0.0; LANES]; LANES], [[0.0; LANES]; LANES]);
        for (to, $row) in rows.iter_mut().zip($strip) {
            *to = $floats;
        }
        <$L>::transpose_floats(&rows, &mut columns);
        columns
    }};
}

/// Superblocks: 256 weights, whose scales are computed from small integers.
macro_rules! superblock {
    (
        $block:ty, parts: $parts:expr, signed: $signed:expr,
        affine: |$A:ident, $strip:ident| -> $affine:ty { $read:expr },
        part: |$P:ident, $all:ident, $n:ident| $part:expr,
        quad: |$L:ident, $rows:ident, $g:ident, $half:ident| $quad:expr
    ) => {
        impl Groups for $block {
            const GROUPS: usize = 8;
            const PARTS: usize = $parts;
            const SIGNED: bool = $signed;
            type Affine<L: Bytes> = $affine;

            #[inline(always)]
            fn affine<$A: Bytes>($strip: &[&Self; LANES]) -> $affine {
                $read
            }

            #[inline(always)]
            fn part<$P: Bytes>($all: &$affine, $n: usize) -> [$P::V; 2] {
                $part
            }

            #[inline(always)]
            fn quad<$L: Bytes>($rows: [&Self; 4], $g: usize, $half: usize) -> $L::B {
                $quad
            }
        }
    };
}

superblock!(
    BlockQ2K, parts: 2, signed: false,
    affine: |L, strip| -> [[Scales; LANES]; 2] {
        [columns!(L, strip, |row| row.affine::<L>()[0]), columns!(L, strip, |row| row.affine::<L>()[1])]
    },
    part: |L, all, n| [L::load(&all[0][n]), L::load(&all[1][n])],
    quad: |L, rows, g, half| L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 4], half)), g as u32 % 4 * 2, 3)
);

superblock!(
    BlockQ3K, parts: 2, signed: false,
    affine: |L, strip| -> [Scales; LANES] { columns!(L, strip, |row| row.scales::<L>()) },
    part: |L, all, n| and_times::<L>(L::load(&all[n]), -4.0),
    quad: |L, rows, g, half| {
        let low = L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 4], half)), g as u32 % 4 * 2, 3);
        L::join(low, L::shift_mask(gather!(L, rows, |row| half_of(&row.h, half)), g as u32, 1), 2)
    }
);

superblock!(
    BlockQ4K, parts: 1, signed: false,
    affine: |L, strip| -> [Scales; LANES] {
        columns!(L, strip, |row| scales_and_minima::<L>(row.d, row.dmin, &row.scales))
    },
    part: |L, all, n| [L::load(&all[n]), L::load(&all[8 + n])],
    quad: |L, rows, g, half| L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 2], half)), g as u32 % 2 * 4, 15)
);

superblock!(
    BlockQ5K, parts: 1, signed: false,
    affine: |L, strip| -> [Scales; LANES] {
        columns!(L, strip, |row| scales_and_minima::<L>(row.d, row.dmin, &row.scales))
    },
    part: |L, all, n| [L::load(&all[n]), L::load(&all[8 + n])],
    quad: |L, rows, g, half| {
        let low = L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 2], half)), g as u32 % 2 * 4, 15);
        L::join(low, L::shift_mask(gather!(L, rows, |row| half_of(&row.h, half)), g as u32, 1), 4)
    }
);

superblock!(
    BlockQ6K, parts: 2, signed: false,
    affine: |L, strip| -> [Scales; LANES] { columns!(L, strip, |row| scaled::<L>(row.d, &row.scales)) },
    part: |L, all, n| and_times::<L>(L::load(&all[n]), -32.0),
    quad: |L, rows, g, half| {
        let (part, j) = (g / 4, g as u32 % 4);
        let nibbles = gather!(L, rows, |row| half_of(&row.q[part].as_chunks::<32>().0[g % 2], half));
        let upper = gather!(L, rows, |row| half_of(&row.h[part], half));
        L::join(L::shift_mask(nibbles, j / 2 * 4, 15), L::shift_mask(upper, 2 * j, 3), 4)
    }
);

superblock!(
    BlockIq4Xs, parts: 1, signed: true,
    affine: |L, strip| -> [Scales; LANES] { columns!(L, strip, |row| row.sixteen_scales::<L>()) },
    part: |L, all, n| and_times::<L>(L::load(&all[n]), -L::BIAS),
    quad: |L, rows, g, half| {
        let names = L::shift_mask(gather!(L, rows, |row| &row.q[g]), 4 * half as u32, 15);
        L::biased(L::entries(&CODEBOOK, names))
    }
);
