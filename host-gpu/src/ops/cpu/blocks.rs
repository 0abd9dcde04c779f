//! What the bytes of each block type mean, as two vectors for each 32 weights.

use super::lanes::Lanes;
use crate::format::quant::*;
use bytemuck::Pod;

/// A block of one or more groups of 32 weights.
pub trait Block: Pod + Sync {
    /// Groups in a block: one, or an even number.
    const GROUPS: usize = 1;
    /// What all groups need, computed once for a block: the scales of a superblock.
    type Head: Copy;
    /// Computes it.
    fn head<L: Lanes>(&self) -> Self::Head;
    /// The weights of group `g`: the first sixteen and the others. Kernels call this in pairs of an
    /// even and an odd `g`, so that what depends on `g % 2` is known when they are compiled.
    fn group<L: Lanes>(&self, head: &Self::Head, g: usize) -> [L::V; 2];
}

/// The two halves of 32 things.
#[inline(always)]
pub(super) fn halves<T>(all: &[T; 32]) -> [&[T; 16]; 2] {
    let (halves, _) = all.as_chunks::<16>();
    [&halves[0], &halves[1]]
}

impl Block for BlockQ4_0 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let d = L::half(self.d);
        L::nibbles(&self.q, d, d * -8.0)
    }
}

impl Block for BlockQ4_1 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let [d, m] = L::two_halves([self.d, self.m]);
        L::nibbles(&self.q, d, m)
    }
}

impl Block for BlockQ5_0 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let d = L::splat(L::half(self.d));
        let [low, high] = five_bits(&self.q, self.h);
        [L::mul(d, L::bytes(&minus(low, 16))), L::mul(d, L::bytes(&minus(high, 16)))]
    }
}

/// The 32 numbers with these nibbles and fifth bits.
#[inline(always)]
fn five_bits(q: &[u8; 16], h: [u8; 4]) -> [[i8; 16]; 2] {
    let low = [spread(h[0]), spread(h[1])];
    let high = [spread(h[2]), spread(h[3])];
    [join(low, 4, bits(q, 0, 15)), join(high, 4, bits(q, 4, 15))]
}

/// Bit `i` of `bits` as byte `i`, 0 or 1.
#[inline(always)]
fn spread(bits: u8) -> u64 {
    // Byte `i` of a number with eight copies keeps bit `i`; adding 127 carries any bit to the top.
    let own = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    ((own + 0x7f7f_7f7f_7f7f_7f7f) >> 7) & 0x0101_0101_0101_0101
}

/// `q - by` of each.
#[inline(always)]
fn minus(mut q: [i8; 16], by: i8) -> [i8; 16] {
    for q in &mut q {
        *q = q.wrapping_sub(by);
    }
    q
}

impl Block for BlockQ5_1 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let [d, m] = L::two_halves([self.d, self.m]);
        let (d, m) = (L::splat(d), L::splat(m));
        let [low, high] = five_bits(&self.q, self.h);
        [L::fma(L::bytes(&low), d, m), L::fma(L::bytes(&high), d, m)]
    }
}

impl Block for BlockQ8_0 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let d = L::splat(L::half(self.d));
        let [low, high] = halves(&self.q);
        [L::mul(d, L::bytes(low)), L::mul(d, L::bytes(high))]
    }
}

impl Block for BlockF32 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let [low, high] = halves(&self.w);
        [L::floats(low), L::floats(high)]
    }
}

impl Block for BlockF16 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let [low, high] = halves(&self.w);
        [L::halves(low), L::halves(high)]
    }
}

/// Sixteen bfloat16 as floats.
#[inline(always)]
fn brain<L: Lanes>(from: &[[u8; 2]; 16]) -> L::V {
    let mut floats = [0.0; 16];
    for i in 0..16 {
        floats[i] = f32::from_bits(u32::from(u16::from_le_bytes(from[i])) << 16);
    }
    L::load(&floats)
}

impl Block for BlockBf16 {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let [low, high] = halves(&self.w);
        [brain::<L>(low), brain::<L>(high)]
    }
}

impl Block for BlockIq4Nl {
    type Head = ();

    #[inline(always)]
    fn head<L: Lanes>(&self) {}

    #[inline(always)]
    fn group<L: Lanes>(&self, (): &(), _: usize) -> [L::V; 2] {
        let d = L::splat(L::half(self.d));
        let [low, high] = L::lookup(&self.q, &CODEBOOK);
        [L::mul(d, low), L::mul(d, high)]
    }
}

