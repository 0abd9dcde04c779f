//! The tensors of a model by their place in the equations. Matrices stay in the mapped files, unless
//! they are quantised as they are loaded.

use super::config::{Config, Factors};
use crate::format::FormatError;
use crate::format::huge::{HUGE, Part, Piece};
use crate::format::mapped::Mapped;
use crate::format::quant::{self, Quant};
use crate::format::quantize::Quantize;
use crate::format::tensor::TensorInfo;
use crate::ops::cpu::matmul::{CHUNK_ROWS, Matrix, can_weave};
use crate::ops::cpu::woven::{weave, weave_halves};
use crate::ops::cuda::upload::Raw;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

mod encoder;
mod quantized;

pub use encoder::Entry;

/// A matrix's place.
#[derive(Clone, Debug)]
pub struct MatrixAt {
    quant: Quant,
    rows: usize,
    cols: usize,
    place: Place,
    bytes: Range<usize>,
    /// See [`Matrix::copies`]; there once somebody makes them.
    pieces: Arc<OnceLock<Vec<Piece>>>,
}

/// What a matrix's bytes are in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// The model's file of this number.
    File(usize),
    /// The buffer of this number, which we made.
    Made(usize),
}

/// How a model's files call their tensors, and what they leave to the reader.
#[derive(Clone, Copy, Debug)]
pub struct Naming {
    /// The file's name of the tensor that llama.cpp calls so, as in `blk.0.attn_q.weight`.
    pub of: fn(&str) -> String,
    /// Whether a tensor that is not used would have been part of the equations.
    pub counts: fn(&str) -> bool,
    /// Whether the head is the embedding: it may be, must be or must not be.
    pub tied: Option<bool>,
    /// Added to the weights of norms.
    pub norm_offset: f32,
}

/// GGUF files have the names by which we call tensors.
pub const GGUF: Naming = Naming {
    of: str::to_owned,
    counts: |name| name.starts_with("blk.") || name.starts_with("output"),
    tied: None,
    norm_offset: 0.0,
};

impl MatrixAt {
    /// Whether both are one place.
    fn is(&self, other: &Self) -> bool {
        (self.place, &self.bytes) == (other.place, &other.bytes)
    }

    /// Some of its rows.
    fn slice(&self, rows: Range<usize>) -> Self {
        let row = self.bytes.len() / self.rows;
        let bytes = self.bytes.start + rows.start * row..self.bytes.start + rows.end * row;
        Self { rows: rows.len(), bytes, pieces: Arc::default(), ..self.clone() }
    }
}

/// One layer's tensors.
#[derive(Debug)]
pub struct Layer {
    /// (width); an encoder has none before its products
    pub attn_norm: Vec<f32>,
    /// (heads * head_dim, width)
    pub q: MatrixAt,
    /// (kv_heads * head_dim, width)
    pub k: MatrixAt,
    /// (kv_heads * head_dim, width)
    pub v: MatrixAt,
    /// ((heads + 2 * kv_heads) * head_dim)
    pub qkv_bias: Option<Vec<f32>>,
    /// (head_dim) of queries and of keys
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// (width, heads * head_dim)
    pub o: Out,
    /// (width)
    pub ff_norm: Vec<f32>,
    /// (ff, width); an encoder has none
    pub gate: Option<MatrixAt>,
    /// (ff, width)
    pub up: MatrixAt,
    /// (ff)
    pub up_bias: Option<Vec<f32>>,
    /// (width, ff)
    pub down: Out,
}

/// What brings a result back to the residual stream: `x += norm(w y + bias)`, in an encoder `x = norm(x + w y + bias)`.
#[derive(Debug)]
pub struct Out {
    /// (width, length of the result)
    pub w: MatrixAt,
    /// (width)
    pub bias: Option<Vec<f32>>,
    /// (width)
    pub norm: Option<Vec<f32>>,
    /// (width)
    pub norm_bias: Option<Vec<f32>>,
}

