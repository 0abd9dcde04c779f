//! Weights times activations.
//!
//! `out[t][r] = sum over c of w[r][c] * x[t][c]`: w (rows, cols) stays quantised in the mapped file, x (tokens, cols).
//! `int` multiplies quantised weights with activations that were quantised to bytes; `float` multiplies
//! any weights with floats. Both unpack the weights as they go: in registers for few tokens, into a panel that stays in
//! cache for many. Nothing is packed in advance, so a model costs no memory beyond its file and no time before its first token.

use super::lanes::{CACHE_LINE, LANES};
use super::woven::Woven;
use super::{Activations, Cpu};
use crate::format::huge::Piece;
use crate::format::quant::Quant;
use crate::ops::pool::{Columns, Pool, View};
use std::cell::RefCell;
use std::ops::Range;

mod best;
mod float;
mod int;

pub use best::Best;

/// Weights of about this many entries are one chunk of work: some microseconds.
const CHUNK_WEIGHTS: usize = 32 * 1024;
/// A chunk of few tokens' work has at most so many.
const CHUNK_WEIGHTS_MAX: usize = 512 * 1024;
/// One of some more tokens', which needs no panel: of a piece that has no copy yet, a panel is made after all.
const CHUNK_WEIGHTS_STRAIGHT: usize = 128 * 1024;
/// Chunks of few tokens' work for each thread, at least: threads that come late find some left.
const CHUNKS: usize = 3;
/// Rows of a chunk are a multiple of this: two strips of sixteen.
pub(crate) const CHUNK_ROWS: usize = 32;

/// A weight matrix: its bytes lie in the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How numbers are stored.
    pub quant: Quant,
    /// Outputs.
    pub rows: usize,
    /// Inputs; a multiple of 32 and of the weights in a block.
    pub cols: usize,
    /// `rows` rows of blocks.
    pub bytes: &'a [u8],
    /// Pieces that together have all rows, in order, or none. Kernels read the copies of those that have one, and the
    /// rest in `bytes`. Copies of a matrix that [`can_weave`] says so of are [woven](super::woven::weave), and for
    /// kernels for quantised activations alone.
    pub copies: &'a [Piece],
}

/// Whether a matrix of `rows` rows can be woven: whole strips, whatever chunks it is worked on in.
pub fn can_weave(quant: Quant, rows: usize) -> bool {
    is_quantised(quant) && rows.is_multiple_of(CHUNK_ROWS)
}

/// The parts of `rows` that lie in one piece of `w` each.
fn by_piece(rows: Range<usize>, w: &Matrix<'_>) -> impl Iterator<Item = Range<usize>> {
    // Without pieces it is one.
    let count = w.copies.len().max(1);
    let first = w.piece_of(rows.start);
    let copies = w.copies;
    (first..count)
        .map(move |n| match copies.get(n) {
            Some(piece) => rows.start.max(piece.rows().start)..rows.end.min(piece.rows().end),
            None => rows.clone(),
        })
        .take_while(|rows| !rows.is_empty())
}

fn is_quantised(quant: Quant) -> bool {
    !matches!(quant, Quant::F32 | Quant::F16 | Quant::Bf16)
}

impl<'a> Matrix<'a> {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let row = self.quant.row();
        self.cols / row.weights * row.bytes
    }

    /// `rows`, which are of one piece, as they are in the file.
    fn rows_bytes(&self, rows: &Range<usize>) -> &'a [u8] {
        let size = self.row_bytes();
        match self.copy(rows) {
            Some(copy) if !can_weave(self.quant, self.rows) => copy,
            _ => &self.bytes[rows.start * size..rows.end * size],
        }
    }

    /// The number of the piece that has row `row`.
    fn piece_of(&self, row: usize) -> usize {
        self.copies.partition_point(|piece| piece.rows().end <= row)
    }

    /// The woven copy of `rows`, which are whole strips of one piece, if it has one.
    fn woven(&self, rows: &Range<usize>) -> Option<Woven<'a>> {
        if !can_weave(self.quant, self.rows) {
            return None;
        }
        match self.halved_at(rows) {
            false => Some(Woven { fields: self.copy(rows)?, lower: &[] }),
            true => {
                let piece = self.copies.get(self.piece_of(rows.start))?;
                let first = piece.rows().start;
                Some(Woven::of_halves(piece.copy()?, self.row_bytes(), rows.start - first..rows.end - first))
            }
        }
    }

    /// Whether the copy of `rows`, which are of one piece, is [in halves](super::woven::weave_halves).
    fn halved_at(&self, rows: &Range<usize>) -> bool {
        let piece = self.copies.get(self.piece_of(rows.start));
        piece.is_some_and(|piece| piece.is_halved() && piece.copy().is_some())
    }

    /// The copy of `rows`, which are of one piece, if it has one.
    fn copy(&self, rows: &Range<usize>) -> Option<&'a [u8]> {
        let piece = self.copies.get(self.piece_of(rows.start))?;
        let (size, first) = (self.row_bytes(), piece.rows().start);
        Some(&piece.copy()?[(rows.start - first) * size..(rows.end - first) * size])
    }
}

