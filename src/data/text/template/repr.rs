//! `str` and `repr` of Python values.

use super::fault::{Res, raise};
use super::unicode::is_printable;
use super::value::{Items, Machine, Value};
use std::fmt::Write;

/// `str(value)`
pub fn text(m: &dyn Machine, value: &Value) -> Res<String> {
    let mut out = String::new();
    write_text(m, value, &mut out)?;
    Ok(out)
}

/// `str(value)` at the end of `out`.
pub fn write_text(m: &dyn Machine, value: &Value, out: &mut String) -> Res<()> {
    match value {
        Value::Missing | Value::Undefined(_) => Ok(()),
        Value::Str(s) => {
            m.budget().grow(out.len(), s.len())?;
            out.push_str(s);
            Ok(())
        }
        _ => write_repr(m, value, out),
    }
}

/// `repr(value)`
pub fn repr(m: &dyn Machine, value: &Value) -> Res<String> {
    let mut out = String::new();
    write_repr(m, value, &mut out)?;
    Ok(out)
}

/// `repr(value)` at the end of `out`.
pub fn write_repr(m: &dyn Machine, value: &Value, out: &mut String) -> Res<()> {
    m.budget().steps(1)?;
    match value {
        Value::Missing | Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Int(n) => write!(out, "{n}").unwrap_or_default(),
        Value::Big(n) => {
            if n.bits() > 14_285 {
                return raise("Exceeds the limit (4300 digits) for integer string conversion");
            }
            let digits = n.to_string();
            if digits.trim_start_matches('-').len() > 4300 {
                return raise("Exceeds the limit (4300 digits) for integer string conversion");
            }
            out.push_str(&digits);
        }
        Value::Float(x) => out.push_str(&float(*x)),
        Value::Str(s) => {
            m.budget().grow(out.len(), s.len())?;
            match s.safe {
                true => write!(out, "Markup({})", quoted(s)).unwrap_or_default(),
                false => out.push_str(&quoted(s)),
            }
        }
        Value::List(items) => members(m, "[", items, "]", out)?,
        Value::Tuple(items) => members(m, "(", items, if items.items.len() == 1 { ",)" } else { ")" }, out)?,
        Value::Dict(dict) => {
            out.push('{');
            for (i, (key, value)) in dict.map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(m, &key.0, out)?;
                out.push_str(": ");
                write_repr(m, value, out)?;
            }
            out.push('}');
        }
        Value::Object(object) => {
            // A namespace may hold itself.
            m.budget().enter()?;
            out.push_str(&object.repr(m)?);
            m.budget().leave();
        }
    }
    Ok(())
}

fn members(m: &dyn Machine, open: &str, items: &Items, close: &str, out: &mut String) -> Res<()> {
    out.push_str(open);
    for (i, item) in items.items.iter().enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        write_repr(m, item, out)?;
    }
    out.push_str(close);
    Ok(())
}

/// `repr` of a text.
pub fn quoted(s: &str) -> String {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(s.len() + 2);
    out.push(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => escaped(c, &mut out),
        }
    }
    out.push(quote);
    out
}

/// `\xhh`, `\uhhhh` or `\Uhhhhhhhh`.
pub fn escaped(c: char, out: &mut String) {
    match c as u32 {
        n if n < 0x100 => write!(out, "\\x{n:02x}"),
        n if n < 0x1_0000 => write!(out, "\\u{n:04x}"),
        n => write!(out, "\\U{n:08x}"),
    }
    .unwrap_or_default();
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16.
pub fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}
