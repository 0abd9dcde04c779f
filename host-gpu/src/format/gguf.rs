//! GGUF, versions 2 and 3: metadata, and where each tensor lies in a memory-mapped file or in several.
//!
//! The file is hostile until proven otherwise: each length, count, offset and alignment is
//! checked against the bytes that are there before anything is allocated for it. Tensor data is
//! never touched here. What the metadata means is `model::config`'s business.

use super::cursor::Cursor;
use super::error::FormatError;
use super::mapped::Mapped;
use super::quant::{self, TypeRow};
use super::tensor::TensorInfo;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

mod shards;

/// Arrays may hold arrays; deeper than this is an attack on our stack.
const MAX_DEPTH: usize = 4;
/// The most dimensions a tensor may have in the format.
const MAX_DIMS: u32 = 4;
/// Where tensor data starts is rounded up to this unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    U64(u64),
    /// Any signed integer.
    I64(i64),
    /// Any float.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    Str(String),
    /// Text that repeats: byte ranges of the file, each checked to be UTF-8.
    Strings(Vec<Range<usize>>),
    /// Whole numbers, all in `i64`'s range.
    Ints(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// An array that holds arrays; checked and skipped, no model we know needs one.
    Nested,
}

/// What the header says.
#[derive(Debug)]
pub struct Header {
    /// Metadata by key.
    pub metadata: HashMap<String, Value>,
    /// Tensors by name.
    pub tensors: HashMap<String, TensorInfo>,
}

/// A model's mapped file, or all of its shards, and the header.
#[derive(Debug)]
pub struct Gguf {
    files: Arc<[Mapped]>,
    header: Header,
}

impl Gguf {
    /// Maps `path` and reads its header. Of a model in shards `path` may be any: all are mapped.
    ///
    /// # Errors
    /// Anything that is not a sound GGUF file, with the field and byte offset; shards that are missing or
    /// do not belong together, with the file.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let file = Mapped::open(path)?;
        let header = Header::parse(file.bytes())?;
        match shards::count(&header)? {
            0 | 1 => Ok(Self { files: [file].into(), header }),
            count => shards::open(path, count),
        }
    }

    /// The file that has the metadata, whole.
    pub fn bytes(&self) -> &[u8] {
        self.files[0].bytes()
    }

    /// All files; [`TensorInfo::file`] counts them.
    pub fn files(&self) -> &Arc<[Mapped]> {
        &self.files
    }

    /// What the header says; of a model in shards, with the tensors of all.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl Header {
    /// Reads and checks the header of a whole file.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(file: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(file);
        let magic = c.bytes("magic", 4)?;
        if magic != b"GGUF" {
            return Err(FormatError::NotGguf { found: magic.to_vec() });
        }
        let version = c.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(FormatError::Version { found: version });
        }
        // The smallest entries: a tensor has name length, dimension count, type and offset; a
        // metadata entry has key length, type and one byte.
        let tensor_count = c.count("tensor count", 8 + 4 + 4 + 8)?;
        let metadata_count = c.count("metadata count", 8 + 4 + 1)?;
        let metadata = read_metadata(&mut c, metadata_count)?;
        let tensors = read_tensors(&mut c, tensor_count, alignment(&metadata)?)?;
        Ok(Self { metadata, tensors })
    }

    /// The text at `key`.
    ///
    /// # Errors
    /// `Metadata` if it is there and no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Str(s)) => Ok(Some(s)),
            Some(_) => Err(wrong(key, "is not text")),
        }
    }

    /// The whole number at `key`, at most `max`.
    ///
    /// # Errors
    /// `Metadata` if it is there and no whole number between 0 and `max`.
    pub fn number(&self, key: &str, max: u64) -> Result<Option<u64>, FormatError> {
        let n = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::U64(n)) => *n,
            Some(Value::I64(n)) => u64::try_from(*n).map_err(|_| wrong(key, &format!("is {n}, a negative number")))?,
            Some(_) => return Err(wrong(key, "is not a whole number")),
        };
        if n > max {
            return Err(wrong(key, &format!("is {n}, more than {max}")));
        }
        Ok(Some(n))
    }

    /// The float at `key`.
    ///
    /// # Errors
    /// `Metadata` if it is there and no finite number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::F64(f)) if f.is_finite() => Ok(Some(*f)),
            Some(_) => Err(wrong(key, "is not a finite number")),
        }
    }

    /// The boolean at `key`.
    ///
    /// # Errors
    /// `Metadata` if it is there and no boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(wrong(key, "is not a boolean")),
        }
    }

    /// The texts at `key`, as ranges of the file.
    ///
    /// # Errors
    /// `Metadata` if it is there and no array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[Range<usize>]>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Strings(s)) => Ok(Some(s)),
            Some(_) => Err(wrong(key, "is not an array of texts")),
        }
    }

    /// The whole numbers at `key`.
    ///
    /// # Errors
    /// `Metadata` if it is there and no array of whole numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<&[i64]>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Ints(n)) => Ok(Some(n)),
            Some(_) => Err(wrong(key, "is not an array of whole numbers")),
        }
    }

    /// The floats at `key`.
    ///
    /// # Errors
    /// `Metadata` if it is there and no array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Floats(f)) => Ok(Some(f)),
            Some(_) => Err(wrong(key, "is not an array of floats")),
        }
    }
}

