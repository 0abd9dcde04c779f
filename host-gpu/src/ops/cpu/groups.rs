//! What the bytes of each block type mean as small integers: `w = s * q + b` or `w = s * (q - 2^n)` for groups of sixteen
//! or 32 weights.
//!
//! Kernels that compute with quantised activations work on strips of sixteen rows, a lane for each row. Loops stand
//! where closures would read better, as in [`lanes`](super::lanes).

use super::blocks::{Scales, halves, scaled, scales_and_minima};
use super::bytes::{Bytes, NOT_RAISED};
use super::lanes::LANES;
use super::woven::{BlockQ8Halved, HALVES, Woven};
use crate::format::quant::*;
use bytemuck::Pod;
use std::mem::offset_of;

/// A block of one or more groups of 32 weights, `w = s * q + b`.
pub trait Groups: Pod + Sync {
    /// Groups in a block.
    const GROUPS: usize = 1;
    /// Pairs of `s` and `b` in a group: 1, or 2 where each sixteen weights have their own.
    const PARTS: usize = 1;
    /// Whether `q` is a signed byte, raised as [`Bytes::biased`] does; otherwise it is 0 to 127.
    const SIGNED: bool = false;
    /// Whether there are `b`.
    const MINIMUM: bool = false;
    /// Which power of two `q` is above what it stands for, if there are no `b`; [`NOT_RAISED`] if it is not. Signed ones
    /// are raised by the path: [`Bytes::RAISED`].
    const RAISED: u32 = NOT_RAISED;
    /// `s` and `b` of all groups of a strip's blocks.
    type Affine<L: Bytes>: Copy;
    /// Reads them.
    fn affine<L: Bytes>(strip: &[&Self; LANES]) -> Self::Affine<L>;
    /// `s` and `b` of part `n` (of group `n / PARTS`), a lane for each row; where there are no `b`, anything.
    fn part<L: Bytes>(affine: &Self::Affine<L>, n: usize) -> [L::V; 2];
    /// `q` of sixteen weights of group `g` of four rows: the first ones or the others.
    fn quad<L: Bytes>(rows: [&Self; 4], g: usize, half: usize) -> L::B;
    /// Bytes of sixteen woven blocks, and those of them that stand apart.
    const WOVEN: [usize; 2] = [LANES * size_of::<Self>(), 0];
    /// The same as [`Groups::affine`], of woven blocks.
    fn woven_affine<L: Bytes>(strip: Woven<'_>) -> Self::Affine<L>;
    /// Weights `4 j..4 j + 4` of group `g` of woven blocks.
    fn woven_four<L: Bytes>(strip: Woven<'_>, g: usize, j: usize) -> L::B;
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

/// Weights `4 j..4 j + 4` of 32 nibbles at `at` of woven blocks: the low ones come first.
#[inline(always)]
pub(super) fn nibble<L: Bytes>(strip: Woven<'_>, at: usize, j: usize) -> L::B {
    L::shift_mask(strip.word::<L>(at, j % 4), j as u32 / 4 * 4, 15)
}

/// Byte `k` of each word, 0 to 127, as a float.
#[inline(always)]
fn small<L: Bytes>(words: L::B, k: usize) -> L::V {
    L::floats_of(L::dot(L::zero(), words, 1 << (8 * k)))
}

/// `(byte k of word i - less) * by` for each of the bytes of `words`, the scales of woven superblocks.
#[inline(always)]
fn scale_words<L: Bytes, const N: usize>(words: [L::B; N], less: f32, by: L::V, out: &mut [Scales]) {
    for i in 0..N {
        for k in 0..4 {
            let scale = L::add(small::<L>(words[i], k), L::splat(-less));
            L::store(L::mul(scale, by), &mut out[4 * i + k]);
        }
    }
}

/// `d * s`, then `-dmin * m`, of the six-bit scales of woven superblocks.
#[inline(always)]
fn woven_six_bits<L: Bytes>(strip: Woven<'_>, d: usize, dmin: usize, scales: usize) -> [Scales; LANES] {
    let [low, high, rest] = [strip.word::<L>(scales, 0), strip.word::<L>(scales, 1), strip.word::<L>(scales, 2)];
    let minus = L::mul(strip.halves::<L>(dmin), L::splat(-1.0));
    let s = [L::shift_mask(low, 0, 63), L::join(L::shift_mask(rest, 0, 15), L::shift_mask(low, 6, 3), 4)];
    let m = [L::shift_mask(high, 0, 63), L::join(L::shift_mask(rest, 4, 15), L::shift_mask(high, 6, 3), 4)];
    let mut out = [[0.0; LANES]; LANES];
    scale_words::<L, 2>(s, 0.0, strip.halves::<L>(d), &mut out[..8]);
    scale_words::<L, 2>(m, 0.0, minus, &mut out[8..]);
    out
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

/// Blocks of 32 weights with one f16: `w = d * (q - 2^raised)`.
macro_rules! one_scale {
    ($block:ty, signed: $signed:expr, raised: $raised:expr, |$L:ident, $rows:ident, $half:ident| $quad:expr,
     woven: |$W:ident, $strip:ident, $j:ident| $four:expr $(, $woven:item)?) => {
        impl Groups for $block {
            const SIGNED: bool = $signed;
            const RAISED: u32 = $raised;
            $($woven)?
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
                [*d, *d]
            }

            #[inline(always)]
            fn quad<$L: Bytes>($rows: [&Self; 4], _: usize, $half: usize) -> $L::B {
                $quad
            }

            #[inline(always)]
            fn woven_affine<L: Bytes>(strip: Woven<'_>) -> L::V {
                strip.halves::<L>(offset_of!($block, d))
            }

            #[inline(always)]
            fn woven_four<$W: Bytes>($strip: Woven<'_>, _: usize, $j: usize) -> $W::B {
                $four
            }
        }
    };
}

one_scale!(BlockQ4_0, signed: false, raised: 3, |L, rows, half| {
    L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15)
}, woven: |L, strip, j| nibble::<L>(strip, offset_of!(BlockQ4_0, q), j));
one_scale!(BlockQ5_0, signed: false, raised: 4, |L, rows, half| {
    let h = [rows[0].h, rows[1].h, rows[2].h, rows[3].h];
    add_fifths::<L>(L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15), h, half)
}, woven: |L, strip, j| {
    let fifths = L::shift_mask(strip.word::<L>(offset_of!(BlockQ5_0, h), 0), j as u32, 1);
    L::join(nibble::<L>(strip, offset_of!(BlockQ5_0, q), j), fifths, 4)
});
one_scale!(BlockIq4Nl, signed: true, raised: NOT_RAISED, |L, rows, half| {
    let names = L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15);
    L::biased(L::entries(&CODEBOOK, names))
}, woven: |L, strip, j| {
    L::biased(L::entries(&CODEBOOK, nibble::<L>(strip, offset_of!(BlockIq4Nl, q), j)))
});
one_scale!(BlockQ8_0, signed: true, raised: NOT_RAISED, |L, rows, half| {
    L::biased(gather!(L, rows, |row| half_of(bytemuck::cast_ref(&row.q), half)))
}, woven: |L, strip, j| L::biased(strip.word::<L>(offset_of!(BlockQ8_0, q), j)));
one_scale!(BlockQ8Halved, signed: true, raised: NOT_RAISED, |L, rows, half| {
    let by = 4 * half as u32;
    let upper = L::shift_mask(gather!(L, rows, |row| &row.upper), by, 15);
    L::lowered(L::join(L::shift_mask(gather!(L, rows, |row| &row.lower), by, 15), upper, 4))
}, woven: |L, strip, j| {
    let lower = L::shift_mask(strip.lower_word::<L>(j % 4), j as u32 / 4 * 4, 15);
    L::lowered(L::join(lower, nibble::<L>(strip, offset_of!(BlockQ8Halved, upper), j), 4))
}, const WOVEN: [usize; 2] = HALVES;);

