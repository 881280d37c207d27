//! One row of JSON: its text becomes its fields.

use super::integers;
use super::python_json;
use super::raw::{Place, RawBody, RawRow};
use crate::error::Result;
use serde_json::{Map, Value};

impl RawRow {
    /// The row's fields. Errors: not UTF-8, malformed JSON (with line and column), not an object.
    pub fn fields(self) -> Result<Map<String, Value>> {
        match self.body {
            RawBody::Columns(map) => Ok(map),
            RawBody::Json(bytes) => parse_object(&self.place, &bytes),
            RawBody::Unusable(why) => Err(self.place.error(why)),
            RawBody::Cells(cells) => cells.fields().map_err(|why| self.place.error(why)),
        }
    }
}

/// Parses one row. The error's line is the file's, also for rows of several lines.
pub fn parse_object(place: &Place, bytes: &[u8]) -> Result<Map<String, Value>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let at = e.valid_up_to();
            let lines = bytes[..at].iter().filter(|b| **b == b'\n').count() as u64;
            let place = Place { line: place.line + lines, ..place.clone() };
            return Err(place.error(format!(
                "not UTF-8 (byte 0x{:02x} at byte {at} of the row); convert the file to UTF-8",
                bytes[at]
            )));
        }
    };
    if too_many_values(bytes) {
        return Err(place.error("so many values in one row that they would fill the memory; make rows of it"));
    }
    match integers::value(text) {
        Ok(Value::Object(mut map)) => {
            integers::loosen(&mut map);
            Ok(map)
        }
        Ok(other) => Err(place.error(format!("a row must be a JSON object, this one is {}", kind(&other)))),
        Err(e) => {
            // What only Python writes is no harm in a column that nobody uses.
            if let Some(map) = python_json::object(text) {
                return Ok(map);
            }
            let place = Place { line: place.line + (e.line() as u64).saturating_sub(1), ..place.clone() };
            let full = e.to_string();
            let what = full.rsplit_once(" at line ").map_or(full.as_str(), |(what, _)| what);
            let hint = if what.starts_with("EOF") {
                "; the row is cut short (JSONL needs one whole object a line)"
            } else {
                ""
            };
            Err(place.error(format!("malformed JSON at column {}: {what}{hint}", e.column())))
        }
    }
}

/// Whether a long row would take gigabytes once it is parsed: an empty object of two bytes takes hundreds.
fn too_many_values(bytes: &[u8]) -> bool {
    const MOST: usize = 3 << 29;
    if bytes.len() < MOST / 200 {
        return false;
    }
    let (mut in_string, mut escaped, mut takes) = (false, false, 0);
    for &b in bytes {
        if in_string {
            in_string = escaped || b != b'"';
            escaped = !escaped && b == b'\\';
            continue;
        }
        takes += match b {
            b'{' => 400,
            b',' | b'[' => 40,
            b'"' => 24,
            _ => 0,
        };
        in_string = b == b'"';
    }
    takes > MOST
}

/// A JSON value's kind with its article, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
