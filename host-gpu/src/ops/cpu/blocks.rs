//! What the bytes of each block type mean, as two vectors for 32 weights.

use super::lanes::Lanes;
use crate::format::quant::{BlockBf16, BlockF16, BlockF32, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ8_0};
use bytemuck::Pod;

/// A block of 32 weights.
pub trait Block: Pod + Sync {
    /// Its weights: the first sixteen and the others.
    fn weights<L: Lanes>(&self) -> [L::V; 2];
}

/// The two halves of 32 things.
#[inline(always)]
fn halves<T>(all: &[T; 32]) -> [&[T; 16]; 2] {
    let (halves, _) = all.as_chunks::<16>();
    [&halves[0], &halves[1]]
}

impl Block for BlockQ4_0 {
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
        let d = L::half(self.d);
        L::nibbles(&self.q, d, d * -8.0)
    }
}

impl Block for BlockQ4_1 {
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
        let [d, m] = L::two_halves([self.d, self.m]);
        L::nibbles(&self.q, d, m)
    }
}

impl Block for BlockQ5_0 {
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
        let d = L::splat(L::half(self.d));
        let bits = u32::from_le_bytes(self.h);
        let (mut low, mut high) = ([0; 16], [0; 16]);
        for i in 0..16 {
            let fifth = |at: usize| ((bits >> at & 1) << 4) as i8;
            low[i] = ((self.q[i] & 15) as i8 | fifth(i)).wrapping_sub(16);
            high[i] = ((self.q[i] >> 4) as i8 | fifth(i + 16)).wrapping_sub(16);
        }
        [L::mul(d, L::bytes(&low)), L::mul(d, L::bytes(&high))]
    }
}

impl Block for BlockQ8_0 {
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
        let d = L::splat(L::half(self.d));
        let [low, high] = halves(&self.q);
        [L::mul(d, L::bytes(low)), L::mul(d, L::bytes(high))]
    }
}

impl Block for BlockF32 {
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
        let [low, high] = halves(&self.w);
        [L::floats(low), L::floats(high)]
    }
}

impl Block for BlockF16 {
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
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
    #[inline(always)]
    fn weights<L: Lanes>(&self) -> [L::V; 2] {
        let [low, high] = halves(&self.w);
        [brain::<L>(low), brain::<L>(high)]
    }
}
