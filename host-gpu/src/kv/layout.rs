//! How keys and values lie in a page.
//!
//! For each layer and KV head a page has a side of keys, then a side of values. Keys lie in tiles of sixteen tokens, each
//! by dimension, (head_dim, 16), so that one vector has the same number of neighbouring tokens' keys, and what is read one
//! after the other lies so; the last tile of a page may have fewer tokens. Values lie by token, (page_tokens, head_dim).
//! With [`KvType::Q8_0`] the bytes come first, then an f16 for each 32 numbers of a key or value: (blocks, page_tokens) of
//! keys, (page_tokens, blocks) of values.

use crate::ops::cpu::lanes::LANES;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// How the numbers of keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// 32-bit floats: the reference.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// Bytes, with an f16 scale for each 32: half the memory of `F16`, a little less exact.
    Q8_0,
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        })
    }
}

/// Tokens whose keys lie together: a vector's lanes.
pub(crate) const TILE: usize = LANES;
/// Numbers that share a scale.
pub(crate) const SCALED: usize = 32;
/// The largest f16: what is beyond becomes this, so that no infinity comes into a sum.
const MAX_F16: f32 = 65504.0;

/// The keys and values of one layer and one KV head in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// How numbers are stored.
    pub kind: KvType,
    /// Tokens in a page.
    pub page_tokens: usize,
    /// Length of a key and of a value.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Bytes of a token's key, or value.
    fn token_bytes(kind: KvType, head_dim: usize) -> usize {
        match kind {
            KvType::F32 => 4 * head_dim,
            KvType::F16 => 2 * head_dim,
            KvType::Q8_0 => head_dim + 2 * head_dim.div_ceil(SCALED),
        }
    }

    /// Bytes of the keys, and of the values.
    pub fn side_bytes(&self) -> usize {
        self.page_tokens * Self::token_bytes(self.kind, self.head_dim)
    }

    /// Where the scales of a side begin.
    pub(crate) fn scales_at(&self) -> usize {
        self.page_tokens * self.head_dim
    }

    /// The tile of keys that token `at` is in: the number that it begins with, and how many tokens it has.
    #[inline(always)]
    pub(crate) fn tile(&self, at: usize) -> (usize, usize) {
        let first = at / TILE * TILE;
        (first * self.head_dim, TILE.min(self.page_tokens - first))
    }

    /// Stores the key of token `at` of the page in its side.
    pub fn write_key(&self, keys: &mut [u8], at: usize, key: &[f32]) {
        let ((first, width), lane) = (self.tile(at), at % TILE);
        match self.kind {
            KvType::F32 => {
                for (d, x) in key.iter().enumerate() {
                    put(keys, first + d * width + lane, x.to_le_bytes());
                }
            }
            KvType::F16 => {
                for (part, key) in key.chunks(SCALED).enumerate() {
                    let tile = &mut keys[2 * (first + part * SCALED * width)..][..2 * key.len() * width];
                    for (row, x) in tile.chunks_exact_mut(2 * width).zip(halves_of(key)) {
                        put(row, lane, x.to_le_bytes());
                    }
                }
            }
            KvType::Q8_0 => {
                for (b, key) in key.chunks(SCALED).enumerate() {
                    let scale = quantise(key, |d, q| keys[first + (b * SCALED + d) * width + lane] = q as u8);
                    put(&mut keys[self.scales_at()..], b * self.page_tokens + at, scale);
                }
            }
        }
    }

    /// Stores the value of token `at` of the page in its side.
    pub fn write_value(&self, values: &mut [u8], at: usize, value: &[f32]) {
        let dim = self.head_dim;
        match self.kind {
            KvType::F32 => {
                for (d, x) in value.iter().enumerate() {
                    put(values, at * dim + d, x.to_le_bytes());
                }
            }
            KvType::F16 => {
                let values = values[2 * at * dim..][..2 * dim].chunks_mut(2 * SCALED);
                for (to, value) in values.zip(value.chunks(SCALED)) {
                    for (to, x) in to.as_chunks_mut().0.iter_mut().zip(halves_of(value)) {
                        *to = x.to_le_bytes();
                    }
                }
            }
            KvType::Q8_0 => {
                let blocks = dim.div_ceil(SCALED);
                for (b, value) in value.chunks(SCALED).enumerate() {
                    let scale = quantise(value, |d, q| values[at * dim + b * SCALED + d] = q as u8);
                    put(&mut values[self.scales_at()..], at * blocks + b, scale);
                }
            }
        }
    }
}

