//! Cells of a table, and what they hold.

use super::python_json::mark;
use super::python_literal;
use serde_json::{Map, Value};
use std::sync::Arc;

/// A row's cells and the columns that they stand in.
#[derive(Clone, Debug)]
pub struct Cells {
    pub(super) names: Arc<Vec<String>>,
    /// The field that each column holds.
    pub(super) fields: Arc<Vec<String>>,
    pub(super) record: ::csv::StringRecord,
}

impl Cells {
    /// Columns' names and cells' texts.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).chain(&self.record)
    }

    /// The row's fields. Errors: more or fewer cells than columns.
    pub(super) fn fields(&self) -> Result<Map<String, Value>, String> {
        let (cells, columns) = (self.record.len(), self.names.len());
        if cells != columns {
            return Err(format!(
                "{cells} cells in a table of {columns} columns; a cell with a delimiter, a quote or a line's end stands in quotes"
            ));
        }
        let mut map = Map::with_capacity(columns);
        for ((name, field), text) in self.names.iter().zip(&*self.fields).zip(&self.record) {
            if !name.is_empty() || !text.is_empty() {
                map.insert(name.clone(), cell(field, text));
            }
        }
        Ok(map)
    }
}

/// Fields that hold lists or objects, whatever their cells look like.
const LISTS: [&str; 17] = [
    "messages",
    "conversations",
    "conversation",
    "responses",
    "scores",
    "ratings",
    "generations",
    "completions",
    "history",
    "tools",
    "functions",
    "chat_template_kwargs",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "responses_ids",
    "completion_ids",
];
const NUMBERS: [&str; 4] = ["weight", "rating", "label", "kto_tag"];

/// What a cell of column `field` holds. Text is text, and a list of objects where it is nothing else. What cannot be read is a
/// mark: it is wrong where somebody uses the column.
fn cell(field: &str, text: &str) -> Value {
    let bare = text.trim();
    if text.is_empty() {
        return Value::Null;
    }
    if LISTS.contains(&field) {
        return nested(bare);
    }
    if NUMBERS.contains(&field) {
        return match bare {
            "True" | "true" | "TRUE" => true.into(),
            "False" | "false" | "FALSE" => false.into(),
            _ if bare.starts_with('[') => nested(bare),
            // pandas makes floating-point numbers of whole ones where a cell of the column is empty.
            _ => match bare.parse::<f64>() {
                Ok(x) if x.fract() == 0.0 && x.abs() < 1e15 => (x as i64).into(),
                Ok(x) if x.is_finite() => x.into(),
                _ => text.into(),
            },
        };
    }
    // `[{"role": ...`: nobody begins a text like this.
    let inside =
        bare.strip_prefix('[').and_then(|rest| rest.trim_start().strip_prefix('{')).map_or("", str::trim_start);
    let keys = ["role", "content", "from", "value"];
    let dialogue = inside.strip_prefix(['"', '\'']).is_some_and(|rest| keys.iter().any(|k| rest.starts_with(k)));
    if dialogue { nested(bare) } else { text.into() }
}

fn nested(text: &str) -> Value {
    let json = match serde_json::from_str::<Value>(text) {
        Ok(value) => return value,
        Err(e) => e,
    };
    python_literal::parse(text).unwrap_or_else(|python| {
        mark(&format!(
            "\"{}\", no list in JSON ({json}) or as Python prints one ({python}; json.dumps writes JSON)",
            short(text)
        ))
    })
}

fn short(text: &str) -> String {
    let shown: String = text.chars().take(40).collect();
    if shown.len() < text.len() { format!("{shown}...") } else { shown }.escape_debug().to_string()
}
