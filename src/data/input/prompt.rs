//! Rows that ask for an answer: what `generate` reads.

use super::fields::FieldMap;
use super::parse::parse;
use super::row::{Prompt, Row};
use serde_json::{Map, Value, json};

/// Understands the prompt of a row, with its tools and template variables, as [`parse`] does: of every shape that has one,
/// with its responses or without. Of a dialogue that ends with the assistant's turn, the prompt is what stands before it.
/// The error says what is wrong with which field; the caller adds file and line.
pub fn parse_prompt(fields: Map<String, Value>) -> Result<Row, String> {
    let map = FieldMap::default();
    let fields: Map<String, Value> = fields.into_iter().filter(|(_, v)| !v.is_null()).collect();
    let first = match parse(answered(fields.clone()), &map) {
        Ok(row) => return asks(row),
        Err(why) => why,
    };
    // No responses: any will do, as they are left out again.
    let has_prompt = fields.contains_key("prompt");
    for name in if has_prompt { &["completion"][..] } else { &["output", "response", "completion"] } {
        let mut fields = answered(fields.clone());
        if fields.contains_key(*name) {
            continue;
        }
        fields.insert((*name).into(), "-".into());
        match parse(fields, &map) {
            Ok(row) => return asks(row),
            Err(why) if has_prompt => return Err(why),
            Err(_) => {}
        }
    }
    Err(if fields.contains_key("messages") {
        first
    } else {
        format!("needs a `prompt`, a string or a list of messages ({first})")
    })
}

/// Dialogues that end before the answer get one.
fn answered(mut fields: Map<String, Value>) -> Map<String, Value> {
    for (name, role) in [("messages", "role"), ("conversations", "from"), ("conversation", "role")] {
        if let Some(Value::Array(turns)) = fields.get_mut(name)
            && let Some(last) = turns.last()
        {
            let role = if last.get("role").is_some() {
                "role"
            } else if last.get("from").is_some() {
                "from"
            } else {
                role
            };
            let said = last[role].as_str().unwrap_or_default();
            if !matches!(said, "assistant" | "gpt" | "bot" | "chatgpt" | "model") {
                turns.push(if role == "role" {
                    json!({"role": "assistant", "content": "-"})
                } else {
                    json!({"from": "gpt", "value": "-"})
                });
            }
        }
    }
    fields
}

fn asks(row: Row) -> Result<Row, String> {
    match row.prompt {
        Prompt::Text(_) | Prompt::Ids(_) => Ok(row),
        Prompt::Implicit | Prompt::None => Err("has no prompt to answer: give it in `prompt`".into()),
    }
}
