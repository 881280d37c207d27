//! The configuration files beside a `tokenizer.json`.

use crate::error::{Error, Result};
use crate::files::{Inside, MOST_JSON};
use serde_json::Value;

/// `tokenizer_config.json` over `special_tokens_map.json`; an empty object where there is neither.
pub(super) fn config(dir: Option<&Inside>) -> Result<Value> {
    let mut merged = serde_json::Map::new();
    let Some(dir) = dir else { return Ok(merged.into()) };
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(text) = dir.read_text(name, MOST_JSON)? else { continue };
        let file = dir.path(name);
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => merged.extend(map.into_iter().filter(|(_, v)| !v.is_null())),
            Ok(_) => return Err(Error::file(file, "must be a JSON object")),
            Err(e) => return Err(Error::file(file, format!("malformed JSON: {e}"))),
        }
    }
    Ok(merged.into())
}

/// A special token's text: a string, or an object with `content`.
pub(super) fn special_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}
