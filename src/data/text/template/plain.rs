//! JSON as the template's values, as `transformers` hands it over.

use super::fault::Res;
use super::value::{Key, Value};
use crate::data::input::marked_integer;
use num_bigint::BigInt;
use serde_json::{Map, Number, Value as Json};

/// A JSON value.
pub fn plain(json: &Json) -> Res<Value> {
    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => number(n),
        Json::String(s) => Value::str(s.as_str()),
        Json::Array(items) => Value::list(items.iter().map(plain).collect::<Res<_>>()?)?,
        Json::Object(map) => {
            if let Some(n) = marked_integer(map).and_then(|digits| digits.parse::<BigInt>().ok()) {
                return Ok(Value::int(n));
            }
            Value::dict(map.iter().map(|(k, v)| Ok((Key::from(k.as_str()), plain(v)?))).collect::<Res<_>>()?)?
        }
    })
}

fn number(n: &Number) -> Value {
    match (n.as_i64(), n.as_u64()) {
        (Some(n), _) => Value::Int(n),
        (None, Some(n)) => Value::int(BigInt::from(n)),
        (None, None) => Value::Float(n.as_f64().unwrap_or(f64::INFINITY)),
    }
}

/// Names under which a message's reasoning is given; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message: without the keys whose value is null, and with its reasoning under every name that templates read.
pub fn message(map: &Map<String, Json>) -> Res<Value> {
    let mut pairs = Vec::with_capacity(map.len() + 2);
    for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        pairs.push((Key::from(key.as_str()), plain(value)?));
    }
    let found = REASONING.iter().find_map(|name| map.get(*name).filter(|v| !v.is_null()));
    let Some(found) = found else { return Value::dict(pairs.into_iter().collect()) };
    let found = plain(found)?;
    // `thinking` stands first, with the message's own where it has one.
    let mut all: indexmap::IndexMap<Key, Value> = [(Key::from("thinking"), found.clone())].into_iter().collect();
    all.extend(pairs);
    all.insert(Key::from("reasoning_content"), found);
    Value::dict(all)
}
