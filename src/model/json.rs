//! Fields of Hugging Face's JSON files, with errors that name the file and the field.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads fields of one JSON file; every error names the file and the field.
pub(super) struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    /// The field that holds `map`, where that is not the whole file.
    within: Option<&'static str>,
}

impl<'a> Fields<'a> {
    /// Of the object `map` in the file `path`.
    pub fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, map, within: None }
    }
    /// Of `map`, which is the file's field `name`.
    pub fn inside(&self, name: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { path: self.path, map, within: Some(name) }
    }
    /// An error about the file, or the object within it.
    pub fn bad(&self, why: impl Into<String>) -> Error {
        let why = why.into();
        match self.within {
            None => Error::file(self.path, why),
            Some(name) if why.starts_with('`') => Error::file(self.path, format!("`{name}`: {why}")),
            Some(name) => Error::file(self.path, format!("`{name}` {why}")),
        }
    }
    /// The field, unless absent or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.raw(name).filter(|v| !v.is_null())
    }
    /// The field, null as it is.
    pub fn raw(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name)
    }
    /// Whether the field is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }
    /// Names of all fields.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }
    /// An object, unless absent or null.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(v) => Err(self.bad(format!("`{name}` is {}, expected an object", short(v)))),
        }
    }
    /// A positive integer below 2^31.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        let Some(v) = self.get(name) else { return Ok(default) };
        match v.as_u64() {
            Some(n) if n >= 1 && n <= i32::MAX as u64 => Ok(n as usize),
            _ => Err(self.bad(format!("`{name}` is {}, expected an integer from 1 to {}", short(v), i32::MAX))),
        }
    }
    /// A finite number greater than 0.
    pub fn positive_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.get(name).is_none() { Ok(default) } else { self.positive(name) }
    }
    /// [`Fields::positive_or`] that must be there, and not null.
    pub fn positive(&self, name: &str) -> Result<f64> {
        let Some(v) = self.raw(name) else { return Err(self.bad(format!("`{name}` is missing"))) };
        match v.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.bad(format!("`{name}` is {}, expected a number greater than 0", short(v)))),
        }
    }
    /// A finite number, unless absent or null.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.bad(format!("`{name}` is {}, expected a number", short(v)))),
        }
    }
    /// A list of `len` numbers greater than 0, or of one that stands for all.
    pub fn positives(&self, name: &str, len: usize) -> Result<Vec<f64>> {
        let Some(v) = self.raw(name) else { return Err(self.bad(format!("`{name}` is missing"))) };
        let all = |list: &Vec<Value>| {
            list.iter().map(|v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0)).collect::<Option<Vec<f64>>>()
        };
        match v.as_array().and_then(all) {
            Some(list) if list.len() == len => Ok(list),
            Some(list) if list.len() == 1 => Ok(list.repeat(len)),
            _ => Err(self.bad(format!("`{name}` is {}, expected {len} numbers greater than 0", short(v)))),
        }
    }
    /// True or false; false when absent.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(format!("`{name}` is {}, expected true or false", short(v)))),
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
        ids.ok_or_else(|| self.bad(format!("`{name}` is {}, expected a token id or a list of them", short(v))))
    }
}

/// A value for a message: cut where it is long.
pub(super) fn short(v: &Value) -> String {
    const MOST: usize = 80;
    let text = v.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((at, _)) => format!("{}...", &text[..at]),
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

/// Writes `total` where the index of a sharded model has its size.
pub(super) fn set_total_size(index: &mut Map<String, Value>, total: impl Into<Value>) {
    if !index.get("metadata").is_some_and(Value::is_object) {
        index.insert("metadata".into(), Value::Object(Map::new()));
    }
    index["metadata"]["total_size"] = total.into();
}