/// All tensors of a model.
#[derive(Debug)]
pub struct Weights {
    files: Arc<[Mapped]>,
    /// Whether somebody copies the files' tensors to huge pages, or has.
    copied: AtomicBool,
    /// Whether they have, as far as they can.
    settled: Arc<AtomicBool>,
    made: Vec<Vec<u8>>,
    /// (vocab, width)
    pub embedding: MatrixAt,
    /// What an encoder has beside it where a text enters.
    pub entry: Option<Entry>,
    /// In order.
    pub layers: Vec<Layer>,
    /// (width)
    pub final_norm: Vec<f32>,
    /// (vocab, width); often the embedding again
    pub head: MatrixAt,
    /// (rope_dims / 2): divides the frequencies of `Config::rope`
    pub rope_factors: Option<Vec<f32>>,
    /// Whether the head is to get finer activations than the layers: nothing comes after it to even out errors. They
    /// cost the head's products twice, so only where the head is a small part of the model.
    pub fine_head: bool,
}

/// A head of at most this share of a model's weights is a small one.
const SMALL_HEAD: f64 = 0.3;

impl Weights {
    /// Finds every tensor and checks its shape and type.
    ///
    /// # Errors
    /// Names the tensor that is missing, of the wrong shape, or of a type we cannot compute with.
    pub fn find(
        files: Arc<[Mapped]>,
        tensors: &HashMap<String, TensorInfo>,
        naming: &Naming,
        c: &Config,
    ) -> Result<Self, FormatError> {
        let f = Finder { files: &files, tensors, naming, used: RefCell::default() };
        let layer = |n| if c.architecture.encoder { f.encoder_layer(c, n) } else { f.layer(c, n) };
        let layers = (0..c.layers).map(layer).collect::<Result<_, FormatError>>()?;
        let entry = c.architecture.encoder.then(|| f.entry(c)).transpose()?;
        let embedding = f.matrix("token_embd.weight", c.vocab, c.width)?;
        let head = match naming.tied.unwrap_or(!f.has("output.weight")) {
            true => embedding.clone(),
            false => f.matrix("output.weight", c.vocab, c.width)?,
        };
        let final_norm = match entry {
            None => f.norm("output_norm.weight", c.width)?,
            Some(_) => Vec::new(),
        };
        let rope_factors = match &c.rope.factors {
            None => None,
            Some(Factors::Tensor(name)) => Some(f.divisors(name, c.rope_dims / 2)?),
            Some(Factors::Given(factors)) => Some(factors.clone()),
        };
        f.refuse_unused()?;
        let (copied, settled) = (AtomicBool::new(false), Arc::default());
        let (made, fine_head) = (Vec::new(), false);
        let mut all =
            Self { embedding, entry, layers, final_norm, head, rope_factors, fine_head, files, copied, settled, made };
        let size = |at: &MatrixAt| (at.rows * at.cols) as f64;
        let layers: f64 = all.matrices().into_iter().filter(|(_, end)| !end).map(|(at, _)| size(at)).sum();
        all.fine_head = size(&all.head) <= SMALL_HEAD * (layers + size(&all.head));
        Ok(all)
    }

    /// The matrix at `at`.
    pub fn matrix<'a>(&'a self, at: &'a MatrixAt) -> Matrix<'a> {
        let bytes = match at.place {
            Place::File(n) => &self.files[n].bytes()[at.bytes.clone()],
            Place::Made(n) => &self.made[n][at.bytes.clone()],
        };
        let copies = at.pieces.get().map_or(&[][..], Vec::as_slice);
        Matrix { quant: at.quant, rows: at.rows, cols: at.cols, bytes, copies }
    }

    /// The bytes of the matrix at `at`, and where in a file they lie, if they do.
    pub(crate) fn raw<'a>(&'a self, at: &'a MatrixAt) -> Raw<'a> {
        let bytes = self.matrix(at).bytes;
        match at.place {
            Place::File(n) => Raw { bytes, file: Some((&self.files[n], at.bytes.start)) },
            Place::Made(_) => Raw { bytes, file: None },
        }
    }