/// Blocks of 32 weights with two f16: `w = d * q + m`.
macro_rules! scale_and_minimum {
    ($block:ty, |$L:ident, $rows:ident, $half:ident| $quad:expr, woven: |$W:ident, $strip:ident, $j:ident| $four:expr) => {
        impl Groups for $block {
            const MINIMUM: bool = true;
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

            #[inline(always)]
            fn woven_affine<L: Bytes>(strip: Woven<'_>) -> [L::V; 2] {
                [strip.halves::<L>(offset_of!($block, d)), strip.halves::<L>(offset_of!($block, m))]
            }

            #[inline(always)]
            fn woven_four<$W: Bytes>($strip: Woven<'_>, _: usize, $j: usize) -> $W::B {
                $four
            }
        }
    };
}

scale_and_minimum!(
    BlockQ4_1,
    |L, rows, half| L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15),
    woven: |L, strip, j| nibble::<L>(strip, offset_of!(BlockQ4_1, q), j)
);
scale_and_minimum!(BlockQ5_1, |L, rows, half| {
    let h = [rows[0].h, rows[1].h, rows[2].h, rows[3].h];
    add_fifths::<L>(L::shift_mask(gather!(L, rows, |row| &row.q), 4 * half as u32, 15), h, half)
}, woven: |L, strip, j| {
    let fifths = L::shift_mask(strip.word::<L>(offset_of!(BlockQ5_1, h), 0), j as u32, 1);
    L::join(nibble::<L>(strip, offset_of!(BlockQ5_1, q), j), fifths, 4)
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
        $block:ty, parts: $parts:expr, signed: $signed:expr, minimum: $minimum:expr, raised: $raised:expr,
        affine: |$A:ident, $strip:ident| -> $affine:ty { $read:expr },
        part: |$P:ident, $all:ident, $n:ident| $part:expr,
        quad: |$L:ident, $rows:ident, $g:ident, $half:ident| $quad:expr,
        woven_affine: |$B:ident, $blocks:ident| $woven:expr,
        woven_four: |$W:ident, $four_of:ident, $group:ident, $j:ident| $four:expr
    ) => {
        impl Groups for $block {
            const GROUPS: usize = 8;
            const PARTS: usize = $parts;
            const SIGNED: bool = $signed;
            const MINIMUM: bool = $minimum;
            const RAISED: u32 = $raised;
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

            #[inline(always)]
            fn woven_affine<$B: Bytes>($blocks: Woven<'_>) -> Self::Affine<$B> {
                $woven
            }

            #[inline(always)]
            fn woven_four<$W: Bytes>($four_of: Woven<'_>, $group: usize, $j: usize) -> $W::B {
                $four
            }
        }
    };
}

