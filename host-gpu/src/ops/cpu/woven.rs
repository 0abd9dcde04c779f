//! Blocks of sixteen rows, woven: where a row's block has a word of four bytes, sixteen rows' words stand side by side.
//!
//! That is how kernels for quantised activations use weights, a lane for each row, so a load gives them what they would
//! otherwise gather from sixteen places and turn. It takes no more memory: bytes only change places.
//!
//! The fields of a block keep their order. A field of `n` bytes becomes sixteen times that: its first words of all rows,
//! then its second ones, and so on; fields of two bytes are words of two bytes.
//!
//! A matrix of which a rough product is wanted before the exact one is [halved](weave_halves), too.

use super::bytes::{BYTES, Bytes};
use super::lanes::{LANES, Lanes};
use crate::format::quant::{BlockQ8_0, Quant};
use bytemuck::{Pod, Zeroable};

/// Blocks of sixteen rows that stand at one place in their rows; or all that stand there, or those of more rows.
#[derive(Clone, Copy)]
pub struct Woven<'a> {
    /// Their fields.
    pub(super) fields: &'a [u8],
    /// What stands apart of [`BlockQ8Halved`].
    pub(super) lower: &'a [u8],
}

impl<'a> Woven<'a> {
    /// Number `n` of those that have so many bytes, and so many apart.
    #[inline(always)]
    pub(super) fn at(self, n: usize, [fields, lower]: [usize; 2]) -> Self {
        Self { fields: &self.fields[n * fields..][..fields], lower: &self.lower[n * lower..][..lower] }
    }

    /// `rows` of what [`weave_halves`] made, all of one length.
    pub(super) fn of_halves(all: &'a [u8], row_bytes: usize, rows: std::ops::Range<usize>) -> Self {
        let [upper, lower] = HALVES.map(|bytes| row_bytes / size_of::<BlockQ8_0>() * bytes / LANES);
        let (uppers, lowers) = all.split_at(all.len() / (upper + lower) * upper);
        Self {
            fields: &uppers[rows.start * upper..rows.end * upper],
            lower: &lowers[rows.start * lower..rows.end * lower],
        }
    }
}

/// How far ahead of the blocks being read memory is asked for. That it is read in one go the processor sees only within a
/// page of 4 KiB, even where pages are larger.
const AHEAD: usize = 4096;

impl Woven<'_> {
    /// Asks for what stands so far behind these.
    #[inline(always)]
    pub(super) fn ask_ahead<L: Lanes>(self) {
        for part in [self.fields, self.lower] {
            L::prefetch_bytes(part.as_ptr().wrapping_add(AHEAD), part.len());
        }
    }

    /// Word `n` of the field at byte `at` of a block.
    #[inline(always)]
    pub fn word<L: Bytes>(self, at: usize, n: usize) -> L::B {
        L::load_bytes(self.part::<BYTES>(at, n))
    }

    /// The f16 at byte `at` of a block.
    #[inline(always)]
    pub fn halves<L: Lanes>(self, at: usize) -> L::V {
        L::halves(bytemuck::cast_ref(self.part::<{ 2 * LANES }>(at, 0)))
    }

    /// The field of four bytes at byte `at` of a block.
    #[inline(always)]
    pub fn fours(self, at: usize) -> [u32; LANES] {
        let mut out = [0; LANES];
        for (out, four) in out.iter_mut().zip(self.part::<BYTES>(at, 0).as_chunks::<4>().0) {
            *out = u32::from_le_bytes(*four);
        }
        out
    }

    /// Word `n` of what stands apart.
    #[inline(always)]
    pub fn lower_word<L: Bytes>(self, n: usize) -> L::B {
        L::load_bytes(self.lower[BYTES * n..].first_chunk().expect("a word of the block"))
    }

    #[inline(always)]
    fn part<const N: usize>(&self, at: usize, n: usize) -> &[u8; N] {
        self.fields[LANES * at + N * n..].first_chunk().expect("a field of the block")
    }
}

/// A [`BlockQ8_0`] whose weights are cut in two: `w = d * (16 * upper + lower - 128)`, nibbles that stand as those of
/// [`BlockQ4_0`](crate::format::quant::BlockQ4_0) do. The upper ones, with the scales, are what is read for a rough product.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8Halved {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// Nibbles: 16 low ones, then 16 high ones.
    pub upper: [u8; 16],
    /// The same.
    pub lower: [u8; 16],
}

/// Bytes of sixteen woven blocks that are read for a rough product, and of the rest.
pub(super) const HALVES: [usize; 2] = [LANES * 18, LANES * 16];

impl BlockQ8Halved {
    fn whole(&self) -> BlockQ8_0 {
        let mut q = [0; 32];
        for i in 0..16 {
            let (upper, lower) = (self.upper[i], self.lower[i]);
            q[i] = ((upper << 4 | lower & 0x0f) ^ 0x80) as i8;
            q[16 + i] = ((upper & 0xf0 | lower >> 4) ^ 0x80) as i8;
        }
        BlockQ8_0 { d: self.d, q }
    }
}

