//! Many tokens: a chunk of strips is unpacked once into a panel that stays in cache, then multiplied with every tile.

use super::super::super::bytes::{BYTES, Bytes};
use super::super::super::groups::Groups;
use super::super::super::lanes::LANES;
use super::super::super::{SMALL_TILE, Task};
use super::activations::{Tiles, WORDS};
use super::strips::Strip;
use super::{Out, dot, scale, start};
use bytemuck::{Pod, Zeroable};

/// A cache line of a panel: 64 bytes of weights, or sixteen floats.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(in super::super) struct Line([f32; LANES]);

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

/// Lines of a strip's group: eight of weights, the `s`, the `b` if there are any.
pub(super) const fn lines<B: Groups>() -> usize {
    8 + B::PARTS * if B::MINIMUM { 2 } else { 1 }
}

/// The same for weights that [`Product`](super::Product) has unpacked into `panel`.
pub(super) struct PanelProduct<'a, 'v, const SIGNED: bool, const MINIMUM: bool, const N: usize> {
    pub(super) rows: usize,
    pub(super) groups: usize,
    pub(super) x: Tiles<'a>,
    pub(super) panel: &'a [Line],
    pub(super) out: Out<'a, 'v>,
    /// See [`Groups::RAISED`].
    pub(super) raised: u32,
}

impl<const SIGNED: bool, const MINIMUM: bool, const N: usize> Task for PanelProduct<'_, '_, SIGNED, MINIMUM, N> {
    #[inline(always)]
    fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
        let Self { rows, groups, x, panel: lines, mut out, raised } = self;
        let out = &mut out;
        let panel =
            Panel::<SIGNED, MINIMUM, N> { lines, groups, rows, raised: if SIGNED { L::RAISED } else { raised } };
        match x.tile {
            SMALL_TILE => panel.multiply::<L, SMALL_TILE, S>(x, out),
            _ => panel.multiply::<L, T, S>(x, out),
        }
    }
}

/// Unpacks a chunk of rows: (strips, groups, N lines).
#[inline(always)]
pub(super) fn pack_all<L: Bytes, B: Groups, S: Strip<B>, const N: usize>(
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
                    if B::MINIMUM {
                        L::store(b, &mut group[8 + B::PARTS + n].0);
                    }
                }
            }
        }
    }
}

/// Unpacked strips.
struct Panel<'a, const SIGNED: bool, const MINIMUM: bool, const N: usize> {
    /// (strips, groups, N)
    lines: &'a [Line],
    groups: usize,
    rows: usize,
    raised: u32,
}

impl<const SIGNED: bool, const MINIMUM: bool, const N: usize> Panel<'_, SIGNED, MINIMUM, N> {
    /// Multiplies every strip with every tile, `S` strips at a time.
    #[inline(always)]
    fn multiply<L: Bytes, const T: usize, const S: usize>(&self, x: Tiles<'_>, out: &mut Out<'_, '_>) {
        let strips = self.rows.div_ceil(LANES);
        let lines = self.lines.as_chunks::<N>().0;
        for (n, tile) in x.words.as_chunks::<T>().0.as_chunks::<WORDS>().0.chunks_exact(self.groups).enumerate() {
            let tokens = T.min(x.tokens - n * T);
            let mut strip = 0;
            while strip < strips {
                let left = &lines[strip * self.groups..];
                if strip + S <= strips {
                    let sums = product::<L, SIGNED, MINIMUM, N, T, S>(left, tile, self.raised);
                    out.put_all::<L, T, S>(&sums, strip, (n * T, tokens));
                    strip += S;
                } else {
                    let sums = product::<L, SIGNED, MINIMUM, N, T, 1>(left, tile, self.raised);
                    out.put_all::<L, T, 1>(&sums, strip, (n * T, tokens));
                    strip += 1;
                }
            }
        }
    }
}

/// The first `S` of the strips in `lines` times a tile of `T` tokens.
#[inline(always)]
fn product<L: Bytes, const SIGNED: bool, const MINIMUM: bool, const N: usize, const T: usize, const S: usize>(
    lines: &[[Line; N]],
    tile: &[[[u32; T]; WORDS]],
    raised: u32,
) -> [[L::V; T]; S] {
    let parts = if MINIMUM { (N - 8) / 2 } else { N - 8 };
    let groups = tile.len();
    let mut strips = [&lines[..groups]; S];
    for s in 1..S {
        strips[s] = &lines[s * groups..][..groups];
    }
    let mut sums = [[L::splat(0.0); T]; S];
    for (g, x) in tile.iter().enumerate() {
        for n in 0..parts {
            let mut ints = [[L::zero(); T]; S];
            for t in 0..T {
                let start = start::<L, T, MINIMUM>(x, t, (n, parts), raised);
                for s in 0..S {
                    ints[s][t] = start;
                }
            }
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
                let minimum = if MINIMUM { parts + n } else { n };
                let part = [L::load(&strips[s][g][8 + n].0), L::load(&strips[s][g][8 + minimum].0)];
                for t in 0..T {
                    sums[s][t] = scale::<L, T, MINIMUM>(sums[s][t], ints[s][t], part, x, t, (n, parts));
                }
            }
        }
    }
    sums
}
