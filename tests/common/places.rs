//! Places in a JSON value, for whoever damages one.

use serde_json::Value;

/// Values in `v`, itself and at any depth.
pub fn count(v: &Value) -> usize {
    1 + match v {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The `at`-th value in depth-first order.
pub fn nth<'a>(v: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(v);
    }
    *at -= 1;
    match v {
        Value::Array(list) => list.iter_mut().find_map(|v| nth(v, at)),
        Value::Object(map) => map.values_mut().find_map(|v| nth(v, at)),
        _ => None,
    }
}