impl From<&BlockQ8_0> for BlockQ8Halved {
    fn from(block: &BlockQ8_0) -> Self {
        let raised = block.q.map(|q| q as u8 ^ 0x80);
        let (mut upper, mut lower) = ([0; 16], [0; 16]);
        for i in 0..16 {
            upper[i] = raised[i] >> 4 | raised[16 + i] & 0xf0;
            lower[i] = raised[i] & 0x0f | raised[16 + i] << 4;
        }
        Self { d: block.d, upper, lower }
    }
}

/// The lengths of the fields of a block, in order.
fn fields(quant: Quant) -> &'static [usize] {
    match quant {
        Quant::F32 | Quant::F16 | Quant::Bf16 => unreachable!("only what is quantised is woven"),
        Quant::Q4_0 | Quant::Iq4Nl => &[2, 16],
        Quant::Q4_1 => &[2, 2, 16],
        Quant::Q5_0 => &[2, 4, 16],
        Quant::Q5_1 => &[2, 2, 4, 16],
        Quant::Q8_0 => &[2, 32],
        Quant::Q2K => &[16, 64, 2, 2],
        Quant::Q3K => &[32, 64, 12, 2],
        Quant::Q4K => &[2, 2, 12, 128],
        Quant::Q5K => &[2, 2, 12, 32, 128],
        Quant::Q6K => &[128, 64, 16, 2],
        // The scale and the upper bits of scales go together.
        Quant::Iq4Xs => &[4, 4, 128],
    }
}

/// Where each word of a block stands in it, and its length.
fn words(quant: Quant) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    fields(quant).iter().flat_map(move |len| {
        let (first, word) = (at, if len % 4 == 0 { 4 } else { 2 });
        at += len;
        (first..at).step_by(word).map(move |at| (at, word))
    })
}

/// Where the fifth bits of 32 weights stand in a block: they change places, too.
fn fifths(quant: Quant) -> Option<usize> {
    match quant {
        Quant::Q5_0 => Some(2),
        Quant::Q5_1 => Some(4),
        _ => None,
    }
}

/// Bit `4 j + k` to bit `j` of byte `k`: then a shift gives each byte of a word of weights its fifth bit.
fn spread(bits: u32) -> u32 {
    (0..32).fold(0, |out, i| out | (bits >> i & 1) << (i % 4 * 8 + i / 4))
}

/// What [`spread`] was given.
fn gathered(bits: u32) -> u32 {
    (0..32).fold(0, |out, i| out | (bits >> (i % 4 * 8 + i / 4) & 1) << i)
}

/// Replaces the word at `at`.
fn change(block: &mut [u8], at: usize, change: impl Fn(u32) -> u32) {
    let word = block[at..].first_chunk_mut::<4>().expect("a block has its bits");
    *word = change(u32::from_le_bytes(*word)).to_le_bytes();
}

/// Weaves a matrix. `row_bytes` is the length of a row; `from` and `to` have the same number of rows, a multiple of sixteen.
pub fn weave(quant: Quant, row_bytes: usize, from: &[u8], to: &mut [u8]) {
    let size = quant.row().bytes;
    for (from, to) in from.chunks_exact(LANES * row_bytes).zip(to.chunks_exact_mut(LANES * row_bytes)) {
        for (k, to) in to.chunks_exact_mut(LANES * size).enumerate() {
            let (mut at, block) = (0, &from[k * size..]);
            for len in fields(quant) {
                let to = &mut to[LANES * at..][..LANES * len];
                match len % 4 {
                    0 if fifths(quant) == Some(at) => {
                        weave_field(block, row_bytes, at, to, |word| spread(u32::from_le_bytes(word)).to_le_bytes())
                    }
                    0 => weave_field(block, row_bytes, at, to, |word: [u8; 4]| word),
                    _ => weave_field(block, row_bytes, at, to, |word: [u8; 2]| word),
                }
                at += len;
            }
        }
    }
}

/// Weaves a matrix of [`BlockQ8_0`] as [`BlockQ8Halved`]: scales and upper halves of all rows come first, then the lower halves. A processor
/// reads memory at its full rate only where it is read in one go. Otherwise as [`weave`].
pub fn weave_halves(row_bytes: usize, from: &[u8], to: &mut [u8]) {
    let per_row = row_bytes / size_of::<BlockQ8_0>();
    let (uppers, lowers) = to.split_at_mut(from.len() / (HALVES[0] + HALVES[1]) * HALVES[0]);
    let halves = uppers.chunks_exact_mut(per_row * HALVES[0]).zip(lowers.chunks_exact_mut(per_row * HALVES[1]));
    for (from, (upper, lower)) in from.chunks_exact(LANES * row_bytes).zip(halves) {
        let blocks: &[BlockQ8_0] = bytemuck::cast_slice(from);
        let halves = upper.chunks_exact_mut(HALVES[0]).zip(lower.chunks_exact_mut(HALVES[1]));
        for (k, (upper, lower)) in halves.enumerate() {
            let (scales, upper) = upper.split_at_mut(2 * LANES);
            for row in 0..LANES {
                let block = BlockQ8Halved::from(&blocks[row * per_row + k]);
                scales[2 * row..][..2].copy_from_slice(&block.d);
                for n in 0..4 {
                    let at = BYTES * n + 4 * row;
                    upper[at..at + 4].copy_from_slice(&block.upper[4 * n..][..4]);
                    lower[at..at + 4].copy_from_slice(&block.lower[4 * n..][..4]);
                }
            }
        }
    }
}

