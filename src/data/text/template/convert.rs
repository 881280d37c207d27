//! Python's `int(...)`, `float(...)` and `dict(...)`.

use super::fault::{Fault, Res, raise};
use super::iter::{Iter, len, members};
use super::number::to_float;
use super::unicode::{decimal, is_space};
use super::value::{Args, Key, Machine, Value};
use indexmap::IndexMap;
use num_bigint::BigInt;
use num_traits::FromPrimitive;

/// What a conversion gives besides a value.
pub enum Failed {
    /// A `TypeError` or `ValueError`, which filters catch.
    Caught,
    /// An `OverflowError`.
    Overflow,
    /// Anything else.
    Fault(Fault),
}

/// `float(value)`
pub fn to_number(value: &Value) -> Result<f64, Failed> {
    match value {
        Value::Undefined(what) => Err(Failed::Fault(Fault::raised(&**what))),
        Value::Float(x) => Ok(*x),
        Value::Str(s) => parse_float(s),
        _ => match value.as_int() {
            Some(n) => to_float(&n).map_err(|_| Failed::Overflow),
            None => Err(Failed::Caught),
        },
    }
}

fn ascii_digits(text: &str) -> String {
    let text = text.trim_matches(is_space);
    text.chars().map(|c| decimal(c).and_then(|d| char::from_digit(d, 10)).unwrap_or(c)).collect()
}

/// Digits without the underscores that may stand between two of them.
fn without_underscores(text: &str, digit: fn(&char) -> bool) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let digit = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(digit);
    let fine = (0..chars.len()).all(|at| chars[at] != '_' || digit(at.checked_sub(1)) && digit(Some(at + 1)));
    fine.then(|| text.replace('_', ""))
}

fn parse_float(text: &str) -> Result<f64, Failed> {
    let text = ascii_digits(text);
    let bare = text.strip_prefix(['+', '-']).unwrap_or(&text).to_ascii_lowercase();
    match bare.as_str() {
        "nan" => return Err(Failed::Fault(Fault::refused("NaN"))),
        "inf" | "infinity" => return Ok(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY }),
        _ => {}
    }
    if !bare.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(Failed::Caught);
    }
    without_underscores(&text, char::is_ascii_digit).and_then(|t| t.parse().ok()).ok_or(Failed::Caught)
}

/// `int(value)` of anything but a text.
pub fn to_int(value: &Value) -> Result<Value, Failed> {
    match value {
        Value::Undefined(what) => Err(Failed::Fault(Fault::raised(&**what))),
        Value::Float(x) => BigInt::from_f64(x.trunc()).map(Value::int).ok_or(Failed::Overflow),
        _ => value.as_int().map(Value::int).ok_or(Failed::Caught),
    }
}

/// `int(text, base)`
pub fn parse_int(text: &str, base: i64) -> Result<Value, Failed> {
    let text = ascii_digits(text);
    let negative = text.starts_with('-');
    let mut digits = text.strip_prefix(['+', '-']).unwrap_or(&text).to_ascii_lowercase();
    let mut base = match base {
        0 | 2..=36 => base as u32,
        _ => return Err(Failed::Caught),
    };
    let prefixes = [("0b", 2), ("0o", 8), ("0x", 16)];
    if let Some((prefix, of)) = prefixes.into_iter().find(|(p, of)| digits.starts_with(p) && (base == 0 || base == *of))
    {
        digits = digits[prefix.len()..].trim_start_matches('_').to_owned();
        base = of;
        if digits.is_empty() || text.contains("__") {
            return Err(Failed::Caught);
        }
    } else if base == 0 {
        base = 10;
        if digits.starts_with('0') && digits.chars().any(|c| c != '0' && c != '_') {
            return Err(Failed::Caught);
        }
    }
    let Some(digits) = without_underscores(&digits, char::is_ascii_alphanumeric) else { return Err(Failed::Caught) };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) || base == 10 && digits.len() > 4300 {
        return Err(Failed::Caught);
    }
    if digits.len() > 20_000 {
        return Err(Failed::Fault(Fault::limit("the template makes a number of too many digits")));
    }
    let n = BigInt::parse_bytes(digits.as_bytes(), base).ok_or(Failed::Caught)?;
    Ok(Value::int(if negative { -n } else { n }))
}

/// `dict(...)`: of a dict, of pairs, and of names.
pub fn dict_of(m: &dyn Machine, args: Args) -> Res<Value> {
    if args.pos.len() > 1 {
        return raise(format!("TypeError: dict expected at most 1 argument, got {}", args.pos.len()));
    }
    let mut map: IndexMap<Key, Value> = IndexMap::new();
    match args.pos.first() {
        None => {}
        Some(Value::Undefined(what)) => return raise(&**what),
        Some(Value::Dict(dict)) => map.extend(dict.map.iter().map(|(k, v)| (Key(k.0.clone()), v.clone()))),
        Some(Value::Object(o)) if o.type_name() == "TemplateNamespace" => {
            return Err(Fault::refused("a dict of a namespace"));
        }
        Some(pairs) => {
            let mut iter = Iter::new(pairs)?;
            while let Some(pair) = iter.next(m)? {
                m.budget().items(1)?;
                if len(m, &pair)?.is_some_and(|n| n != 2) {
                    return raise("ValueError: dictionary update sequence element has length other than 2");
                }
                match <[Value; 2]>::try_from(members(m, &pair)?) {
                    Ok([key, value]) => map.insert(Key::new(key)?, value),
                    Err(_) => return raise("ValueError: dictionary update sequence element must have length 2"),
                };
            }
        }
    }
    m.budget().items(map.len())?;
    for (name, value) in args.kw {
        map.insert(Key(Value::str(name)), value);
    }
    Value::dict(map)
}