/// Memory that an [`Input`] keeps what it prepares in.
#[derive(Default)]
pub struct Tiles {
    floats: Vec<f32>,
    words: Vec<u32>,
    /// Rows and what quantising leaves of them.
    split: Vec<f32>,
}

/// Activations (tokens, cols), prepared for the matrices they are to meet.
pub struct Input<'a> {
    cols: usize,
    tokens: usize,
    floats: Option<float::Tiles<'a>>,
    bytes: Option<int::Tiles<'a>>,
    /// Whether there are two rows of bytes for each token, whose products are added.
    split: bool,
}

impl<'a> Input<'a> {
    /// The same with sixteen bits for each activation, where [`Input::new`] has eight: for products that nothing comes
    /// after to even out errors. Costs as much as twice the tokens.
    pub fn fine(
        cpu: Cpu,
        pool: &mut Pool,
        rows: &'a [f32],
        cols: usize,
        weights: &[Matrix<'_>],
        scratch: &'a mut Tiles,
    ) -> Self {
        if !weights.iter().all(|w| cpu.multiplies_bytes(w.quant)) {
            return Self::new(cpu, pool, rows, cols, weights, scratch);
        }
        let Tiles { words, split, .. } = scratch;
        split.resize(2 * rows.len(), 0.0);
        pool.rows(split, 2 * cols, |token, out| {
            let (whole, rest) = out.split_at_mut(cols);
            whole.copy_from_slice(&rows[token * cols..][..cols]);
            cpu.quantising_leaves(whole, rest);
        });
        let bytes = Some(int::Tiles::new(cpu, pool, split, cols, words));
        Self { cols, tokens: rows.len() / cols, floats: None, bytes, split: true }
    }

    /// Prepares `rows` of `cols` values for products with `weights`; `scratch` keeps the result.
    pub fn new(
        cpu: Cpu,
        pool: &mut Pool,
        rows: &'a [f32],
        cols: usize,
        weights: &[Matrix<'_>],
        scratch: &'a mut Tiles,
    ) -> Self {
        assert!(cols.is_multiple_of(32) && rows.len().is_multiple_of(cols), "whole rows");
        let Tiles { floats, words, .. } = scratch;
        let (as_bytes, as_floats) =
            (|w: &Matrix<'_>| cpu.multiplies_bytes(w.quant), |w: &Matrix<'_>| !cpu.multiplies_bytes(w.quant));
        Self {
            cols,
            tokens: rows.len() / cols,
            floats: weights.iter().any(as_floats).then(|| float::Tiles::new(cpu, pool, rows, cols, floats)),
            bytes: weights.iter().any(as_bytes).then(|| int::Tiles::new(cpu, pool, rows, cols, words)),
            split: false,
        }
    }
}

thread_local! {
    /// A thread's unpacked weights and products, kept between operations.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    panels: Panels,
    first: Vec<f32>,
    second: Vec<f32>,
}

#[derive(Default)]
struct Panels {
    floats: Vec<f32>,
    lines: Vec<int::Line>,
    /// Products with floats, before they go where they belong.
    part: Vec<f32>,
}

/// Rows of a chunk of work on `rows` rows. Where weights are read once, chunks are large, since memory is read faster the
/// longer it goes on; a panel must stay in cache.
fn chunk_rows(pool: &Pool, rows: usize, x: &Input<'_>, weights: &[Matrix<'_>]) -> usize {
    let direct = x.floats.is_none_or(|x| x.direct()) && x.bytes.is_none_or(|x| x.direct());
    let straight = x.floats.is_none() && x.bytes.is_some_and(|x| weights.iter().all(|w| x.goes_straight(w)));
    let most = if direct { CHUNK_WEIGHTS_MAX } else { CHUNK_WEIGHTS_STRAIGHT };
    let weights = match direct || straight {
        true => (rows * x.cols / (CHUNKS * pool.threads())).min(most),
        false => CHUNK_WEIGHTS,
    };
    (weights / x.cols).next_multiple_of(CHUNK_ROWS).max(CHUNK_ROWS)
}

impl Cpu {
    /// Whether weights of this type meet quantised activations.
    fn multiplies_bytes(self, quant: Quant) -> bool {
        self.activations == Activations::Q8 && is_quantised(quant)
    }

