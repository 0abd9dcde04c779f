//! Products of integers: quantised weights times activations that were quantised to bytes.
//!
//! Sixteen rows of weights are a strip, with a lane for each row. Of each group of 32 weights the integer products are
//! exact; the floats they are scaled to are added in the order of the groups, so a token gets the same bits whatever is
//! computed beside it. One or two tokens: a strip is unpacked in registers and used at once. More: a chunk of strips is
//! unpacked once into a panel that stays in cache, then multiplied with every tile of tokens.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays go by one index; iterators bring closures, see `lanes`"
)]

use super::super::bytes::{BYTES, Bytes};
use super::super::groups::Groups;
use super::super::lanes::{LANES, Lanes};
use super::super::woven::Woven;
use super::super::{Cpu, SMALL_TILE, Task};
use super::{CACHE_LINE, Matrix};
use crate::format::quant::*;
use crate::ops::pool::Pool;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Words of a token's group of 32 activations: eight of bytes, the scale, the sum of what the bytes stand for, and the
/// sums of both halves.
const WORDS: usize = 12;
const SCALE: usize = 8;
const SUM: usize = 9;
const HALF_SUM: usize = 10;
/// Up to this many tokens are multiplied without a panel.
const DIRECT_TOKENS: usize = 2;
/// Woven blocks of one scale are unpacked as they are multiplied for so many tiles, too: that takes less than a panel does.
const STRAIGHT_TILES: usize = 6;
/// Activations are these many steps at most, so that a product of two and a sum of pairs fit the paths' instructions.
const STEPS: f32 = 127.0;

/// Quantised activations: (tiles, cols / 32, WORDS, tile).
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    words: &'a [u32],
    tile: usize,
    tokens: usize,
}

impl<'a> Tiles<'a> {
    /// Quantises `rows` of `cols` values into `scratch`.
    pub(super) fn new(cpu: Cpu, pool: &mut Pool, rows: &[f32], cols: usize, scratch: &'a mut Vec<u32>) -> Self {
        let tokens = rows.len() / cols;
        let tile = if tokens <= DIRECT_TOKENS { tokens } else { cpu.tile_tokens(tokens) };
        let size = tile * cols / 32 * WORDS;
        scratch.resize(tokens.div_ceil(tile.max(1)) * size, 0);
        pool.rows(scratch, size.max(1), |n, out| {
            let rows = &rows[n * tile * cols..rows.len().min((n + 1) * tile * cols)];
            cpu.run(Quantise { rows, cols, tile, out });
        });
        Self { words: scratch, tile, tokens }
    }

    /// Whether weights are unpacked in registers.
    pub(super) fn direct(&self) -> bool {
        self.tokens <= DIRECT_TOKENS
    }

    /// Whether woven blocks of type `B` need no panel.
    #[inline(always)]
    fn straight<B: Groups>(&self) -> bool {
        B::GROUPS == 1 && self.tokens <= STRAIGHT_TILES * self.tile
    }
}

/// One tile of tokens; `out` (cols / 32, WORDS, tile).
struct Quantise<'a> {
    rows: &'a [f32],
    cols: usize,
    tile: usize,
    out: &'a mut [u32],
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        for t in 0..self.tile {
            let groups = self.out.chunks_exact_mut(WORDS * self.tile);
            match self.rows.get(t * self.cols..(t + 1) * self.cols) {
                Some(row) => {
                    for (out, x) in groups.zip(row.as_chunks::<32>().0) {
                        let words = quantise::<L>(x);
                        for n in 0..WORDS {
                            out[n * self.tile + t] = words[n];
                        }
                    }
                }
                // Tokens beyond the last are zero: their products are never read.
                None => groups.for_each(|out| (0..WORDS).for_each(|n| out[n * self.tile + t] = 0)),
            }
        }
    }
}