    /// Copies matrices from files to huge pages, woven where that can be, on a thread that nobody waits for. Until a part is done, and if there is no memory for it, it is read where it is.
    pub(crate) fn move_to_huge_pages(&self) {
        if self.copied.swap(true, Ordering::Relaxed) {
            return;
        }
        let (files, moves, settled) = (self.files.clone(), self.moves(), Arc::downgrade(&self.settled));
        let copy = move || {
            for Move { file, part, rows } in &moves {
                // The model has gone meanwhile: its memory is another's.
                if settled.strong_count() == 0 {
                    return;
                }
                let ranges: Vec<Range<usize>> = rows.iter().map(|rows| rows.range.clone()).collect();
                let copy = |n: usize, from: &[u8], to: &mut [u8]| match rows[n].to {
                    Layout::Woven => weave(rows[n].quant, rows[n].row_bytes, from, to),
                    Layout::Halved => weave_halves(rows[n].row_bytes, from, to),
                    Layout::Same => to.copy_from_slice(from),
                };
                if let Err(error) = part.copy(&files[*file], &ranges, copy) {
                    tracing::warn!(%error, "weights stay in small pages");
                    break;
                }
            }
            moves.iter().for_each(|Move { file, part, .. }| part.let_go(&files[*file]));
            settled.upgrade().iter().for_each(|settled| settled.store(true, Ordering::Relaxed));
        };
        if let Err(error) = std::thread::Builder::new().name("hob-huge-pages".into()).spawn(copy) {
            tracing::warn!(%error, "weights stay in small pages");
            self.settled.store(true, Ordering::Relaxed);
        }
    }

    /// Whether [`Self::move_to_huge_pages`] has done what it could.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// What there is to copy, in the order of the files; matrices know their pieces from now on.
    fn moves(&self) -> Vec<Move> {
        let mut all: Vec<(usize, &MatrixAt)> = Vec::new();
        for (at, _) in self.matrices() {
            if let Place::File(file) = at.place {
                all.push((file, at));
            }
        }
        all.sort_by_key(|(file, at)| (*file, at.bytes.start));
        let mut moves: Vec<Move> = Vec::new();
        // Of each matrix, which move its pieces are in, and their place there.
        let mut places: Vec<Vec<(usize, usize)>> = Vec::new();
        for (file, at) in &all {
            let row_bytes = at.bytes.len() / at.rows;
            let (mut places_of, mut first) = (Vec::new(), 0);
            while first < at.rows {
                let begin = at.bytes.start + first * row_bytes;
                let fit = match moves.last().map_or(0, |last| last.room(*file, begin)) / row_bytes / CHUNK_ROWS {
                    0 => {
                        moves.push(Move { file: *file, part: Part::new(begin..begin), rows: Vec::new() });
                        (PART_BYTES / row_bytes / CHUNK_ROWS).max(1)
                    }
                    chunks => chunks,
                };
                let rows = first..at.rows.min(first + fit * CHUNK_ROWS);
                let range = begin..begin + rows.len() * row_bytes;
                let n = moves.len() - 1;
                places_of.push((n, moves[n].rows.len()));
                first = rows.end;
                let to = match can_weave(at.quant, at.rows) {
                    true if at.quant == Quant::Q8_0 && at.is(&self.head) => Layout::Halved,
                    true => Layout::Woven,
                    false => Layout::Same,
                };
                moves[n].rows.push(MovedRows { quant: at.quant, to, row_bytes, range, rows });
            }
            places.push(places_of);
        }
        for Move { part, rows, .. } in &mut moves {
            *part = Part::new(rows[0].range.start..rows[rows.len() - 1].range.end);
        }
        for ((_, at), places) in all.iter().zip(places) {
            let piece = |(n, i): (usize, usize)| {
                let MovedRows { range, rows, to, .. } = &moves[n].rows[i];
                let piece = Piece::new(moves[n].part.clone(), range.clone(), rows.clone());
                if *to == Layout::Halved { piece.in_halves() } else { piece }
            };
            let _ = at.pieces.set(places.into_iter().map(piece).collect());
        }
        moves
    }

    /// Whether there is one matrix for both ends.
    pub fn head_is_embedding(&self) -> bool {
        self.head.is(&self.embedding)
    }