    /// `rows` of `w` times all tokens, to the columns of `view` from `at` on.
    fn product(
        self,
        (w, rows): (Matrix<'_>, Range<usize>),
        x: &Input<'_>,
        panels: &mut Panels,
        (view, at): (&mut View<'_>, usize),
        add: bool,
    ) {
        assert!(w.cols == x.cols && w.bytes.len() == w.rows * w.row_bytes(), "shapes agree");
        let Panels { floats, lines, part } = panels;
        match (x.floats, x.bytes) {
            (_, Some(bytes)) if self.multiplies_bytes(w.quant) => {
                let out = int::Out { view, at, rows: rows.len(), add, split: x.split };
                int::Work { w, rows, x: bytes, panel: lines, out }.run(self);
            }
            (Some(floats_of_x), _) => {
                let width = rows.len();
                part.resize(x.tokens * width, 0.0);
                float::Work { w, rows, x: floats_of_x, panel: floats, part }.run(self);
                put(view, at, width, part, add);
            }
            _ => panic!("the input was not prepared for {:?}", w.quant),
        }
    }

    /// `out[t] = (w0 x[t], w1 x[t], ...)`, or added to what `out` has; out (tokens, sum of rows).
    pub fn matmul(self, pool: &mut Pool, weights: &[Matrix<'_>], x: &Input<'_>, add: bool, out: &mut [f32]) {
        let width = weights.iter().map(|w| w.rows).sum();
        assert!(out.len() == x.tokens * width, "a row for each token");
        let chunk = chunk_rows(pool, width, x, weights);
        pool.columns(out, width, chunk, |mut view| {
            SCRATCH.with_borrow_mut(|Scratch { panels, .. }| {
                let mut begin = 0;
                for w in weights {
                    for rows in by_piece(overlap(view.range(), begin, w.rows), w) {
                        let at = begin + rows.start - view.range().start;
                        self.product((*w, rows), x, panels, (&mut view, at), add);
                    }
                    begin += w.rows;
                }
            });
        });
    }

    /// `out[t] = silu(gate x[t]) * (up x[t])`; out (tokens, rows).
    pub fn matmul_gated(self, pool: &mut Pool, gate: Matrix<'_>, up: Matrix<'_>, x: &Input<'_>, out: &mut [f32]) {
        assert!(gate.rows == up.rows && out.len() == x.tokens * gate.rows, "shapes agree");
        let chunk = chunk_rows(pool, gate.rows, x, &[gate, up]);
        pool.columns(out, gate.rows, chunk, |mut view| {
            SCRATCH.with_borrow_mut(|Scratch { panels, first, second }| {
                let begin = view.range().start;
                let both = by_piece(view.range(), &gate).flat_map(|rows| by_piece(rows, &up));
                for rows in both {
                    for (w, out) in [(gate, &mut *first), (up, &mut *second)] {
                        out.resize(x.tokens * rows.len(), 0.0);
                        let mut columns = Columns::new(out, rows.len());
                        self.product((w, rows.clone()), x, panels, (&mut View::whole(&mut columns), 0), false);
                    }
                    let parts = first.chunks_exact(rows.len()).zip(second.chunks_exact(rows.len()));
                    for (token, (gate, up)) in parts.enumerate() {
                        self.silu_mul(gate, up, &mut view.row(token)[rows.start - begin..rows.end - begin]);
                    }
                }
            });
        });
    }

    /// `rest = x - q`, where `q` is what the bytes for `x` stand for; both of one length, a multiple of 32.
    fn quantising_leaves(self, x: &[f32], rest: &mut [f32]) {
        self.run(int::Leaves { x, rest });
    }

    /// Decodes row `row` of `w` to `out`.
    pub fn decode(self, w: Matrix<'_>, row: usize, out: &mut [f32]) {
        assert!(out.len() == w.cols, "one row");
        float::decode(self, w, row, out);
    }
}

/// The part of `range` that lies in `begin..begin + len`, counted from `begin`.
fn overlap(range: Range<usize>, begin: usize, len: usize) -> Range<usize> {
    let start = range.start.max(begin) - begin;
    let end = range.end.min(begin + len).saturating_sub(begin);
    start..end.max(start)
}

fn put(view: &mut View<'_>, at: usize, rows: usize, part: &[f32], add: bool) {
    for (token, from) in part.chunks_exact(rows).enumerate() {
        let to = &mut view.row(token)[at..at + rows];
        if add {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        } else {
            to.copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests;