/// `x = d * q` with `d = max |x| / 127`, `q` rounded to the nearest.
#[inline(always)]
fn quantise<L: Lanes>(x: &[f32; 32]) -> [u32; WORDS] {
    let (halves, _) = x.as_chunks::<LANES>();
    let d = L::max_abs(L::load(&halves[0]), L::load(&halves[1])) / STEPS;
    let by = L::splat(if d > 0.0 { 1.0 / d } else { 0.0 });
    let (mut q, mut sums) = ([0i8; 32], [0i32; 2]);
    for (n, q) in q.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        *q = L::rounded(L::mul(L::load(&halves[n]), by));
        for q in q {
            sums[n] += i32::from(*q);
        }
    }
    let mut out = [0; WORDS];
    for (out, four) in out.iter_mut().zip(bytemuck::cast::<_, [[u8; 4]; 8]>(q)) {
        *out = u32::from_le_bytes(four);
    }
    out[SCALE] = d.to_bits();
    out[SUM] = (d * (sums[0] + sums[1]) as f32).to_bits();
    out[HALF_SUM] = (d * sums[0] as f32).to_bits();
    out[HALF_SUM + 1] = (d * sums[1] as f32).to_bits();
    out
}

/// What quantising leaves of `x`.
pub(super) struct Leaves<'a> {
    pub(super) x: &'a [f32],
    pub(super) rest: &'a mut [f32],
}

impl Task for Leaves<'_> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        for (rest, x) in self.rest.as_chunks_mut::<32>().0.iter_mut().zip(self.x.as_chunks::<32>().0) {
            let words = quantise::<L>(x);
            let (d, mut q) = (f32::from_bits(words[SCALE]), [0i8; 32]);
            for (q, word) in q.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *q = word.to_le_bytes().map(|byte| byte as i8);
            }
            for i in 0..32 {
                rest[i] = L::fma1(-d, f32::from(q[i]), x[i]);
            }
        }
    }
}

/// A cache line of a panel: 64 bytes of weights, or sixteen floats.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LANES]);

impl Line {
    #[inline(always)]
    fn bytes(&self) -> &[u8; BYTES] {
        bytemuck::cast_ref(&self.0)
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8; BYTES] {
        bytemuck::cast_mut(&mut self.0)
    }
}

/// Lines of a strip's group with one pair of `s` and `b`, and with two: eight of weights, the `s`, the `b`.
const LINES: usize = 10;
const LINES_OF_TWO: usize = 12;

/// `part[t][r - rows.start] = w[r] . x[t]`.
pub(super) struct Product<'a, B, const N: usize> {
    /// (rows, per_row)
    pub(super) blocks: &'a [B],
    pub(super) per_row: usize,
    /// Whether these are [`woven`](Matrix::woven).
    pub(super) woven: bool,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<Line>,
    /// (tokens, rows)
    pub(super) part: &'a mut [f32],
}

impl<B: Groups, const N: usize> Task for Product<'_, B, N> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self { blocks, per_row, woven, x, panel, part } = self;
        let strips = blocks.chunks(LANES * per_row);
        match woven {
            true => {
                if B::GROUPS == 1 && !x.direct() && x.straight::<B>() {
                    let woven = WovenStrips { blocks: bytemuck::cast_slice(blocks), per_row };
                    return match x.tile {
                        SMALL_TILE => woven.multiply::<L, B, SMALL_TILE, S>(x, part),
                        _ => woven.multiply::<L, B, T, S>(x, part),
                    };
                }
                let strips = strips.map(|strip| WovenRows(bytemuck::cast_slice(strip)));
                all_strips::<L, B, _, N>(strips, per_row, x, panel, part);
            }
            false => {
                let strips = strips.map(|strip| Rows::new(strip, per_row));
                all_strips::<L, B, _, N>(strips, per_row, x, panel, part);
            }
        }
    }
}

/// The same for weights that [`Product`] has unpacked into `panel`.
pub(super) struct PanelProduct<'a, const SIGNED: bool, const N: usize> {
    pub(super) rows: usize,
    pub(super) groups: usize,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a [Line],
    /// (tokens, rows)
    pub(super) part: &'a mut [f32],
}

impl<const SIGNED: bool, const N: usize> Task for PanelProduct<'_, SIGNED, N> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self { rows, groups, x, panel: lines, part } = self;
        let panel = Panel { lines, groups, rows };
        match x.tile {
            SMALL_TILE => panel.multiply::<L, SIGNED, N, SMALL_TILE, S>(x, part),
            _ => panel.multiply::<L, SIGNED, N, T, S>(x, part),
        }
    }
}