    /// Bytes of all matrices and vectors, in files or in memory.
    pub fn bytes(&self) -> u64 {
        let matrices: usize = self.matrices().iter().map(|(at, _)| at.bytes.len()).sum();
        let floats = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, Vec::len);
        let out = |out: &Out| floats(&out.bias) + floats(&out.norm) + floats(&out.norm_bias);
        let layer = |l: &Layer| {
            let heads = l.head_norms.as_ref().map_or(0, |norms| norms[0].len() + norms[1].len());
            let biases = floats(&l.qkv_bias) + floats(&l.up_bias);
            l.attn_norm.len() + biases + heads + out(&l.o) + l.ff_norm.len() + out(&l.down)
        };
        let ends = self.final_norm.len() + floats(&self.rope_factors) + self.entry.as_ref().map_or(0, Entry::len);
        let vectors = ends + self.layers.iter().map(layer).sum::<usize>();
        (matrices + vectors * size_of::<f32>()) as u64
    }

    /// What [`Self::bytes`] will be once matrices of floats were quantised.
    pub fn bytes_as(&self, to: Option<Quantize>) -> u64 {
        let change = |(at, ends): (&MatrixAt, bool)| size_as(at, ends, to) as i64 - at.bytes.len() as i64;
        self.bytes().saturating_add_signed(self.matrices().into_iter().map(change).sum())
    }

    /// The same for some layers, with the embedding if the first is among them, and the head if the last is. Vectors are few, and
    /// counted as if all were there.
    pub fn part_bytes(&self, layers: Range<usize>, to: Option<Quantize>) -> u64 {
        let matrices = |l: &Layer| {
            let all = [Some(&l.q), Some(&l.k), Some(&l.v), Some(&l.o.w), l.gate.as_ref(), Some(&l.up), Some(&l.down.w)];
            all.into_iter().flatten().map(|at| size_as(at, false, to)).sum::<u64>()
        };
        let (begins, ends) = (layers.start == 0, layers.end == self.layers.len());
        let head = ends && !(begins && self.head_is_embedding());
        let ends = [begins.then_some(&self.embedding), head.then_some(&self.head)];
        let ends: u64 = ends.into_iter().flatten().map(|at| size_as(at, true, to)).sum();
        let all: u64 = self.matrices().iter().map(|(at, _)| at.bytes.len() as u64).sum();
        self.layers[layers].iter().map(matrices).sum::<u64>() + ends + self.bytes().saturating_sub(all)
    }

    /// The type that most matrices have: one large embedding does not name a model.
    pub fn main_type(&self) -> &'static str {
        let names: Vec<_> = self.matrices().iter().map(|(at, _)| at.quant.row().name).collect();
        let count = |name: &str| names.iter().filter(|other| **other == name).count();
        names.iter().copied().max_by_key(|name| (count(name), *name)).unwrap_or("F32")
    }

    /// All matrices but a head that is the embedding; of each, whether it is an end of the model.
    fn matrices<'a>(&'a self) -> Vec<(&'a MatrixAt, bool)> {
        let of = |l: &'a Layer| {
            [Some(&l.q), Some(&l.k), Some(&l.v), Some(&l.o.w), l.gate.as_ref(), Some(&l.up), Some(&l.down.w)]
        };
        let inner = self.layers.iter().flat_map(of).flatten();
        let head = Some(&self.head).filter(|head| !head.is(&self.embedding));
        inner.map(|at| (at, false)).chain([&self.embedding].into_iter().chain(head).map(|at| (at, true))).collect()
    }
}

/// What a matrix takes once floats were quantised; `ends` if it is one of the model's ends.
fn size_as(at: &MatrixAt, ends: bool, to: Option<Quantize>) -> u64 {
    match to.filter(|_| is_float(at.quant)) {
        None => at.bytes.len() as u64,
        Some(to) => {
            let row = to.of(ends).row();
            (at.rows * at.cols / row.weights * row.bytes) as u64
        }
    }
}

fn is_float(quant: Quant) -> bool {
    matches!(quant, Quant::F32 | Quant::F16 | Quant::Bf16)
}