/// `d` times eight scales, then `-dmin` times eight minima.
pub(super) type Scales = [f32; 16];

/// The six-bit scales and minima of [`BlockQ4K`] and [`BlockQ5K`]: 0 to 63, scales first.
///
/// Each step works on four bytes in one number; the masks drop what a shift brings in from a neighbour.
#[inline(always)]
fn six_bits(packed: &[u8; 12]) -> [i8; 16] {
    let (words, _) = packed.as_chunks::<4>();
    let [scales, minima, rest] = [words[0], words[1], words[2]].map(u32::from_le_bytes);
    let upper = |w: u32| (w >> 2) & 0x3030_3030;
    let all = [
        scales & 0x3f3f_3f3f,
        rest & 0x0f0f_0f0f | upper(scales),
        minima & 0x3f3f_3f3f,
        rest >> 4 & 0x0f0f_0f0f | upper(minima),
    ];
    bytemuck::cast(all.map(u32::to_le))
}

/// See [`Scales`]. The products are exact: eleven bits of an f16 times six.
#[inline(always)]
pub(super) fn scales_and_minima<L: Lanes>(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12]) -> Scales {
    let [d, dmin] = L::two_halves([d, dmin]);
    let (mut by, mut out) = ([d; 16], [0.0; 16]);
    by[8..].fill(-dmin);
    L::store(L::mul(L::bytes(&six_bits(packed)), L::load(&by)), &mut out);
    out
}

/// `d` times each of sixteen small scales.
#[inline(always)]
pub(super) fn scaled<L: Lanes>(d: [u8; 2], scales: &[i8; 16]) -> Scales {
    let mut out = [0.0; 16];
    L::store(L::mul(L::bytes(scales), L::splat(L::half(d))), &mut out);
    out
}

/// Bits of each of sixteen bytes: `byte >> shift & mask`, for a `mask` of at most `8 - shift` bits.
///
/// Eight bytes at a time: the mask drops what the shift brings in from the neighbour.
#[inline(always)]
fn bits(q: &[u8; 16], shift: usize, mask: u8) -> [u64; 2] {
    let (words, _) = q.as_chunks::<8>();
    let mask = u64::from_ne_bytes([mask; 8]);
    [u64::from_le_bytes(words[0]) >> shift & mask, u64::from_le_bytes(words[1]) >> shift & mask]
}

/// `high << shift | low` of each of sixteen bytes; nothing is shifted out of a byte.
#[inline(always)]
fn join(high: [u64; 2], shift: usize, low: [u64; 2]) -> [i8; 16] {
    bytemuck::cast([(high[0] << shift | low[0]).to_le(), (high[1] << shift | low[1]).to_le()])
}

impl BlockQ2K {
    /// `d * s`, then `-dmin * m`.
    #[inline(always)]
    pub(super) fn affine<L: Lanes>(&self) -> [Scales; 2] {
        let none = [0; 2];
        let (low, high) = (bits(&self.scales, 0, 15), bits(&self.scales, 4, 15));
        let mut minima = scaled::<L>(self.dmin, &join(none, 0, high));
        for m in &mut minima {
            *m = -*m;
        }
        [scaled::<L>(self.d, &join(none, 0, low)), minima]
    }
}

impl Block for BlockQ2K {
    const GROUPS: usize = 8;
    /// `d * s`, then `-dmin * m`.
    type Head = [Scales; 2];

    #[inline(always)]
    fn head<L: Lanes>(&self) -> Self::Head {
        self.affine::<L>()
    }

    #[inline(always)]
    fn group<L: Lanes>(&self, [d, m]: &Self::Head, g: usize) -> [L::V; 2] {
        let halves = halves(&self.q[g / 4]);
        let mut out = [L::splat(0.0); 2];
        for i in 0..2 {
            let q = join([0; 2], 0, bits(halves[i], g % 4 * 2, 3));
            out[i] = L::fma(L::bytes(&q), L::splat(d[2 * g + i]), L::splat(m[2 * g + i]));
        }
        out
    }
}

impl BlockQ3K {
    /// `d * (s - 32)`
    #[inline(always)]
    pub(super) fn scales<L: Lanes>(&self) -> Scales {
        let (words, _) = self.scales.as_chunks::<4>();
        let [first, second, upper] = [words[0], words[1], words[2]].map(u32::from_le_bytes);
        let scales = |low: u32, at: usize| low & 0x0f0f_0f0f | (upper >> (2 * at) & 0x0303_0303) << 4;
        let all = [scales(first, 0), scales(second, 1), scales(first >> 4, 2), scales(second >> 4, 3)];
        scaled::<L>(self.d, &minus(bytemuck::cast(all.map(u32::to_le)), 32))
    }
}

