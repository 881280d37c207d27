//! Integers that no 64 bits hold: chat templates print them as they stand in the row, where a JSON number would have become a
//! float. Each keeps a mark in its place; so does nothing else, and columns of plain numbers lose theirs again.

use super::json_text::{number_len, rewritten};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The key of a mark; no data have it.
const MARK: &str = "\u{0}integer";

/// Digits that always fit.
const FIT: usize = 18;

/// The integer that `value` is a mark of: digits, with a sign where it is negative.
pub fn marked_integer(value: &Map<String, Value>) -> Option<&str> {
    value.get(MARK).filter(|_| value.len() == 1)?.as_str().filter(|digits| is_beyond(digits))
}

/// `text`, the JSON text of a value with marks, with the integers themselves. What looks like a mark and holds no such integer is
/// the user's, and stays.
pub fn unmarked(text: &str) -> Cow<'_, str> {
    let begin = format!("{{{}:\"", Value::from(MARK));
    // A quote inside a string has a backslash before it: what begins so is a mark.
    if !text.contains(&begin) {
        return Cow::Borrowed(text);
    }
    let mut pieces = text.split(&begin);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_once("\"}").filter(|(digits, _)| is_beyond(digits)) {
            Some((digits, rest)) => out.extend([digits, rest]),
            None => out.extend([&begin, piece]),
        }
    }
    Cow::Owned(out)
}

/// Whether `number` is an integer as JSON writes it, and no 64 bits hold it.
fn is_beyond(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    digits.len() > FIT
        && !digits.starts_with('0')
        && digits.bytes().all(|c| c.is_ascii_digit())
        && number.parse::<i64>().is_err()
        && number.parse::<u64>().is_err()
}

/// `text`, a JSON text, with a mark for each integer beyond 64 bits, and without the sign of an integer `-0`.
pub fn exact(text: &str) -> Cow<'_, str> {
    rewritten(text, |rest| {
        let len = number_len(rest);
        (len, replaced(&rest[..len]))
    })
}

/// The value of a JSON text, with marks.
pub fn value(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(&exact(text))
}

/// What stands for a number, where it does not stand for itself.
fn replaced(number: &str) -> Option<String> {
    if number == "-0" {
        return Some("0".to_owned());
    }
    is_beyond(number).then(|| Value::from(Map::from_iter([(MARK.to_owned(), number.into())])).to_string())
}

/// Columns that are numbers, or lists of them, hold floats in place of marks: no template sees these.
pub fn loosen(columns: &mut Map<String, Value>) {
    let float = |value: &mut Value| {
        if let Value::Object(map) = value
            && let Some(x) = marked_integer(map).and_then(|digits| digits.parse::<f64>().ok())
        {
            *value = x.into();
        }
    };
    for column in columns.values_mut() {
        match column {
            Value::Array(items) => items.iter_mut().for_each(float),
            other => float(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_keep_their_digits() {
        let row = r#"{"a": [{"x": 12345678901234567890123, "y": -0, "z": 18446744073709551615, "s": "99999999999999999999"}],
            "f": 123456789012345678901.5, "e": 1e30, "n": -99999999999999999999, "l": [1, 99999999999999999999]}"#;
        let mut row: Map<String, Value> = serde_json::from_str(&exact(row)).unwrap();
        loosen(&mut row);
        let inner = &row["a"][0];
        assert_eq!(marked_integer(inner["x"].as_object().unwrap()), Some("12345678901234567890123"));
        assert_eq!((&inner["y"], &inner["z"]), (&0.into(), &u64::MAX.into()));
        assert_eq!(inner["s"], "99999999999999999999");
        assert_eq!((row["f"].as_f64(), row["e"].as_f64()), (Some(123456789012345678901.5), Some(1e30)));
        assert_eq!((row["n"].as_f64(), row["l"][1].as_f64()), (Some(-1e20), Some(1e20)));
        for same in [r#"{"a": 1, "b": "x\"-0"}"#, "[-0.0, 1e5]", "", "\"\\", "{\"a\": 1"] {
            assert!(matches!(exact(same), Cow::Borrowed(_)), "{same}");
        }
    }

    #[test]
    fn a_forged_mark_stays_what_it_is() {
        let row = r#"{"x":{"\u0000integer":"1}, \"y\":{"},"n":99999999999999999999,"z":{"\u0000integer":"007"},"s":{"\u0000integer":"5"}}"#;
        let value: Value = value(row).unwrap();
        let text = unmarked(&value.to_string()).into_owned();
        let bare: Value = serde_json::from_str(&text).unwrap();
        let given: Value = serde_json::from_str(row).unwrap();
        for key in ["x", "z", "s"] {
            assert_eq!(bare[key], given[key], "{text}");
            assert_eq!(marked_integer(value[key].as_object().unwrap()), None);
        }
        assert!(text.contains("\"n\":99999999999999999999"), "{text}");
    }
}