/// What a product computes on: weights, activations, and where the result goes.
pub(super) struct Work<'a> {
    pub(super) w: Matrix<'a>,
    pub(super) rows: Range<usize>,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a mut Vec<Line>,
    /// (tokens, rows of the range)
    pub(super) part: &'a mut [f32],
}

impl Work<'_> {
    /// Does it. Each type is a task of its own: one function with all of them would be compiled for minutes.
    pub(super) fn run(self, cpu: Cpu) {
        match self.w.quant {
            Quant::F32 | Quant::F16 | Quant::Bf16 => unreachable!("weights that are floats are multiplied as such"),
            Quant::Q4_0 => self.of::<BlockQ4_0, LINES>(cpu),
            Quant::Q4_1 => self.of::<BlockQ4_1, LINES>(cpu),
            Quant::Q5_0 => self.of::<BlockQ5_0, LINES>(cpu),
            Quant::Q5_1 => self.of::<BlockQ5_1, LINES>(cpu),
            Quant::Q8_0 => self.of::<BlockQ8_0, LINES>(cpu),
            Quant::Q2K => self.of::<BlockQ2K, LINES_OF_TWO>(cpu),
            Quant::Q3K => self.of::<BlockQ3K, LINES_OF_TWO>(cpu),
            Quant::Q4K => self.of::<BlockQ4K, LINES>(cpu),
            Quant::Q5K => self.of::<BlockQ5K, LINES>(cpu),
            Quant::Q6K => self.of::<BlockQ6K, LINES_OF_TWO>(cpu),
            Quant::Iq4Nl => self.of::<BlockIq4Nl, LINES>(cpu),
            Quant::Iq4Xs => self.of::<BlockIq4Xs, LINES>(cpu),
        }
    }

    fn of<B: Groups, const N: usize>(self, cpu: Cpu) {
        let Self { w, rows, x, panel, part } = self;
        let (bytes, woven) = match w.woven_bytes(&rows) {
            Some(woven) => (woven, true),
            None => (w.rows_bytes(&rows), false),
        };
        let (blocks, per_row): (&[B], usize) = (bytemuck::cast_slice(bytes), w.cols / (32 * B::GROUPS));
        cpu.run(Product::<B, N> { blocks, per_row, woven, x, panel, part });
        if !x.direct() && !(woven && x.straight::<B>()) {
            let (rows, groups) = (rows.len(), per_row * B::GROUPS);
            match B::SIGNED {
                true => cpu.run(PanelProduct::<true, N> { rows, groups, x, panel, part }),
                false => cpu.run(PanelProduct::<false, N> { rows, groups, x, panel, part }),
            }
        }
    }
}

/// Sixteen rows of blocks.
trait Strip<B: Groups> {
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
struct Rows<'a, B>([&'a [B]; LANES]);

impl<'a, B> Rows<'a, B> {
    #[inline(always)]
    fn new(blocks: &'a [B], per_row: usize) -> Self {
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
        for line in 0..step.div_ceil(CACHE_LINE) {
            L::prefetch(ahead.wrapping_add(line * CACHE_LINE));
        }
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

/// Woven rows, see [`woven`](super::super::woven). Memory is read in one go, which the processor sees.
struct WovenRows<'a>(&'a [u8]);

impl<B: Groups> Strip<B> for WovenRows<'_> {
    type Blocks<'b>
        = Woven<'b>
    where
        Self: 'b;

