//! A position in a file of untrusted bytes; every read says what it was for when it fails.

use super::error::FormatError;
use std::ops::Range;

pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    pub(super) fn corrupt(&self, what: &str, offset: u64, problem: &str) -> FormatError {
        FormatError::Corrupt { what: what.into(), offset, problem: problem.into() }
    }

    fn truncated(&self, what: &str, offset: u64, needed: u64) -> FormatError {
        FormatError::Truncated { what: what.into(), offset, needed, len: self.file.len() as u64 }
    }

    pub(super) fn bytes(&mut self, what: &str, len: u64) -> Result<&'a [u8], FormatError> {
        let left = self.file.len() - self.at;
        match usize::try_from(len) {
            Ok(n) if n <= left => {
                let bytes = &self.file[self.at..self.at + n];
                self.at += n;
                Ok(bytes)
            }
            _ => Err(self.truncated(what, self.offset(), len)),
        }
    }

    pub(super) fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let bytes = self.bytes(what, N as u64)?;
        Ok(bytes.try_into().expect("`bytes` gives exactly the length it was asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.fixed(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.fixed(what)?))
    }

    pub(super) fn bool(&mut self, what: &str) -> Result<bool, FormatError> {
        let at = self.offset();
        match self.fixed::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.corrupt(what, at, &format!("a boolean is {other}"))),
        }
    }

    /// A count of things that take at least `smallest` bytes each: refused if they cannot fit in
    /// what is left, so that a count never makes us allocate more than the file is long.
    pub(super) fn count(&mut self, what: &str, smallest: u64) -> Result<u64, FormatError> {
        let at = self.offset();
        let count = self.u64(what)?;
        let left = (self.file.len() - self.at) as u64;
        match count.checked_mul(smallest) {
            Some(needed) if needed <= left => Ok(count),
            needed => Err(self.truncated(what, at, needed.unwrap_or(u64::MAX))),
        }
    }

    pub(super) fn text_range(&mut self, what: &str) -> Result<Range<usize>, FormatError> {
        let len = self.u64(what)?;
        let at = self.at;
        let bytes = self.bytes(what, len)?;
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(at..self.at),
            Err(e) => Err(self.corrupt(what, (at + e.valid_up_to()) as u64, "not utf-8")),
        }
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, FormatError> {
        let range = self.text_range(what)?;
        Ok(std::str::from_utf8(&self.file[range]).expect("`text_range` checked it"))
    }

    /// `len` bytes at `base + offset`, if the file has them.
    pub(super) fn range(&self, what: &str, base: u64, offset: u64, len: u64) -> Result<Range<usize>, FormatError> {
        let start = base.checked_add(offset);
        let end = start.and_then(|s| s.checked_add(len));
        match (start, end) {
            (Some(s), Some(e)) if e <= self.file.len() as u64 => Ok(s as usize..e as usize),
            _ => Err(self.truncated(what, start.unwrap_or(u64::MAX), len)),
        }
    }
}