superblock!(
    BlockQ2K, parts: 2, signed: false, minimum: true, raised: NOT_RAISED,
    affine: |L, strip| -> [[Scales; LANES]; 2] {
        [columns!(L, strip, |row| row.affine::<L>()[0]), columns!(L, strip, |row| row.affine::<L>()[1])]
    },
    part: |L, all, n| [L::load(&all[0][n]), L::load(&all[1][n])],
    quad: |L, rows, g, half| L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 4], half)), g as u32 % 4 * 2, 3),
    woven_affine: |L, strip| {
        let mut out = [[[0.0; LANES]; LANES]; 2];
        let mut words = [strip.word::<L>(offset_of!(BlockQ2K, scales), 0); 4];
        for (i, word) in words.iter_mut().enumerate().skip(1) {
            *word = strip.word::<L>(offset_of!(BlockQ2K, scales), i);
        }
        let (mut s, mut m) = (words, words);
        for i in 0..4 {
            (s[i], m[i]) = (L::shift_mask(words[i], 0, 15), L::shift_mask(words[i], 4, 15));
        }
        let minus = L::mul(strip.halves::<L>(offset_of!(BlockQ2K, dmin)), L::splat(-1.0));
        scale_words::<L, 4>(s, 0.0, strip.halves::<L>(offset_of!(BlockQ2K, d)), &mut out[0]);
        scale_words::<L, 4>(m, 0.0, minus, &mut out[1]);
        out
    },
    woven_four: |L, strip, g, j| {
        L::shift_mask(strip.word::<L>(offset_of!(BlockQ2K, q), g / 4 * 8 + j), g as u32 % 4 * 2, 3)
    }
);

