//! Safetensors: a JSON header that says where each tensor lies, then the tensors.
//!
//! The header is hostile: its length is checked against the file before it is parsed, parsing keeps
//! nothing that is larger than its text, and every range must lie in the file. As the format demands, the
//! tensors fill what follows the header without gaps, so no two can share bytes. The crate of the
//! same name checks the same, but not with what our refusals say: which tensor, at which byte.

use super::cursor::Cursor;
use super::error::FormatError;
use super::json;
use super::mapped::Mapped;
use super::quant::{Quant, TypeRow};
use super::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format's own limit on its header.
const MAX_HEADER: u64 = 100_000_000;
/// No index names so many tensors.
const MAX_INDEX: u64 = 64 << 20;
/// A checkpoint in one file, and the list of files of one in several.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Element types that have a size and a name, and no meaning here.
const fn other(name: &'static str, bytes: usize) -> TypeRow {
    TypeRow { code: u32::MAX, name, weights: 1, bytes, quant: None }
}

static OTHERS: &[TypeRow] = &[
    other("F64", 8),
    other("I64", 8),
    other("U64", 8),
    other("I32", 4),
    other("U32", 4),
    other("I16", 2),
    other("U16", 2),
    other("I8", 1),
    other("U8", 1),
    other("BOOL", 1),
    other("F8_E4M3", 1),
    other("F8_E5M2", 1),
];

/// A checkpoint's mapped files, and the tensors in them.
#[derive(Debug)]
pub struct Safetensors {
    /// All files; [`TensorInfo::file`] counts them.
    pub files: Arc<[Mapped]>,
    /// Tensors by name.
    pub tensors: HashMap<String, TensorInfo>,
}

impl Safetensors {
    /// Maps the files of the checkpoint in `folder` and reads their headers.
    ///
    /// # Errors
    /// Anything that is not sound, with the tensor and byte offset; files that are missing or are not what the
    /// index says.
    pub fn open(folder: &Path) -> Result<Self, FormatError> {
        let single = folder.join(SINGLE);
        if single.exists() {
            let (file, tensors) = open_file(&single, 0)?;
            return Ok(Self { files: [file].into(), tensors });
        }
        match json::read(folder, INDEX, MAX_INDEX)? {
            Some(index) => Self::open_shards(folder, &parse_index(&index)?),
            None => Err(FormatError::Io {
                path: single.display().to_string(),
                reason: format!("there is neither this file nor {INDEX}"),
            }),
        }
    }

    fn open_shards(folder: &Path, index: &HashMap<String, String>) -> Result<Self, FormatError> {
        let mut names: Vec<&str> = index.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let (mut files, mut all) = (Vec::new(), HashMap::new());
        for name in &names {
            let refuse = |problem: String| FormatError::Shards { file: (*name).into(), problem };
            let path = sibling(folder, name)?;
            if !path.exists() {
                return Err(refuse(format!("is missing, and {INDEX} names it")));
            }
            let (file, tensors) = open_file(&path, files.len())?;
            files.push(file);
            for (tensor, info) in tensors {
                if index.get(&tensor).map(String::as_str) != Some(name) {
                    return Err(refuse(format!("has tensor `{tensor}`, and {INDEX} does not say so")));
                }
                all.insert(tensor, info);
            }
        }
        match index.iter().filter(|(tensor, _)| !all.contains_key(*tensor)).min() {
            Some((tensor, file)) => {
                let problem = format!("has no tensor `{tensor}`, and {INDEX} says so");
                Err(FormatError::Shards { file: file.clone(), problem })
            }
            None => Ok(Self { files: files.into(), tensors: all }),
        }
    }
}

/// A file of the index, which may name none outside the folder.
fn sibling(folder: &Path, name: &str) -> Result<PathBuf, FormatError> {
    let plain = !name.contains(['/', '\\', '\0']) && name.ends_with(".safetensors");
    if plain {
        return Ok(folder.join(name));
    }
    let problem = format!("names the file {name:?}, which is no name of a .safetensors file");
    Err(FormatError::Setting { file: INDEX, key: "weight_map".into(), problem })
}

fn open_file(path: &Path, number: usize) -> Result<(Mapped, HashMap<String, TensorInfo>), FormatError> {
    let file = Mapped::open(path)?;
    let mut tensors = parse(file.bytes()).map_err(|e| e.within(path))?;
    tensors.values_mut().for_each(|tensor| tensor.file = number);
    Ok((file, tensors))
}

