//! Weights, labels, scores and token ids of a row.

use super::columns::Columns;
use super::json_row::kind;
use super::row::{Body, Unusable};
use serde_json::Value;

/// A list, which a table of texts writes as JSON. What is neither comes back.
pub(super) fn list(value: Value) -> Result<Vec<Value>, Value> {
    match value {
        Value::Array(items) => Ok(items),
        Value::String(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str(&text).map_err(|_| Value::String(text))
        }
        other => Err(other),
    }
}

pub(super) fn weight(c: &mut Columns) -> Result<f32, String> {
    let Some(value) = c.take("weight")? else { return Ok(1.0) };
    match number(&value).map(|w| w as f32) {
        Some(w) if w > 0.0 && w.is_finite() => Ok(w),
        _ => Err(format!("`weight` must be a finite number above 0, found {value}")),
    }
}

/// A number, or a text that is one, as in a CSV file.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// The judgement of `prompt, completion` rows.
pub(super) fn label(c: &mut Columns) -> Result<Option<bool>, String> {
    let Some(value) = c.take("label")? else { return Ok(None) };
    match truth(&value) {
        Some(label) => Ok(Some(label)),
        None => Err(format!("`label` must be true or false, found {value}")),
    }
}

/// True or false, as tables write it: a boolean, 0 or 1, or the text of one.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => match n.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// The judgement of a dialogue or an answer: `kto_tag`, or a `label` that is true or false. A `label` of another kind is a
/// column of its own (a topic, a class) and plays no part.
pub(super) fn verdict(c: &mut Columns) -> Result<Option<bool>, String> {
    match (c.take("kto_tag")?, c.get("label")) {
        (Some(tag), label) => match (truth(&tag), label) {
            (None, _) => Err(format!("`kto_tag` must be true or false, found {tag}")),
            (Some(tag), Some(Value::Bool(label))) if tag != *label => {
                Err("`kto_tag` and `label` say different things; leave one out (`options.map` label=)".into())
            }
            (tag, _) => Ok(tag),
        },
        (None, Some(Value::Bool(label))) => {
            let label = *label;
            c.drop("label");
            Ok(Some(label))
        }
        (None, _) => Ok(None),
    }
}

pub(super) fn scores(value: Value, want: usize, name: &str, of: &str) -> Result<Vec<f32>, String> {
    let items = list(value).map_err(|v| format!("`{name}` must be a list, found {}", kind(&v)))?;
    if items.len() != want {
        return Err(format!("{} `{name}` for {want} `{of}`; they must be as many", items.len()));
    }
    let score = |v: &Value| {
        let x = v.as_f64().or_else(|| v.as_bool().map(|b| f64::from(u8::from(b)))).map(|x| x as f32);
        x.filter(|x| x.is_finite()).ok_or_else(|| format!("`{name}` holds {v}; a score must be a finite number"))
    };
    items.iter().map(score).collect()
}

pub(super) fn ids(value: Value, name: &str) -> Result<Vec<u32>, String> {
    let items = list(value).map_err(|v| format!("`{name}` must be a list of token ids, found {}", kind(&v)))?;
    let id = |v: &Value| v.as_u64().and_then(|x| u32::try_from(x).ok());
    items.iter().map(|v| id(v).ok_or_else(|| format!("`{name}` holds {v}, which is no token id"))).collect()
}

pub(super) fn ids_body(value: Value, name: &str) -> Result<Body, String> {
    let ids = ids(value, name)?;
    Ok(if ids.is_empty() { Body::Unusable(Unusable::Empty) } else { Body::Ids(ids) })
}