superblock!(
    BlockQ3K, parts: 2, signed: false, minimum: false, raised: 2,
    affine: |L, strip| -> [Scales; LANES] { columns!(L, strip, |row| row.scales::<L>()) },
    part: |L, all, n| [L::load(&all[n]); 2],
    quad: |L, rows, g, half| {
        let low = L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 4], half)), g as u32 % 4 * 2, 3);
        L::join(low, L::shift_mask(gather!(L, rows, |row| half_of(&row.h, half)), g as u32, 1), 2)
    },
    woven_affine: |L, strip| {
        let at = offset_of!(BlockQ3K, scales);
        let [first, second, upper] = [strip.word::<L>(at, 0), strip.word::<L>(at, 1), strip.word::<L>(at, 2)];
        let s = [
            L::join(L::shift_mask(first, 0, 15), L::shift_mask(upper, 0, 3), 4),
            L::join(L::shift_mask(second, 0, 15), L::shift_mask(upper, 2, 3), 4),
            L::join(L::shift_mask(first, 4, 15), L::shift_mask(upper, 4, 3), 4),
            L::join(L::shift_mask(second, 4, 15), L::shift_mask(upper, 6, 3), 4),
        ];
        let mut out = [[0.0; LANES]; LANES];
        scale_words::<L, 4>(s, 32.0, strip.halves::<L>(offset_of!(BlockQ3K, d)), &mut out);
        out
    },
    woven_four: |L, strip, g, j| {
        let low = L::shift_mask(strip.word::<L>(offset_of!(BlockQ3K, q), g / 4 * 8 + j), g as u32 % 4 * 2, 3);
        L::join(low, L::shift_mask(strip.word::<L>(offset_of!(BlockQ3K, h), j), g as u32, 1), 2)
    }
);

superblock!(
    BlockQ4K, parts: 1, signed: false, minimum: true, raised: NOT_RAISED,
    affine: |L, strip| -> [Scales; LANES] {
        columns!(L, strip, |row| scales_and_minima::<L>(row.d, row.dmin, &row.scales))
    },
    part: |L, all, n| [L::load(&all[n]), L::load(&all[8 + n])],
    quad: |L, rows, g, half| L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 2], half)), g as u32 % 2 * 4, 15),
    woven_affine: |L, strip| {
        let [d, dmin, scales] = [offset_of!(BlockQ4K, d), offset_of!(BlockQ4K, dmin), offset_of!(BlockQ4K, scales)];
        woven_six_bits::<L>(strip, d, dmin, scales)
    },
    woven_four: |L, strip, g, j| {
        L::shift_mask(strip.word::<L>(offset_of!(BlockQ4K, q), g / 2 * 8 + j), g as u32 % 2 * 4, 15)
    }
);

superblock!(
    BlockQ5K, parts: 1, signed: false, minimum: true, raised: NOT_RAISED,
    affine: |L, strip| -> [Scales; LANES] {
        columns!(L, strip, |row| scales_and_minima::<L>(row.d, row.dmin, &row.scales))
    },
    part: |L, all, n| [L::load(&all[n]), L::load(&all[8 + n])],
    quad: |L, rows, g, half| {
        let low = L::shift_mask(gather!(L, rows, |row| half_of(&row.q[g / 2], half)), g as u32 % 2 * 4, 15);
        L::join(low, L::shift_mask(gather!(L, rows, |row| half_of(&row.h, half)), g as u32, 1), 4)
    },
    woven_affine: |L, strip| {
        let [d, dmin, scales] = [offset_of!(BlockQ5K, d), offset_of!(BlockQ5K, dmin), offset_of!(BlockQ5K, scales)];
        woven_six_bits::<L>(strip, d, dmin, scales)
    },
    woven_four: |L, strip, g, j| {
        let low = L::shift_mask(strip.word::<L>(offset_of!(BlockQ5K, q), g / 2 * 8 + j), g as u32 % 2 * 4, 15);
        L::join(low, L::shift_mask(strip.word::<L>(offset_of!(BlockQ5K, h), j), g as u32, 1), 4)
    }
);

