//! A row as a reader finds it, before anybody understands it.

use super::cells::Cells;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a row stands, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<PathBuf>,
    /// 1-based line where the row begins; for Parquet, the 1-based row.
    pub line: u64,
    /// What `line` counts: `line` or `row`.
    pub unit: &'static str,
}

impl Place {
    /// An error about this row, naming file and line.
    pub fn error(&self, why: impl std::fmt::Display) -> Error {
        Error::file(self.path.as_path(), format!("{} {}: {why}", self.unit, self.line))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        write!(f, "{} {} {}", name.to_string_lossy(), self.unit, self.line)
    }
}

/// A row before it is understood.
#[derive(Clone, Debug)]
pub struct RawRow {
    /// Its place, for messages.
    pub place: Place,
    /// Its content.
    pub body: RawBody,
    /// Bytes that it takes.
    pub size: usize,
}

impl RawRow {
    /// SHA-256 of what it says, in whatever file it stands and however that is compressed: by it rows are known again.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        match &self.body {
            RawBody::Json(bytes) => hasher.update(bytes.trim_ascii()),
            RawBody::Columns(map) => hasher.update(serde_json::to_vec(map).expect("plain values")),
            RawBody::Unusable(_) => hasher.update(b"unusable"),
            // Texts as they stand: what a column holds depends on how columns are named.
            RawBody::Cells(cells) => cells.texts().for_each(|text| {
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text);
            }),
        }
        hasher.finalize().into()
    }
}

/// SHA-256 of the [`RawRow::sha256`] of rows in their order.
#[derive(Clone, Debug, Default)]
pub struct RowsHash(Sha256);

impl RowsHash {
    /// The next row's.
    pub fn add(&mut self, row: &[u8; 32]) {
        self.0.update(row);
    }

    /// Of all rows so far.
    pub fn sha256(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

/// What a reader found at a row's place.
#[derive(Clone, Debug)]
pub enum RawBody {
    /// The bytes of one JSON value, not yet parsed.
    Json(Vec<u8>),
    /// Columns of a Parquet row.
    Columns(Map<String, Value>),
    /// What is no row, and why; the file goes on behind it.
    Unusable(String),
    /// Cells of a table's row, not yet understood.
    Cells(Cells),
}

/// Rows of one file, in file order.
pub type RowIter = Box<dyn Iterator<Item = Result<RawRow>> + Send>;

/// Bytes that a value takes in memory, near enough.
pub(super) fn weight(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(name, value)| 56 + name.len() + weight(value)).sum(),
        _ => 0,
    };
    size_of::<Value>() + inside
}

/// Bytes of what a value says: what a file that does not compress would have to hold.
pub(super) fn content(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(content).sum(),
        Value::Object(map) => map.values().map(content).sum(),
        Value::Number(_) => size_of::<f64>(),
        Value::Bool(_) | Value::Null => 0,
    }
}
