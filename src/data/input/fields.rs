//! Names of a row's fields, and which column holds each.

use serde_json::{Map, Value};

/// `FIELD=COLUMN,...`: which column holds a field; `FIELD=` leaves the column of that name out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldMap(pub Vec<(String, String)>);

impl FieldMap {
    /// Parses `FIELD=COLUMN,...`. Errors: no `=`, an unknown field, a field named twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut map = Vec::new();
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let (field, column) = part.split_once('=').ok_or_else(|| format!("\"{part}\" is not FIELD=COLUMN"))?;
            let (field, column) = (field.trim().to_owned(), column.trim().to_owned());
            if !FIELDS.contains(&field.as_str()) {
                return Err(format!("unknown field \"{field}\"; fields are {}", FIELDS.join(", ")));
            }
            if map.iter().any(|(f, _)| *f == field) {
                return Err(format!("field \"{field}\" is given twice"));
            }
            map.push((field, column));
        }
        Ok(Self(map))
    }

    pub(super) fn apply(&self, mut fields: Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut taken = Vec::with_capacity(self.0.len());
        for (field, column) in self.0.iter().filter(|(_, column)| !column.is_empty()) {
            match fields.get(column) {
                Some(value) => taken.push((field.clone(), value.clone())),
                None => return Err(format!("`options.map` names column `{column}`, the row has {}", names(&fields))),
            }
        }
        for (field, column) in &self.0 {
            fields.shift_remove(if column.is_empty() { field } else { column });
        }
        fields.extend(taken);
        Ok(fields)
    }
}

const FIELDS: [&str; 47] = [
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "scores",
    "completion",
    "label",
    "messages",
    "text",
    "weight",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "responses_ids",
    "completion_ids",
    "tools",
    "chat_template_kwargs",
    // What other programs call them.
    "conversations",
    "conversation",
    "system",
    "system_prompt",
    "functions",
    "instruction",
    "question",
    "query",
    "input",
    "history",
    "output",
    "response",
    "answer",
    "kto_tag",
    "chosen_response",
    "rejected_response",
    "response_j",
    "response_k",
    "generations",
    "ratings",
    "rating",
    "preferred_output",
    "non_preferred_output",
    "completions",
    "labels",
    // Only to be left out.
    "images",
    "image",
    "videos",
    "audios",
    "audio",
];

/// Whether a column of this name may be of use to a row; others are not worth reading.
pub(super) fn used(column: &str, map: &FieldMap) -> bool {
    // Two names that OpenAI has used before; nobody needs to map them.
    let old = ["preferred_completion", "non_preferred_completion"];
    let out = map.0.iter().any(|(field, from)| field == column && from.is_empty());
    !out && (FIELDS.contains(&column) || old.contains(&column)) || map.0.iter().any(|(_, from)| from == column)
}

/// Columns of a row, for messages.
pub(super) fn names(fields: &Map<String, Value>) -> String {
    if fields.is_empty() {
        return "no fields".into();
    }
    let shown = fields.keys().take(20).map(|k| format!("`{}`", k.escape_debug())).collect::<Vec<_>>().join(", ");
    if fields.len() > 20 { format!("{shown} and {} more", fields.len() - 20) } else { shown }
}