/// At most [`SCALED`] numbers, and zeros.
fn halves_of(x: &[f32]) -> [f16; SCALED] {
    let mut within = [0.0; SCALED];
    for (to, x) in within.iter_mut().zip(x) {
        *to = x.clamp(-MAX_F16, MAX_F16);
    }
    let mut out = [f16::ZERO; SCALED];
    out.convert_from_f32_slice(&within);
    out
}

/// Hands out `round(x / d)` of each number, for `d = max |x| / 127` as an f16, which it gives back.
fn quantise(x: &[f32], mut put: impl FnMut(usize, i8)) -> [u8; 2] {
    let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let scale = f16::from_f32((max / 127.0).min(MAX_F16));
    let d = scale.to_f32();
    let by = if d > 0.0 { 1.0 / d } else { 0.0 };
    for (i, x) in x.iter().enumerate() {
        // The scale was rounded: a quotient may come to a little more than 127.
        put(i, (x * by).round_ties_even().clamp(-127.0, 127.0) as i8);
    }
    scale.to_le_bytes()
}

/// Stores entry `n` of a row of entries of `N` bytes.
#[inline(always)]
fn put<const N: usize>(side: &mut [u8], n: usize, bytes: [u8; N]) {
    side[n * N..][..N].copy_from_slice(&bytes);
}

/// How a model uses a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvLayout {
    head: HeadLayout,
    kv_heads: usize,
    page_bytes: usize,
}

/// The parts of a model's shape that its keys and values depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvShape {
    /// Bytes that a token's keys and values take in all layers.
    pub(crate) fn token_bytes(&self, kind: KvType) -> usize {
        2 * self.layers * self.kv_heads * HeadLayout::token_bytes(kind, self.head_dim)
    }

    /// How many tokens fit in a page.
    pub(crate) fn page_tokens(&self, kind: KvType, page_bytes: usize) -> usize {
        page_bytes / self.token_bytes(kind)
    }
}

impl KvLayout {
    pub(crate) fn new(shape: KvShape, kind: KvType, page_bytes: usize) -> Self {
        let page_tokens = shape.page_tokens(kind, page_bytes);
        let head = HeadLayout { kind, page_tokens, head_dim: shape.head_dim };
        Self { head, kv_heads: shape.kv_heads, page_bytes }
    }

    pub(crate) fn head(&self) -> HeadLayout {
        self.head
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub(crate) fn page_tokens(&self) -> usize {
        self.head.page_tokens
    }

    /// Where the keys of a head begin; its values follow.
    pub(crate) fn offset(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * 2 * self.head.side_bytes()
    }

    /// Where a page has all heads of a layer: side by side, each [`HeadLayout::side_bytes`], the keys of a head and then
    /// its values.
    pub(crate) fn layer(&self, layer: usize) -> Range<usize> {
        self.offset(layer, 0)..self.offset(layer + 1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(layout: &HeadLayout, head: &mut [u8], at: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = head.split_at_mut(layout.side_bytes());
        layout.write_key(keys, at, key);
        layout.write_value(values, at, value);
    }

    #[test]
    fn a_token_is_written_to_its_place_and_nowhere_else() {
        for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for (page_tokens, head_dim) in [(1, 16), (3, 16), (37, 48), (32, 64)] {
                let layout = HeadLayout { kind, page_tokens, head_dim };
                let key: Vec<f32> = (0..head_dim).map(|i| i as f32 - 7.0).collect();
                let value: Vec<f32> = key.iter().map(|x| -2.0 * x).collect();
                let mut all = vec![0u8; 2 * layout.side_bytes()];
                (0..page_tokens).for_each(|at| write(&layout, &mut all, at, &key, &value));
                let mut changed = vec![0u8; all.len()];
                let mut again = vec![0u8; all.len()];
                for at in 0..page_tokens {
                    let mut one = vec![0u8; all.len()];
                    write(&layout, &mut one, at, &key, &value);
                    for i in 0..all.len() {
                        changed[i] += u8::from(one[i] != 0);
                        again[i] |= one[i];
                    }
                }
                assert!(changed.iter().all(|n| *n <= 1) && again == all, "{kind} {page_tokens} {head_dim}");
            }
        }
    }

    #[test]
    fn what_is_beyond_an_f16_becomes_the_largest() {
        assert_eq!(halves_of(&[1e9, -1e9, 1.5])[..4], [f16::MAX, f16::MIN, f16::from_f32(1.5), f16::ZERO]);
    }
}
