//! A column of the rows that shards were packed from.

use crate::data::input::{self, RawRow, Reading};
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a row says that does not have the column.
const ABSENT: &str = "(absent)";
/// Longest value that tells rows apart, in characters.
const LONGEST: usize = 80;

/// The values of column `name` of every row of `inputs`, in order, as text. `data` is the folder of shards that were packed from them.
///
/// Errors: a file that cannot be read; a column that no row has; more or fewer rows than the data were packed from, as its
/// `report.json` says.
pub fn column(inputs: &[PathBuf], name: &str, data: &Path) -> Result<Vec<String>> {
    let mut values = Vec::new();
    let mut found = false;
    for path in inputs {
        for row in input::open(path, Reading::default())? {
            let value = value_of(row?, name);
            found |= value.is_some();
            values.push(value.unwrap_or_else(|| ABSENT.to_owned()));
        }
    }
    let first = inputs.first().map_or(Path::new(""), PathBuf::as_path);
    if !found {
        return Err(Error::file(first, format!("no row has a column {name:?}; name one of theirs as `options.by`")));
    }
    let report = data.join("report.json");
    if report.is_file() {
        let report: Value = serde_json::from_slice(&files::read(&report, MOST_JSON)?).unwrap_or_default();
        if let Some(rows) = report["rows_read"].as_u64().filter(|rows| *rows != values.len() as u64) {
            let why = format!(
                "has {} rows, with those of the files after it, and the data were packed from {rows}: give the same files, in the same order",
                values.len()
            );
            return Err(Error::file(first, why));
        }
    }
    Ok(values)
}

fn value_of(row: RawRow, name: &str) -> Option<String> {
    let fields = row.fields().ok()?;
    let text = match fields.get(name)? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(text.chars().take(LONGEST).collect())
}