/// Neighbouring rows of matrices that are copied together.
struct Move {
    file: usize,
    part: Arc<Part>,
    rows: Vec<MovedRows>,
}

/// What becomes of rows as they are copied.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Same,
    /// See [`weave`].
    Woven,
    /// See [`weave_halves`]: of a head, mostly a few products are wanted.
    Halved,
}

/// Rows of a matrix.
struct MovedRows {
    quant: Quant,
    to: Layout,
    row_bytes: usize,
    /// Their bytes in the file.
    range: Range<usize>,
    rows: Range<usize>,
}

/// So many bytes are copied at a time, at most, but for the widest matrices: that much is there twice. Parts are filled
/// well, since the last huge page of each is whole.
const PART_BYTES: usize = 4 * HUGE;

impl Move {
    /// Bytes that can still go with the others from byte `begin` of `file` on.
    fn room(&self, file: usize, begin: usize) -> usize {
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else { return 0 };
        // What lies between is in memory, too.
        let near = self.file == file && begin >= last.range.end && begin - last.range.end < HUGE / 8;
        if near { PART_BYTES.saturating_sub(begin - first.range.start) } else { 0 }
    }
}

struct Finder<'a> {
    files: &'a [Mapped],
    tensors: &'a HashMap<String, TensorInfo>,
    naming: &'a Naming,
    used: RefCell<HashSet<String>>,
}

