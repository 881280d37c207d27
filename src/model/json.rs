//! Fields of Hugging Face's JSON files, with errors that name the file and the field.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads fields of one JSON file; every error names the file and the field.
pub(super) struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Of the object `map` in the file `path`.
    pub fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, map }
    }
    /// The file.
    pub fn path(&self) -> &'a Path {
        self.path
    }
    /// An error about the file.
    pub fn bad(&self, why: impl Into<String>) -> Error {
        Error::file(self.path, why)
    }
    /// The field, unless absent or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }
    /// A positive integer below 2^31.
    pub fn size_or(&self, name: &str, default: Option<usize>) -> Result<usize> {
        let Some(v) = self.get(name) else {
            return default.ok_or_else(|| self.bad(format!("`{name}` is missing")));
        };
        match v.as_u64() {
            Some(n) if n >= 1 && n <= i32::MAX as u64 => Ok(n as usize),
            _ => Err(self.bad(format!("`{name}` is {v}, expected an integer from 1 to {}", i32::MAX))),
        }
    }
    /// [`Fields::size_or`] that must be there.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.size_or(name, None)
    }
    /// A finite number greater than 0.
    pub fn positive_or(&self, name: &str, default: Option<f64>) -> Result<f64> {
        let Some(v) = self.get(name) else {
            return default.ok_or_else(|| self.bad(format!("`{name}` is missing")));
        };
        match v.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.bad(format!("`{name}` is {v}, expected a number greater than 0"))),
        }
    }
    /// True or false; false when absent.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(format!("`{name}` is {v}, expected true or false"))),
        }
    }
    /// A token id, a list of them, or nothing.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let Some(v) = self.get(name) else { return Ok(Vec::new()) };
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match v {
            Value::Array(list) => list.iter().map(one).collect(),
            v => one(v).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.bad(format!("`{name}` is {v}, expected a token id or a list of them")))
    }
}

/// One JSON object; `path` is the file that `text` was read from.
pub(super) fn parse_json(path: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::file(path, "expected a JSON object")),
        Err(e) => Err(Error::file(path, format!("not JSON: {e}"))),
    }
}