/// Reads and checks the header of a whole file.
///
/// # Errors
/// As [`Safetensors::open`].
pub fn parse(file: &[u8]) -> Result<HashMap<String, TensorInfo>, FormatError> {
    let mut c = Cursor::new(file);
    let len = c.u64("header length")?;
    if len > MAX_HEADER {
        return Err(c.corrupt("header length", 0, &format!("is {len}, more than {MAX_HEADER}")));
    }
    let at = c.offset();
    let header = c.bytes("header", len)?;
    let entries: Unique<Entry> = serde_json::from_slice(header).map_err(|e| json::unsound("header", header, at, &e))?;
    let data = c.offset();
    let mut tensors = HashMap::with_capacity(entries.0.len());
    for (name, entry) in entries.0 {
        let info = entry.check(&c, &name, data)?;
        tensors.insert(name, info);
    }
    no_gaps(&tensors, data as usize, file.len())?;
    Ok(tensors)
}

/// Reads an index: the file of each tensor.
///
/// # Errors
/// `Corrupt` with the byte offset, `Setting` if there is no map.
pub fn parse_index(text: &[u8]) -> Result<HashMap<String, String>, FormatError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Option<Unique<String>>,
    }
    let index: Index = serde_json::from_slice(text).map_err(|e| json::unsound(INDEX, text, 0, &e))?;
    let missing = || FormatError::Setting { file: INDEX, key: "weight_map".into(), problem: "is missing".into() };
    Ok(index.weight_map.ok_or_else(missing)?.0)
}

/// The tensors must fill the bytes from `data` to `end`.
fn no_gaps(tensors: &HashMap<String, TensorInfo>, data: usize, end: usize) -> Result<(), FormatError> {
    let mut sorted: Vec<_> =
        tensors.iter().map(|(name, tensor)| (tensor.bytes.start, tensor.bytes.end, name)).collect();
    sorted.sort_unstable();
    let mut filled = data;
    for (start, stop, name) in sorted {
        if start != filled {
            let problem = format!("it does not start at {filled}, where the one before it ends");
            return Err(FormatError::Corrupt { what: format!("tensor `{name}`"), offset: start as u64, problem });
        }
        filled = stop;
    }
    if filled != end {
        let problem = format!("{} bytes belong to no tensor", end - filled);
        return Err(FormatError::Corrupt { what: "the end of the tensors".into(), offset: filled as u64, problem });
    }
    Ok(())
}

/// What the header says of a tensor.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    /// Slowest first.
    shape: Vec<u64>,
    /// From the end of the header.
    data_offsets: [u64; 2],
}

impl Entry {
    fn check(self, c: &Cursor<'_>, name: &str, data: u64) -> Result<TensorInfo, FormatError> {
        let what = format!("tensor `{name}`");
        let [from, to] = self.data_offsets;
        let offset = data.saturating_add(from);
        let row = find(&self.dtype).ok_or_else(|| FormatError::Unsupported {
            what: format!("{what} of type {:?}", self.dtype.chars().take(20).collect::<String>()),
            supported: "F32, F16, BF16".into(),
        })?;
        let elements = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let size = elements.and_then(|n| n.checked_mul(row.bytes as u64));
        let size = size.ok_or_else(|| c.corrupt(&what, offset, "its shape overflows"))?;
        if to.checked_sub(from) != Some(size) {
            let problem = format!("its offsets are {from} and {to}, and its shape and type need {size} bytes");
            return Err(c.corrupt(&what, offset, &problem));
        }
        let bytes = c.range(&what, data, from, size)?;
        Ok(TensorInfo { dims: self.shape.into_iter().rev().collect(), row, bytes, file: 0 })
    }
}

fn find(dtype: &str) -> Option<&'static TypeRow> {
    match dtype {
        "F32" => Some(Quant::F32.row()),
        "F16" => Some(Quant::F16.row()),
        "BF16" => Some(Quant::Bf16.row()),
        _ => OTHERS.iter().find(|row| row.name == dtype),
    }
}

/// A JSON object in which no name appears twice, without `__metadata__`.
struct Unique<T>(HashMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match all.entry(name) {
                        Slot::Vacant(slot) => {
                            slot.insert(map.next_value()?);
                        }
                        Slot::Occupied(slot) => {
                            return Err(A::Error::custom(format_args!("the name `{}` appears twice", slot.key())));
                        }
                    }
                }
                Ok(Unique(all))
            }
        }
        deserializer.deserialize_map(Names(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests;