impl Finder<'_> {
    fn layer(&self, c: &Config, n: usize) -> Result<Layer, FormatError> {
        let a = c.architecture;
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let all = q + 2 * kv;
        let [q_at, k_at, v_at] = if a.fused {
            let qkv = self.matrix(&name("attn_qkv"), all, c.width)?;
            [0..q, q..q + kv, q + kv..all].map(|rows| qkv.slice(rows))
        } else {
            let part = |part: &str, rows| self.matrix(&name(part), rows, c.width);
            [part("attn_q", q)?, part("attn_k", kv)?, part("attn_v", kv)?]
        };
        let [gate, up] = if a.fused {
            let both = self.matrix(&name("ffn_up"), 2 * c.ff, c.width)?;
            [0..c.ff, c.ff..2 * c.ff].map(|rows| both.slice(rows))
        } else {
            [self.matrix(&name("ffn_gate"), c.ff, c.width)?, self.matrix(&name("ffn_up"), c.ff, c.width)?]
        };
        let out = |part: &str, cols, norm: &str| -> Result<Out, FormatError> {
            let w = self.matrix(&name(part), c.width, cols)?;
            let bias = self.optional(&format!("blk.{n}.{part}.bias"), c.width)?;
            let norm = a.post_norms.then(|| self.norm(&name(norm), c.width)).transpose()?;
            Ok(Out { w, bias, norm, norm_bias: None })
        };
        let head_norm = |part: &str| self.norm(&name(part), c.head_dim);
        Ok(Layer {
            attn_norm: self.norm(&name("attn_norm"), c.width)?,
            q: q_at,
            k: k_at,
            v: v_at,
            qkv_bias: match a.fused {
                true => self.optional(&format!("blk.{n}.attn_qkv.bias"), all)?,
                false => self.joined(n, &[("attn_q", q), ("attn_k", kv), ("attn_v", kv)])?,
            },
            head_norms: match a.head_norms {
                true => Some([head_norm("attn_q_norm")?, head_norm("attn_k_norm")?]),
                false => None,
            },
            o: out("attn_output", q, "post_attention_norm")?,
            ff_norm: self.norm(&name("ffn_norm"), c.width)?,
            gate: Some(gate),
            up,
            up_bias: None,
            down: out("ffn_down", c.ff, "post_ffw_norm")?,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&(self.naming.of)(name))
    }

    fn optional(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, FormatError> {
        self.has(name).then(|| self.vector(name, len)).transpose()
    }

    /// The biases of `parts` side by side, zero where there is none; `None` if there is none at all.
    fn joined(&self, n: usize, parts: &[(&str, usize)]) -> Result<Option<Vec<f32>>, FormatError> {
        let (mut all, mut any) = (Vec::new(), false);
        for (part, len) in parts {
            let bias = self.optional(&format!("blk.{n}.{part}.bias"), *len)?;
            any |= bias.is_some();
            all.extend(bias.unwrap_or_else(|| vec![0.0; *len]));
        }
        Ok(any.then_some(all))
    }

    fn divisors(&self, name: &str, len: usize) -> Result<Vec<f32>, FormatError> {
        let factors = self.vector(name, len)?;
        match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
            Some(bad) => {
                let (what, offset) = (format!("tensor `{name}`"), self.find(name, &[len])?.bytes.start as u64);
                Err(FormatError::Corrupt { what, offset, problem: format!("{bad} cannot divide a frequency") })
            }
            None => Ok(factors),
        }
    }

    /// A bias or norm that we do not apply would make a model that runs and is wrong.
    fn refuse_unused(&self) -> Result<(), FormatError> {
        let used = self.used.borrow();
        let names = self.tensors.keys().filter(|name| (self.naming.counts)(name));
        match names.filter(|name| !used.contains(*name)).min() {
            Some(name) => Err(FormatError::Unsupported {
                what: format!("tensor `{name}` in this architecture"),
                supported: "the tensors that models of it usually have".into(),
            }),
            None => Ok(()),
        }
    }

    fn find(&self, name: &str, dims: &[usize]) -> Result<&TensorInfo, FormatError> {
        let name = &(self.naming.of)(name);
        let corrupt = |offset, problem| FormatError::Corrupt { what: format!("tensor `{name}`"), offset, problem };
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| corrupt(0, "it is missing".into()))?;
        if !tensor.dims.iter().copied().eq(dims.iter().map(|d| *d as u64)) {
            let problem = format!("its shape is {:?}, the metadata says {dims:?}", tensor.dims);
            return Err(corrupt(tensor.bytes.start as u64, problem));
        }
        self.used.borrow_mut().insert(name.clone());
        Ok(tensor)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixAt, FormatError> {
        let tensor = self.find(name, &[cols, rows])?;
        let quant = tensor.row.quant.ok_or_else(|| self.unsupported(name, tensor, &computable()))?;
        let whole = quant.row().weights.max(32); // kernels take floats in groups of 32, too
        if !cols.is_multiple_of(whole) {
            return Err(FormatError::Unsupported {
                what: format!("tensor `{}` with rows of {cols}", (self.naming.of)(name)),
                supported: format!("multiples of {whole}"),
            });
        }
        let (place, bytes, pieces) = (Place::File(tensor.file), tensor.bytes.clone(), Arc::default());
        Ok(MatrixAt { quant, rows, cols, place, bytes, pieces })
    }

    /// The weights of a norm.
    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, FormatError> {
        let mut weights = self.vector(name, len)?;
        weights.iter_mut().for_each(|w| *w += self.naming.norm_offset);
        Ok(weights)
    }

    /// A norm's weights or a bias: small, and always floats.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, FormatError> {
        self.floats(name, &[len])
    }

    fn floats(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, FormatError> {
        let tensor = self.find(name, dims)?;
        let bytes = &self.files[tensor.file].bytes()[tensor.bytes.clone()];
        let halves = |convert: fn([u8; 2]) -> f32| bytes.as_chunks().0.iter().map(|b| convert(*b)).collect();
        match tensor.row.quant {
            Some(Quant::F32) => Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Some(Quant::F16) => Ok(halves(|b| half::f16::from_le_bytes(b).to_f32())),
            Some(Quant::Bf16) => Ok(halves(|b| half::bf16::from_le_bytes(b).to_f32())),
            _ => Err(self.unsupported(name, tensor, "F32, F16, BF16")),
        }
    }

    fn unsupported(&self, name: &str, tensor: &TensorInfo, supported: &str) -> FormatError {
        let what = format!("tensor `{}` of type {}", (self.naming.of)(name), tensor.row.name);
        FormatError::Unsupported { what, supported: supported.into() }
    }
}

fn computable() -> String {
    let names = quant::TYPES.iter().filter(|t| t.quant.is_some()).map(|t| t.name);
    names.collect::<Vec<_>>().join(", ")
}
