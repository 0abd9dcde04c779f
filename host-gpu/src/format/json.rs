//! JSON files beside the weights: read up to a bound, and mistakes in them told by their place.

use super::error::{FormatError, file_name};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The bytes of the small file `name` in `folder`; `None` if there is none.
pub(crate) fn read(folder: &Path, name: &str, most: u64) -> Result<Option<Vec<u8>>, FormatError> {
    let path = folder.join(name);
    let io =
        |e: std::io::Error| FormatError::Io { path: path.display().to_string(), reason: e.to_string().to_lowercase() };
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io)?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        let problem = format!("is longer than {most} bytes");
        return Err(FormatError::Corrupt { what: file_name(&path), offset: most, problem });
    }
    Ok(Some(bytes))
}

/// A mistake in JSON text that stands at byte `base` of its file.
pub(crate) fn unsound(what: &str, text: &[u8], base: u64, e: &serde_json::Error) -> FormatError {
    let lines = text.split_inclusive(|byte| *byte == b'\n').take(e.line().saturating_sub(1));
    let offset = base + lines.map(<[u8]>::len).sum::<usize>() as u64 + e.column().saturating_sub(1) as u64;
    FormatError::Corrupt { what: what.into(), offset, problem: e.to_string() }
}
