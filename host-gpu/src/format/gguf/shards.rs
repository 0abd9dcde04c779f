//! One model in several GGUF files, `x-00001-of-00003.gguf` and so on, as llama.cpp splits them.
//!
//! The first has the metadata. Each says which it is, of how many, and how many tensors there are
//! in all: what does not fit together is refused before any weight is read.

use super::{Gguf, Header, wrong};
use crate::format::error::{FormatError, file_name};
use crate::format::mapped::Mapped;
use std::path::{Path, PathBuf};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// The format counts shards in 16 bits.
const MOST: u64 = u16::MAX as u64;

/// How many files the model is in; 0 and 1 are one.
pub(super) fn count(header: &Header) -> Result<u64, FormatError> {
    Ok(header.number(COUNT, MOST)?.unwrap_or(0))
}

/// Opens all `count` shards of the model that `path` is one of.
pub(super) fn open(path: &Path, count: u64) -> Result<Gguf, FormatError> {
    let (mut files, mut whole) = (Vec::new(), None::<Header>);
    for number in 0..count {
        let shard = sibling(path, number, count)?;
        let unsound = |e: FormatError| e.within(&shard);
        let file = Mapped::open(&shard).map_err(|e| Shard(&shard).refuse(format!("is missing: {e}")))?;
        let mut header = Header::parse(file.bytes()).map_err(unsound)?;
        check(&header, &shard, number, count)?;
        header.tensors.values_mut().for_each(|tensor| tensor.file = files.len());
        files.push(file);
        match &mut whole {
            None => whole = Some(header),
            Some(whole) => whole.add(header, &shard)?,
        }
    }
    let header = whole.ok_or_else(|| wrong(COUNT, "is zero"))?;
    let announced = header.number(TENSORS, u32::MAX.into())?.ok_or_else(|| wrong(TENSORS, "is missing"))?;
    if announced != header.tensors.len() as u64 {
        let problem = format!("announces {announced} tensors, and all shards together have {}", header.tensors.len());
        return Err(Shard(files[0].path()).refuse(problem));
    }
    Ok(Gguf { files: files.into(), header })
}

/// The path of shard `number` of the model that `path` is one of.
fn sibling(path: &Path, number: u64, count: u64) -> Result<PathBuf, FormatError> {
    let name = file_name(path);
    let base = name.strip_suffix(".gguf").and_then(|stem| stem.strip_suffix(&format!("-of-{count:05}")));
    let base = base.and_then(|base| base.rsplit_once('-')).filter(|(_, n)| n.len() == 5 && n.parse::<u32>().is_ok());
    let Some((base, _)) = base else {
        let problem =
            format!("is one of {count} files of a model, and not called so, as in x-00001-of-{count:05}.gguf");
        return Err(Shard(path).refuse(problem));
    };
    Ok(path.with_file_name(format!("{base}-{:05}-of-{count:05}.gguf", number + 1)))
}

fn check(header: &Header, shard: &Path, number: u64, count: u64) -> Result<(), FormatError> {
    let says = (header.number(NUMBER, MOST)?, header.number(COUNT, MOST)?);
    if says == (Some(number), Some(count)) {
        return Ok(());
    }
    let [no, of] = [says.0, says.1].map(|n| n.map_or("?".into(), |n| n.to_string()));
    Err(Shard(shard).refuse(format!("should be shard {number} of {count}, and says that it is {no} of {of}")))
}

struct Shard<'a>(&'a Path);

impl Shard<'_> {
    fn refuse(&self, problem: String) -> FormatError {
        FormatError::Shards { file: file_name(self.0), problem }
    }
}

impl Header {
    /// Takes the tensors of one more shard in.
    fn add(&mut self, other: Self, shard: &Path) -> Result<(), FormatError> {
        for (name, tensor) in other.tensors {
            let problem = format!("has tensor `{name}`, as another shard does");
            if self.tensors.insert(name, tensor).is_some() {
                return Err(Shard(shard).refuse(problem));
            }
        }
        Ok(())
    }
}
