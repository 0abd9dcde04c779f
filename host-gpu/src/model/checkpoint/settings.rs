//! The keys of a JSON file: each of one kind and in its bounds, or refused by name.

use crate::format::FormatError;
use serde_json::Value;

/// A JSON object and the file it is in.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    file: &'static str,
    value: &'a Value,
}

impl<'a> Settings<'a> {
    pub(super) fn new(file: &'static str, value: &'a Value) -> Self {
        Self { file, value }
    }

    /// The object at `key`, for keys inside of it.
    ///
    /// # Errors
    /// `Setting` if it is there and no object.
    pub(super) fn inner(self, key: &str) -> Result<Option<Self>, FormatError> {
        match self.value(key) {
            Some(value) if value.is_object() => Ok(Some(Self { value, ..self })),
            Some(_) => Err(self.wrong(key, "is no object".into())),
            None => Ok(None),
        }
    }

    pub(super) fn wrong(self, key: &str, problem: String) -> FormatError {
        FormatError::Setting { file: self.file, key: key.into(), problem }
    }

    /// Whether `key` is there, be it null.
    pub(super) fn has(self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// What is at `key`; null is nothing.
    pub(super) fn value(self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// The whole number at `key`, at most `max`.
    pub(super) fn number(self, key: &str, max: u64) -> Result<Option<u64>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n <= max => Ok(Some(n)),
            _ => Err(self.wrong(key, format!("is no whole number up to {max}"))),
        }
    }

    /// The whole number at `key`, which must be there and 1 or more.
    pub(super) fn need(self, key: &str, max: u64) -> Result<usize, FormatError> {
        match self.number(key, max)? {
            Some(0) => Err(self.wrong(key, "is zero".into())),
            Some(n) => Ok(n as usize),
            None => Err(self.wrong(key, "is missing".into())),
        }
    }

    /// The number at `key`.
    pub(super) fn float(self, key: &str) -> Result<Option<f64>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| n.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, "is no number".into()))
    }

    /// The number at `key`, which must be there.
    pub(super) fn need_float(self, key: &str) -> Result<f64, FormatError> {
        self.float(key)?.ok_or_else(|| self.wrong(key, "is missing".into()))
    }

    /// The numbers at `key`: exactly `len`, or none if the key is not there.
    pub(super) fn floats(self, key: &str, len: usize) -> Result<Option<Vec<f32>>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let numbers = value.as_array().filter(|numbers| numbers.len() == len);
        let numbers = numbers.and_then(|list| list.iter().map(|n| n.as_f64().map(|n| n as f32)).collect());
        numbers.map(Some).ok_or_else(|| self.wrong(key, format!("is no list of {len} numbers")))
    }

    /// The boolean at `key`.
    pub(super) fn flag(self, key: &str) -> Result<Option<bool>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "is no boolean".into()))
    }

    /// The text at `key`.
    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "is no text".into()))
    }
}
