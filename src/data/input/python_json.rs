//! JSON as Python's `json` writes it: with `NaN`, `Infinity` and `-Infinity` where a number is none. No JSON value stands
//! for them, so a column that holds one keeps a mark in its place: where nobody uses the column it is no harm, and where
//! somebody does, [`what_it_was`] says what is wrong with it.

use super::integers;
use super::json_text::{number_len, rewritten};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The key of a mark; no data have it.
const MARK: &str = "\u{0}not a value";
const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// The mark of a column that holds `what`, a noun for messages ("NaN", "binary data").
pub(super) fn mark(what: &str) -> Value {
    Value::Object(Map::from_iter([(MARK.to_owned(), what.into())]))
}

/// What stood where `value` is a mark.
pub(super) fn what_it_was(value: &Value) -> Option<&str> {
    match value {
        Value::Object(map) if map.len() == 1 => map.get(MARK)?.as_str(),
        _ => None,
    }
}

/// The object in `text`, a JSON text but for Python's numbers; every column that holds one is a mark. `None` where it is
/// something else.
pub(super) fn object(text: &str) -> Option<Map<String, Value>> {
    let marked = marked(text).filter(|_| text.trim_start().starts_with('{'))?; // a number by itself is no object
    let Ok(Value::Object(mut map)) = integers::value(&marked) else { return None };
    for value in map.values_mut() {
        if let Some(what) = inside(value) {
            *value = mark(&what);
        }
    }
    Some(map)
}

fn inside(value: &Value) -> Option<String> {
    match value {
        Value::Array(items) => items.iter().find_map(inside),
        Value::Object(map) => what_it_was(value).map(str::to_owned).or_else(|| map.values().find_map(inside)),
        _ => None,
    }
}

/// `text` with a mark for each of Python's numbers outside of strings, and for what Python reads as infinite; `None` where
/// there is none.
fn marked(text: &str) -> Option<String> {
    let marked = rewritten(text, |rest| {
        let number = NUMBERS.iter().find(|n| rest.starts_with(*n));
        let len = number.map_or_else(|| number_len(rest), |n| n.len());
        let is = number.is_some() || rest[..len].parse().is_ok_and(f64::is_infinite);
        (len, is.then(|| mark(&rest[..len]).to_string()))
    });
    match marked {
        Cow::Borrowed(_) => None,
        Cow::Owned(marked) => Some(marked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_numbers_become_marks_and_strings_stay() {
        let map = object(r#"{"a": NaN, "b": [1, {"c": -Infinity}], "d": "NaN \" Infinity", "e": -1}"#).unwrap();
        assert_eq!(what_it_was(&map["a"]), Some("NaN"));
        assert_eq!(what_it_was(&map["b"]), Some("-Infinity"));
        assert_eq!((what_it_was(&map["d"]), what_it_was(&map["e"])), (None, None));
        assert_eq!((&map["d"], &map["e"]), (&Value::from("NaN \" Infinity"), &Value::from(-1)));
        let map = object(r#"{"a": [1e400], "b": -1e999, "c": "1e400", "d": 1e-400, "e": 12}"#).unwrap();
        assert_eq!((what_it_was(&map["a"]), what_it_was(&map["b"])), (Some("1e400"), Some("-1e999")));
        assert_eq!((&map["c"], &map["d"], &map["e"]), (&Value::from("1e400"), &Value::from(0.0), &Value::from(12)));
        for other in [r#"{"a": 1}"#, "NaN", "[NaN]", r#"{"a": NaNs}"#, r#"{"a": "NaN}"#, "{\"a\": NaN, \"\\"] {
            assert!(object(other).is_none(), "{other}");
        }
    }
}
