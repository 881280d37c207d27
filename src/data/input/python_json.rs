//! JSON as Python's `json` writes it: with `NaN`, `Infinity` and `-Infinity` where a number is none, and halves of surrogate
//! pairs, as a text has that was cut in the middle of one. No JSON value stands for them, so a column that holds one keeps a
//! mark in its place: where nobody uses the column it is no harm, and where somebody does, [`what_it_was`] says what is wrong
//! with it.

use super::integers;
use super::json_text::{half_pairs, number_len, restrung, rewritten};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The key of a mark; no data have it.
const MARK: &str = "\u{0}not a value";
/// In place of a key that no text can hold.
const KEY: &str = "\u{0}half of a surrogate pair";
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

/// The object in `text`, a JSON text but for what only Python writes; every column that holds such is a mark. `None` where it
/// is something else.
pub(super) fn object(text: &str) -> Option<Map<String, Value>> {
    if !text.trim_start().starts_with('{') {
        return None; // a number by itself is no object
    }
    let numbers = marked(text);
    let marked = match (restrung(numbers.as_deref().unwrap_or(text), halves), &numbers) {
        (Cow::Borrowed(_), None) => return None,
        (marked, _) => marked,
    };
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
        Value::Object(map) if map.contains_key(KEY) => Some("half of a surrogate pair in a key".to_owned()),
        Value::Object(map) => what_it_was(value).map(str::to_owned).or_else(|| map.values().find_map(inside)),
        _ => None,
    }
}

/// What stands for a string with half of a surrogate pair in it, quotes and all. One that is damaged besides stays as it is.
fn halves(string: &str, is_key: bool) -> Option<String> {
    let (_, half) = half_pairs(string).next()?;
    let mut other = string.to_owned();
    half_pairs(string).for_each(|(at, half)| other.replace_range(at..at + half.len(), "\\ufffd"));
    serde_json::from_str::<String>(&other).ok()?;
    Some(match is_key {
        true => Value::from(KEY).to_string(),
        false => mark(&format!("{half}, half of a surrogate pair")).to_string(),
    })
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
        for other in [
            r#"{"a": 1}"#,
            r#""\ud800""#,
            r#"{"a": "\ud83d\ude00 \\ud800"}"#,
            r#"{"a": "\ud800}"#,
            "NaN",
            "[NaN]",
            r#"{"a": NaNs}"#,
            r#"{"a": "NaN}"#,
            "{\"a\": NaN, \"\\",
        ] {
            assert!(object(other).is_none(), "{other}");
        }
    }
    #[test]
    fn halves_of_surrogate_pairs_become_marks() {
        let text = r#"{"a": "x\ud800", "b": [{"c": "\uDC00\ud83d"}], "d": "\ud83d\ude00", "e\udfff" : 1, "f": {"\\\ud83d": 2},
            "g": "\\ud800\n\"", "h": NaN}"#;
        let map = object(text).unwrap();
        assert_eq!(what_it_was(&map["a"]), Some("\\ud800, half of a surrogate pair"));
        assert_eq!(what_it_was(&map["b"]), Some("\\uDC00, half of a surrogate pair"));
        assert_eq!(what_it_was(&map["f"]), Some("half of a surrogate pair in a key"));
        assert_eq!(what_it_was(&map["h"]), Some("NaN"));
        assert_eq!((&map["d"], &map["g"]), (&Value::from("\u{1f600}"), &Value::from("\\ud800\n\"")));
        assert_eq!(map.keys().filter(|k| k.starts_with('e')).count(), 0);
        // Whatever is cut short or damaged besides is as bad as ever.
        for bad in [r#""\ud800"#, r#""\ud800\"#, r#""\ud800\u"}"#, r#""\ud800" 1}"#, r#""\ud800\é"}"#, "\"\\ud800\n\"}"]
        {
            assert!(object(&format!("{{\"a\": {bad}")).is_none(), "{bad}");
        }
    }
}