/// The field of sixteen blocks that begins at byte `at` of each; `blocks` begins with the first row's.
#[inline]
fn weave_field<const N: usize>(
    blocks: &[u8],
    row_bytes: usize,
    at: usize,
    to: &mut [u8],
    word: impl Fn([u8; N]) -> [u8; N],
) {
    for (n, words) in to.as_chunks_mut::<N>().0.chunks_exact_mut(LANES).enumerate() {
        for (row, to) in words.iter_mut().enumerate() {
            let from = blocks[row * row_bytes + at + n * N..].first_chunk::<N>();
            *to = word(*from.expect("sixteen rows of blocks"));
        }
    }
}

/// Row `row` of sixteen woven rows, as it was.
pub fn unweave(quant: Quant, strip: &[u8], row: usize) -> Vec<u8> {
    let size = quant.row().bytes;
    let mut out = vec![0; strip.len() / LANES];
    for (from, block) in strip.chunks_exact(LANES * size).zip(out.chunks_exact_mut(size)) {
        for (at, word) in words(quant) {
            block[at..][..word].copy_from_slice(&from[LANES * at + row * word..][..word]);
        }
        if let Some(at) = fifths(quant) {
            change(block, at, gathered);
        }
    }
    out
}

/// Row `row` of sixteen rows of [`weave_halves`], as it was.
pub fn unweave_halves(strip: Woven<'_>, row: usize) -> Vec<u8> {
    let Woven { fields, lower } = strip;
    let mut out = Vec::with_capacity((fields.len() + lower.len()) / LANES);
    for (upper, lower) in fields.chunks_exact(HALVES[0]).zip(lower.chunks_exact(HALVES[1])) {
        let (scales, upper) = upper.split_at(2 * LANES);
        let mut block = BlockQ8Halved::zeroed();
        block.d.copy_from_slice(&scales[2 * row..][..2]);
        for n in 0..4 {
            let at = BYTES * n + 4 * row;
            block.upper[4 * n..][..4].copy_from_slice(&upper[at..at + 4]);
            block.lower[4 * n..][..4].copy_from_slice(&lower[at..at + 4]);
        }
        out.extend_from_slice(bytemuck::bytes_of(&block.whole()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::quant::TYPES;

    #[test]
    fn what_is_halved_comes_back() {
        let row_bytes = 3 * size_of::<BlockQ8_0>();
        let from: Vec<u8> = (0..32 * row_bytes).map(|i| (i * i / 7 + i) as u8).collect();
        let mut to = vec![0; from.len()];
        weave_halves(row_bytes, &from, &mut to);
        for (n, row) in from.chunks_exact(row_bytes).enumerate() {
            let first = n / LANES * LANES;
            let strip = Woven::of_halves(&to, row_bytes, first..first + LANES);
            assert_eq!(unweave_halves(strip, n % LANES), row, "row {n}");
        }
    }

    #[test]
    fn every_byte_of_a_block_is_in_one_word() {
        for row in TYPES {
            let Some(quant) = row.quant.filter(|q| !matches!(q, Quant::F32 | Quant::F16 | Quant::Bf16)) else {
                continue;
            };
            let mut next = 0;
            for (at, word) in words(quant) {
                assert_eq!(at, next, "{}", row.name);
                next += word;
            }
            assert_eq!(next, row.bytes, "{}", row.name);
        }
    }

    #[test]
    fn what_is_woven_comes_back() {
        for row in TYPES {
            let Some(quant) = row.quant.filter(|q| !matches!(q, Quant::F32 | Quant::F16 | Quant::Bf16)) else {
                continue;
            };
            let row_bytes = 3 * row.bytes;
            let from: Vec<u8> = (0..32 * row_bytes).map(|i| (i * i / 7 + i) as u8).collect();
            let mut to = vec![0; from.len()];
            weave(quant, row_bytes, &from, &mut to);
            for (n, row) in from.chunks_exact(row_bytes).enumerate() {
                let strip = &to[n / LANES * LANES * row_bytes..][..LANES * row_bytes];
                assert_eq!(unweave(quant, strip, n % LANES), row, "{quant:?} row {n}");
            }
        }
    }

    #[test]
    fn fifth_bits_stand_where_a_shift_finds_them() {
        for i in 0..32 {
            let (j, k) = (i / 4, i % 4);
            assert_eq!((spread(1 << i) >> j).to_le_bytes()[k], 1, "bit {i}");
        }
        assert_eq!(gathered(spread(0x1234_5678)), 0x1234_5678);
    }
}