impl Block for BlockQ3K {
    const GROUPS: usize = 8;
    /// `d * (s - 32)`
    type Head = Scales;

    #[inline(always)]
    fn head<L: Lanes>(&self) -> Scales {
        self.scales::<L>()
    }

    #[inline(always)]
    fn group<L: Lanes>(&self, d: &Scales, g: usize) -> [L::V; 2] {
        let (halves, thirds) = (halves(&self.q[g / 4]), halves(&self.h));
        let mut out = [L::splat(0.0); 2];
        for i in 0..2 {
            let q = join(bits(thirds[i], g, 1), 2, bits(halves[i], g % 4 * 2, 3));
            out[i] = L::mul(L::bytes(&minus(q, 4)), L::splat(d[2 * g + i]));
        }
        out
    }
}

impl Block for BlockQ4K {
    const GROUPS: usize = 8;
    type Head = Scales;

    #[inline(always)]
    fn head<L: Lanes>(&self) -> Scales {
        scales_and_minima::<L>(self.d, self.dmin, &self.scales)
    }

    #[inline(always)]
    fn group<L: Lanes>(&self, scales: &Scales, g: usize) -> [L::V; 2] {
        let (d, m) = (scales[g], scales[8 + g]);
        let [first, second] = halves(&self.q[g / 2]);
        // `g % 2` is known to the compiler, which drops the other halves.
        [L::nibbles(first, d, m)[g % 2], L::nibbles(second, d, m)[g % 2]]
    }
}

impl Block for BlockQ5K {
    const GROUPS: usize = 8;
    type Head = Scales;

    #[inline(always)]
    fn head<L: Lanes>(&self) -> Scales {
        scales_and_minima::<L>(self.d, self.dmin, &self.scales)
    }

    #[inline(always)]
    fn group<L: Lanes>(&self, scales: &Scales, g: usize) -> [L::V; 2] {
        let (d, m) = (L::splat(scales[g]), L::splat(scales[8 + g]));
        let (nibbles, fifths) = (halves(&self.q[g / 2]), halves(&self.h));
        let mut out = [L::splat(0.0); 2];
        for i in 0..2 {
            let q = join(bits(fifths[i], g, 1), 4, bits(nibbles[i], g % 2 * 4, 15));
            out[i] = L::fma(L::bytes(&q), d, m);
        }
        out
    }
}

impl Block for BlockQ6K {
    const GROUPS: usize = 8;
    /// `d * s`
    type Head = Scales;

    #[inline(always)]
    fn head<L: Lanes>(&self) -> Scales {
        scaled::<L>(self.d, &self.scales)
    }

    #[inline(always)]
    fn group<L: Lanes>(&self, d: &Scales, g: usize) -> [L::V; 2] {
        let (part, j) = (g / 4, g % 4);
        let nibbles = halves(&self.q[part].as_chunks::<32>().0[j % 2]);
        let upper = halves(&self.h[part]);
        let mut out = [L::splat(0.0); 2];
        for i in 0..2 {
            let q = join(bits(upper[i], 2 * j, 3), 4, bits(nibbles[i], j / 2 * 4, 15));
            out[i] = L::mul(L::bytes(&minus(q, 32)), L::splat(d[2 * g + i]));
        }
        out
    }
}

impl BlockIq4Xs {
    /// `d * (s - 32)` of eight groups, then zeros.
    #[inline(always)]
    pub(super) fn sixteen_scales<L: Lanes>(&self) -> Scales {
        let d = L::half(self.d);
        let low = u32::from_le_bytes(self.scales_low);
        let high = u32::from(u16::from_le_bytes(self.scales_high));
        let mut out = [0.0; 16];
        for (g, out) in out.iter_mut().enumerate().take(8) {
            let scale = low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4;
            *out = d * (scale as i32 - 32) as f32;
        }
        out
    }
}

impl Block for BlockIq4Xs {
    const GROUPS: usize = 8;
    type Head = Scales;

    #[inline(always)]
    fn head<L: Lanes>(&self) -> Scales {
        self.sixteen_scales::<L>()
    }

    #[inline(always)]
    fn group<L: Lanes>(&self, d: &Scales, g: usize) -> [L::V; 2] {
        let d = L::splat(d[g]);
        let [low, high] = L::lookup(&self.q[g], &CODEBOOK);
        [L::mul(d, low), L::mul(d, high)]
    }
}
