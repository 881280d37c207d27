//! A column of the rows that shards were packed from.

use crate::data::input::{self, FieldMap, RawRow, Reading, RowsHash};
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a row says that does not have the column.
const ABSENT: &str = "(absent)";
/// Longest value that tells rows apart, in characters.
const LONGEST: usize = 80;

/// A column of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its value in every row, in order, as text.
    pub values: Vec<String>,
    /// Whether the rows are known to be those that the data were packed from: their `report.json` says which those are.
    pub known: bool,
}

/// Column `name` of the rows of `inputs`. `data` is the folder of shards that were packed from them.
///
/// Errors: a file that cannot be read; a column that no row has; other rows than the data were packed from, or in another order.
pub fn column(inputs: &[PathBuf], name: &str, data: &Path) -> Result<Column> {
    let mut values = Vec::new();
    let mut found = false;
    let mut hash = RowsHash::default();
    // Of a table that has it columns are read that are asked for.
    let asked = Reading { map: FieldMap(vec![(name.to_owned(), name.to_owned())]), ..Default::default() };
    for path in inputs {
        for row in input::open(path, Reading::default())? {
            hash.add(&row?.sha256());
        }
        for row in input::open(path, asked.clone())? {
            let value = value_of(row?, name);
            found |= value.is_some();
            values.push(value.unwrap_or_else(|| ABSENT.to_owned()));
        }
    }
    let first = inputs.first().map_or(Path::new(""), PathBuf::as_path);
    if !found {
        return Err(Error::file(first, format!("no row has a column {name:?}; name one of theirs as `options.by`")));
    }
    let known = refuse_others(first, (values.len(), hash), data)?;
    Ok(Column { values, known })
}

/// Refuses `rows` of files of which `first` is the first, with their hash, where `data` were packed from others; whether that is known.
fn refuse_others(first: &Path, (rows, hash): (usize, RowsHash), data: &Path) -> Result<bool> {
    let report = data.join("report.json");
    if !report.is_file() {
        return Ok(false);
    }
    let report: Value = serde_json::from_slice(&files::read(&report, MOST_JSON)?).unwrap_or_default();
    let all = "give the same files, in the same order";
    if let Some(packed) = report["rows_read"].as_u64().filter(|packed| *packed != rows as u64) {
        let why =
            format!("has {rows} rows, with those of the files after it, and the data were packed from {packed}: {all}");
        return Err(Error::file(first, why));
    }
    // Shards of before this was written have none.
    let packed = report["rows_sha256"].as_str().filter(|sha256| !sha256.is_empty());
    match packed.is_some_and(|packed| packed != hex(&hash.sha256())) {
        true => Err(Error::file(
            first,
            format!(
                "has other rows than the data were packed from, or in another order, or the files after it have: {all}"
            ),
        )),
        false => Ok(packed.is_some()),
    }
}

fn value_of(row: RawRow, name: &str) -> Option<String> {
    let fields = row.fields().ok()?;
    let text = match fields.get(name)? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(text.chars().take(LONGEST).collect())
}