    #[inline(always)]
    fn blocks<L: Lanes>(&self, k: usize) -> Woven<'_> {
        let size = LANES * size_of::<B>();
        Woven(&self.0[k * size..][..size])
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

/// Adds four weights of each row times four activations.
#[inline(always)]
fn dot<L: Bytes, const SIGNED: bool>(sum: L::I, w: L::B, x: u32) -> L::I {
    if SIGNED { L::dot_signed(sum, w, x as i32) } else { L::dot(sum, w, x as i32) }
}

/// `sum + s * d * ints + b * x`, where `x` is the sum of the activations.
#[inline(always)]
fn scale<L: Bytes>(sum: L::V, ints: L::I, [s, b]: [L::V; 2], d: u32, x: u32) -> L::V {
    let sum = L::fma(L::floats_of(ints), L::mul(s, L::splat(f32::from_bits(d))), sum);
    L::fma(b, L::splat(f32::from_bits(x)), sum)
}

/// Where the sum of the activations of part `n` of `parts` stands.
#[inline(always)]
fn sum_at(n: usize, parts: usize) -> usize {
    if parts == 1 { SUM } else { HALF_SUM + n }
}

/// Multiplies strips at once, or unpacks them.
#[inline(always)]
fn all_strips<L: Bytes, B: Groups, S: Strip<B>, const N: usize>(
    strips: impl ExactSizeIterator<Item = S>,
    per_row: usize,
    x: Tiles<'_>,
    panel: &mut Vec<Line>,
    part: &mut [f32],
) {
    match (x.direct(), x.tile) {
        (true, 1) => direct_all::<L, B, S, 1>(strips, per_row, x.words, part),
        (true, _) => direct_all::<L, B, S, 2>(strips, per_row, x.words, part),
        (false, _) => pack_all::<L, B, S, N>(strips, per_row, panel),
    }
}

/// `T` tokens, one or two; `part` (T, rows).
#[inline(always)]
fn direct_all<L: Bytes, B: Groups, S: Strip<B>, const T: usize>(
    strips: impl Iterator<Item = S>,
    per_row: usize,
    x: &[u32],
    part: &mut [f32],
) {
    let rows = part.len() / T;
    let x = &x.as_chunks::<T>().0.as_chunks::<WORDS>().0[..per_row * B::GROUPS];
    for (n, strip) in strips.enumerate() {
        let sums = match B::SIGNED {
            true => direct::<L, B, S, true, T>(&strip, per_row, x),
            false => direct::<L, B, S, false, T>(&strip, per_row, x),
        };
        for t in 0..T {
            put::<L>(sums[t], &mut part[t * rows..(t + 1) * rows][n * LANES..]);
        }
    }
}

/// Stores the lanes that `out` has room for.
#[inline(always)]
fn put<L: Lanes>(v: L::V, out: &mut [f32]) {
    match out.first_chunk_mut::<LANES>() {
        Some(out) => L::store(v, out),
        None => {
            let mut all = [0.0; LANES];
            L::store(v, &mut all);
            out.copy_from_slice(&all[..out.len()]);
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

/// Unpacks a chunk of rows: (strips, groups, N lines).
#[inline(always)]
fn pack_all<L: Bytes, B: Groups, S: Strip<B>, const N: usize>(
    strips: impl ExactSizeIterator<Item = S>,
    per_row: usize,
    panel: &mut Vec<Line>,
) {
    let (count, size) = (strips.len(), per_row * B::GROUPS * N);
    if panel.len() < count * size {
        panel.resize(count * size, Line::zeroed());
    }
    for (strip, lines) in strips.zip(panel.chunks_exact_mut(size)) {
        let groups = lines.as_chunks_mut::<N>().0;
        for k in 0..per_row {
            let blocks = strip.blocks::<L>(k);
            let affine = S::affine::<L>(blocks);
            for g in 0..B::GROUPS {
                let group = &mut groups[k * B::GROUPS + g];
                let w = S::unpack::<L>(blocks, g);
                for j in 0..8 {
                    L::store_bytes(w[j], group[j].bytes_mut());
                }
                for n in 0..B::PARTS {
                    let [s, b] = B::part::<L>(&affine, g * B::PARTS + n);
                    L::store(s, &mut group[8 + n].0);
                    L::store(b, &mut group[8 + B::PARTS + n].0);
                }
            }
        }
    }
}

/// Woven strips of blocks of one scale.
struct WovenStrips<'a> {
    /// (strips, per_row, sixteen blocks)
    blocks: &'a [u8],
    per_row: usize,
}

impl WovenStrips<'_> {
    /// Multiplies every strip with every tile, `S` strips at a time; `part` (tokens, rows).
    #[inline(always)]
    fn multiply<L: Bytes, B: Groups, const T: usize, const S: usize>(&self, x: Tiles<'_>, part: &mut [f32]) {
        let size = self.per_row * LANES * size_of::<B>();
        let (strips, groups) = (self.blocks.len() / size, self.per_row * B::GROUPS);
        let rows = strips * LANES;
        for (n, tile) in x.words.as_chunks::<T>().0.as_chunks::<WORDS>().0.chunks_exact(groups).enumerate() {
            let tokens = T.min(x.tokens - n * T);
            let part = &mut part[n * T * rows..];
            let mut strip = 0;
            while strip < strips {
                let left = &self.blocks[strip * size..];
                if strip + S <= strips {
                    let sums = match B::SIGNED {
                        true => woven_product::<L, B, true, T, S>(left, size, tile),
                        false => woven_product::<L, B, false, T, S>(left, size, tile),
                    };
                    put_all::<L, T, S>(&sums, (rows, strip), tokens, part);
                    strip += S;
                } else {
                    let sums = match B::SIGNED {
                        true => woven_product::<L, B, true, T, 1>(left, size, tile),
                        false => woven_product::<L, B, false, T, 1>(left, size, tile),
                    };
                    put_all::<L, T, 1>(&sums, (rows, strip), tokens, part);
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

/// Stores the sums of `tokens` tokens from strip `strip` on; `part` (tokens, rows).
#[inline(always)]
fn put_all<L: Lanes, const T: usize, const S: usize>(
    sums: &[[L::V; T]; S],
    (rows, strip): (usize, usize),
    tokens: usize,
    part: &mut [f32],
) {
    for s in 0..S {
        for t in 0..tokens {
            put::<L>(sums[s][t], &mut part[t * rows..(t + 1) * rows][(strip + s) * LANES..]);
        }
    }
}

/// Unpacked strips.
struct Panel<'a> {
    /// (strips, groups, N)
    lines: &'a [Line],
    groups: usize,
    rows: usize,
}

impl Panel<'_> {
    /// Multiplies every strip with every tile, `S` strips at a time; `part` (tokens, rows).
    #[inline(always)]
    fn multiply<L: Bytes, const SIGNED: bool, const N: usize, const T: usize, const S: usize>(
        &self,
        x: Tiles<'_>,
        part: &mut [f32],
    ) {
        let strips = self.rows.div_ceil(LANES);
        let lines = self.lines.as_chunks::<N>().0;
        for (n, tile) in x.words.as_chunks::<T>().0.as_chunks::<WORDS>().0.chunks_exact(self.groups).enumerate() {
            let tokens = T.min(x.tokens - n * T);
            let mut strip = 0;
            while strip < strips {
                let left = &lines[strip * self.groups..];
                if strip + S <= strips {
                    let sums = product::<L, SIGNED, N, T, S>(left, tile);
                    put_all::<L, T, S>(&sums, (self.rows, strip), tokens, &mut part[n * T * self.rows..]);
                    strip += S;
                } else {
                    let sums = product::<L, SIGNED, N, T, 1>(left, tile);
                    put_all::<L, T, 1>(&sums, (self.rows, strip), tokens, &mut part[n * T * self.rows..]);
                    strip += 1;
                }
            }
        }
    }
}

/// The first `S` of the strips in `lines` times a tile of `T` tokens.
#[inline(always)]
fn product<L: Bytes, const SIGNED: bool, const N: usize, const T: usize, const S: usize>(
    lines: &[[Line; N]],
    tile: &[[[u32; T]; WORDS]],
) -> [[L::V; T]; S] {
    let parts = (N - 8) / 2;
    let groups = tile.len();
    let mut strips = [&lines[..groups]; S];
    for s in 1..S {
        strips[s] = &lines[s * groups..][..groups];
    }
    let mut sums = [[L::splat(0.0); T]; S];
    for (g, x) in tile.iter().enumerate() {
        for n in 0..parts {
            let mut ints = [[L::zero(); T]; S];
            for j in n * 8 / parts..(n + 1) * 8 / parts {
                let mut w = [L::load_bytes(strips[0][g][j].bytes()); S];
                for s in 1..S {
                    w[s] = L::load_bytes(strips[s][g][j].bytes());
                }
                for t in 0..T {
                    for s in 0..S {
                        ints[s][t] = dot::<L, SIGNED>(ints[s][t], w[s], x[j][t]);
                    }
                }
            }
            for s in 0..S {
                let part = [L::load(&strips[s][g][8 + n].0), L::load(&strips[s][g][8 + parts + n].0)];
                for t in 0..T {
                    sums[s][t] = scale::<L>(sums[s][t], ints[s][t], part, x[SCALE][t], x[sum_at(n, parts)][t]);
                }
            }
        }
    }
    sums
}