superblock!(
    BlockQ6K, parts: 2, signed: false, minimum: false, raised: 5,
    affine: |L, strip| -> [Scales; LANES] { columns!(L, strip, |row| scaled::<L>(row.d, &row.scales)) },
    part: |L, all, n| [L::load(&all[n]); 2],
    quad: |L, rows, g, half| {
        let (part, j) = (g / 4, g as u32 % 4);
        let nibbles = gather!(L, rows, |row| half_of(&row.q[part].as_chunks::<32>().0[g % 2], half));
        let upper = gather!(L, rows, |row| half_of(&row.h[part], half));
        L::join(L::shift_mask(nibbles, j / 2 * 4, 15), L::shift_mask(upper, 2 * j, 3), 4)
    },
    woven_affine: |L, strip| {
        let d = strip.halves::<L>(offset_of!(BlockQ6K, d));
        let mut out = [[0.0; LANES]; LANES];
        for i in 0..4 {
            let word = L::biased(strip.word::<L>(offset_of!(BlockQ6K, scales), i));
            for k in 0..4 {
                // The sum of the bytes that a word multiplies is 1.
                let start = L::splat_shifted(-1i32 as u32, L::RAISED);
                L::store(L::mul(L::floats_of(L::dot_signed(start, word, 1 << (8 * k))), d), &mut out[4 * i + k]);
            }
        }
        out
    },
    woven_four: |L, strip, g, j| {
        let (part, n) = (g / 4, g as u32 % 4);
        let nibbles = strip.word::<L>(offset_of!(BlockQ6K, q), 16 * part + g % 2 * 8 + j);
        let upper = strip.word::<L>(offset_of!(BlockQ6K, h), 8 * part + j);
        L::join(L::shift_mask(nibbles, n / 2 * 4, 15), L::shift_mask(upper, 2 * n, 3), 4)
    }
);

superblock!(
    BlockIq4Xs, parts: 1, signed: true, minimum: false, raised: NOT_RAISED,
    affine: |L, strip| -> [Scales; LANES] { columns!(L, strip, |row| row.sixteen_scales::<L>()) },
    part: |L, all, n| [L::load(&all[n]); 2],
    quad: |L, rows, g, half| {
        let names = L::shift_mask(gather!(L, rows, |row| &row.q[g]), 4 * half as u32, 15);
        L::biased(L::entries(&CODEBOOK, names))
    },
    woven_affine: |L, strip| {
        let at = offset_of!(BlockIq4Xs, scales_low);
        let low = [L::shift_mask(strip.word::<L>(at, 0), 0, 15), L::shift_mask(strip.word::<L>(at, 0), 4, 15)];
        // The scale and the upper bits of scales are one word.
        let high = strip.word::<L>(offset_of!(BlockIq4Xs, d), 0);
        let [d, _] = L::pairs_of_halves(&strip.fours(offset_of!(BlockIq4Xs, d)));
        let mut out = [[0.0; LANES]; LANES];
        for g in 0..8 {
            let upper = small::<L>(L::shift_mask(high, g as u32 % 4 * 2, 3), 2 + g / 4);
            let lower = L::add(small::<L>(low[g % 2], g / 2), L::splat(-32.0));
            L::store(L::mul(L::fma(upper, L::splat(16.0), lower), d), &mut out[g]);
        }
        out
    },
    woven_four: |L, strip, g, j| {
        L::biased(L::entries(&CODEBOOK, nibble::<L>(strip, offset_of!(BlockIq4Xs, q) + 16 * g, j)))
    }
);