/// A `Metadata` error.
pub fn wrong(key: &str, problem: &str) -> FormatError {
    FormatError::Metadata { key: key.into(), problem: problem.into() }
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64, FormatError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U64(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(*n),
        Some(other) => Err(wrong("general.alignment", &format!("is {other:?}, not a power of two up to 1048576"))),
    }
}

fn read_metadata(c: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Value>, FormatError> {
    let mut metadata = HashMap::new();
    for _ in 0..count {
        let at = c.offset();
        let key = c.text("metadata key")?.to_owned();
        let kind = c.u32(&key)?;
        let value = read_value(c, &key, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(c.corrupt(&key, at, "the key appears twice"));
        }
    }
    Ok(metadata)
}

fn read_value(c: &mut Cursor<'_>, key: &str, kind: u32) -> Result<Value, FormatError> {
    Ok(match kind {
        0 => Value::U64(c.fixed::<1>(key)?[0].into()),
        1 => Value::I64(i8::from_le_bytes(c.fixed(key)?).into()),
        2 => Value::U64(u16::from_le_bytes(c.fixed(key)?).into()),
        3 => Value::I64(i16::from_le_bytes(c.fixed(key)?).into()),
        4 => Value::U64(u32::from_le_bytes(c.fixed(key)?).into()),
        5 => Value::I64(i32::from_le_bytes(c.fixed(key)?).into()),
        6 => Value::F64(f32::from_le_bytes(c.fixed(key)?).into()),
        7 => Value::Bool(c.bool(key)?),
        8 => Value::Str(c.text(key)?.to_owned()),
        9 => read_array(c, key, 0)?,
        10 => Value::U64(u64::from_le_bytes(c.fixed(key)?)),
        11 => Value::I64(i64::from_le_bytes(c.fixed(key)?)),
        12 => Value::F64(f64::from_le_bytes(c.fixed(key)?)),
        other => return Err(c.corrupt(key, c.offset() - 4, &format!("value type {other}"))),
    })
}

/// Bytes of one element of an array, for types of fixed size.
fn element_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn read_array(c: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Value, FormatError> {
    let at = c.offset();
    if depth >= MAX_DEPTH {
        return Err(c.corrupt(key, at, "arrays are nested too deep"));
    }
    let kind = c.u32(key)?;
    match kind {
        // Each text has at least its length, each array its element type and count.
        8 => {
            let count = c.count(key, 8)?;
            (0..count).map(|_| c.text_range(key)).collect::<Result<_, _>>().map(Value::Strings)
        }
        9 => {
            let count = c.count(key, 12)?;
            for _ in 0..count {
                read_array(c, key, depth + 1)?;
            }
            Ok(Value::Nested)
        }
        _ => {
            let Some(size) = element_bytes(kind) else {
                return Err(c.corrupt(key, at, &format!("element type {kind}")));
            };
            let count = c.count(key, size)?;
            // `count` checked that count * size bytes are there.
            let bytes = c.bytes(key, count * size)?;
            numbers(bytes, kind).ok_or_else(|| c.corrupt(key, at, "a number is beyond 63 bits"))
        }
    }
}

/// The numbers of a fixed-size array; `None` if one exceeds `i64`.
fn numbers(bytes: &[u8], kind: u32) -> Option<Value> {
    fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
    }
    Some(match kind {
        0 | 7 => Value::Ints(each(bytes, |b: [u8; 1]| b[0].into())),
        1 => Value::Ints(each(bytes, |b| i8::from_le_bytes(b).into())),
        2 => Value::Ints(each(bytes, |b| u16::from_le_bytes(b).into())),
        3 => Value::Ints(each(bytes, |b| i16::from_le_bytes(b).into())),
        4 => Value::Ints(each(bytes, |b| u32::from_le_bytes(b).into())),
        5 => Value::Ints(each(bytes, |b| i32::from_le_bytes(b).into())),
        6 => Value::Floats(each(bytes, f32::from_le_bytes)),
        10 => {
            let wide = each(bytes, u64::from_le_bytes);
            Value::Ints(wide.into_iter().map(i64::try_from).collect::<Result<_, _>>().ok()?)
        }
        11 => Value::Ints(each(bytes, i64::from_le_bytes)),
        _ => Value::Floats(each(bytes, |b| f64::from_le_bytes(b) as f32)),
    })
}

struct Described {
    name: String,
    at: u64,
    dims: Vec<u64>,
    row: &'static TypeRow,
    bytes: u64,
    offset: u64,
}

fn read_tensors(c: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<HashMap<String, TensorInfo>, FormatError> {
    let mut described = Vec::new();
    for _ in 0..count {
        described.push(read_tensor(c, alignment)?);
    }
    let data = c.offset().next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for t in described {
        let what = format!("tensor `{}`", t.name);
        let range = c.range(&what, data, t.offset, t.bytes)?;
        let info = TensorInfo { dims: t.dims, row: t.row, bytes: range, file: 0 };
        if tensors.insert(t.name, info).is_some() {
            return Err(c.corrupt(&what, t.at, "the name appears twice"));
        }
    }
    Ok(tensors)
}

fn read_tensor(c: &mut Cursor<'_>, alignment: u64) -> Result<Described, FormatError> {
    let at = c.offset();
    let name = c.text("tensor name")?.to_owned();
    let what = format!("tensor `{name}`");
    let dim_count = c.u32(&what)?;
    if !(1..=MAX_DIMS).contains(&dim_count) {
        return Err(c.corrupt(&what, at, &format!("{dim_count} dimensions, 1 to 4 are possible")));
    }
    let mut dims = Vec::new();
    for _ in 0..dim_count {
        dims.push(c.u64(&what)?);
    }
    let code = c.u32(&what)?;
    let offset = c.u64(&what)?;
    let row = quant::find(code).ok_or_else(|| FormatError::Unsupported {
        what: format!("{what} at byte {at}: element type {code}"),
        supported: quant::TYPES.iter().map(|t| t.name).collect::<Vec<_>>().join(", "),
    })?;
    let bytes = tensor_bytes(&dims, row).map_err(|problem| c.corrupt(&what, at, problem))?;
    if !offset.is_multiple_of(alignment) {
        return Err(c.corrupt(&what, at, &format!("offset {offset} is not aligned to {alignment}")));
    }
    Ok(Described { name, at, dims, row, bytes, offset })
}

/// How many bytes `dims` of `row` take.
fn tensor_bytes(dims: &[u64], row: &TypeRow) -> Result<u64, &'static str> {
    if dims.contains(&0) {
        return Err("a dimension is zero");
    }
    if !dims[0].is_multiple_of(row.weights as u64) {
        return Err("a row is no whole number of blocks");
    }
    let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let blocks = elements.ok_or("its dimensions overflow")? / row.weights as u64;
    blocks.checked_mul(row.bytes as u64).ok_or("its size overflows")
}

#[cfg(test)]
mod tests;
