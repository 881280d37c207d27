//! Jinja2's filters of texts and numbers, and those that escape.

use super::args::{given, int, text as text_arg};
use super::cases::capitalize;
use super::convert::{Failed, to_number};
use super::fault::{Fault, Res, raise};
use super::filters::{escaped, flag, soft};
use super::iter::{Iter, chars, members};
use super::number::{Op, as_float, finite_or_infinite};
use super::ops::{binary, slice};
use super::repr::text;
use super::strings::{justified, lines, replaced, stripped};
use super::unicode::{is_alnum, is_space};
use super::value::{Args, Machine, Str, Value, equal};
use num_bigint::BigInt;
use num_traits::{FromPrimitive, Signed, ToPrimitive};

/// Names of this file's filters.
pub const NAMES: &[&str] = &[
    "capitalize",
    "lower",
    "upper",
    "title",
    "string",
    "safe",
    "e",
    "escape",
    "forceescape",
    "striptags",
    "wordcount",
    "center",
    "filesizeformat",
    "indent",
    "replace",
    "round",
    "trim",
    "truncate",
    "urlencode",
    "wordwrap",
    "xmlattr",
];

/// Applies filter `name`, one of [`NAMES`].
pub fn call(m: &dyn Machine, name: &str, args: Args) -> Res<Value> {
    match name {
        "capitalize" | "lower" | "upper" | "title" | "string" | "safe" | "e" | "escape" | "forceescape"
        | "striptags" | "wordcount" => one(m, name, args),
        "center" => center(m, args),
        "filesizeformat" => filesize(m, args),
        "indent" => indent(m, args),
        "replace" => replace(m, args),
        "round" => round(m, args),
        "trim" => trim(m, args),
        "truncate" => truncate(m, args),
        "urlencode" => urlencode(m, args),
        "wordwrap" => Err(Fault::refused("the filter wordwrap")),
        "xmlattr" => xmlattr(m, args),
        _ => raise(format!("No filter named '{name}'")),
    }
}

fn one(m: &dyn Machine, name: &str, args: Args) -> Res<Value> {
    let parameter = if matches!(name, "forceescape" | "safe" | "striptags") { "value" } else { "s" };
    let [value] = args.bind(name, [parameter], 1)?;
    let s = soft(m, &value.unwrap_or(Value::None))?;
    m.budget().text(s.len())?;
    Ok(match name {
        "capitalize" => Value::marked(capitalize(&s), s.safe),
        "lower" => Value::marked(s.to_lowercase(), s.safe),
        "upper" => Value::marked(s.to_uppercase(), s.safe),
        "title" => Value::str(title(&s)),
        "string" => Value::Str(s),
        "safe" => Value::Str(Str { safe: true, ..s }),
        "e" | "escape" => Value::Str(escaped(m, &Value::Str(s))?),
        "forceescape" => Value::Str(escaped(m, &Value::Str(Str { safe: false, ..s }))?),
        "striptags" => striptags(&s)?,
        _ => {
            let words = s.split(|c: char| c != '_' && !is_alnum(c)).filter(|w| !w.is_empty()).count();
            Value::Int(words as i64)
        }
    })
}

/// Each word's first character in upper case, the rest in lower; words begin behind white space and brackets.
fn title(text: &str) -> String {
    let splits = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let between = splits(rest.chars().next().unwrap_or(' '));
        let end = rest.find(|c| splits(c) != between).unwrap_or(rest.len());
        let (item, after) = rest.split_at(end);
        let first = item.chars().next().map_or(0, char::len_utf8);
        out.push_str(&item[..first].to_uppercase());
        out.push_str(&item[first..].to_lowercase());
        rest = after;
    }
    out
}

/// Without comments and tags, white space drawn together.
fn striptags(s: &str) -> Res<Value> {
    let without = |text: &str, open: &str, close: &str| {
        let mut text = text.to_owned();
        while let Some(start) = text.find(open) {
            let Some(end) = text[start..].find(close) else { break };
            text.replace_range(start..start + end + close.len(), "");
        }
        text
    };
    let bare = without(&without(s, "<!--", "-->"), "<", ">");
    if bare.contains('&') {
        return Err(Fault::refused("striptags of a text with &"));
    }
    let words: Vec<&str> = bare.split(is_space).filter(|w| !w.is_empty()).collect();
    // Python gives back a plain text.
    Ok(Value::str(words.join(" ")))
}

fn center(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, width] = args.bind("center", ["value", "width"], 1)?;
    let s = soft(m, &value.unwrap_or(Value::None))?;
    let width = width.map_or(Ok(80), |w| int("center", &w))?;
    Ok(Value::marked(justified(m, &s, "center", width, ' ')?, s.safe))
}

fn filesize(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, binary] = args.bind("filesizeformat", ["value", "binary"], 1)?;
    let bytes = match to_number(&value.unwrap_or(Value::None)) {
        Ok(x) => x,
        Err(Failed::Fault(fault)) => return Err(fault),
        Err(_) => return raise("ValueError: filesizeformat takes a number"),
    };
    let (base, infix) = if flag(m, &binary, false)? { (1024f64, "iB") } else { (1000f64, "B") };
    if bytes == 1.0 {
        return Ok(Value::str("1 Byte"));
    }
    if bytes < base {
        return match bytes.is_finite() {
            true => Ok(Value::str(format!("{} Bytes", bytes.trunc() as i128))),
            false => raise("OverflowError: cannot convert float infinity to integer"),
        };
    }
    let letters =
        if infix == "B" { ["k", "M", "G", "T", "P", "E", "Z", "Y"] } else { ["K", "M", "G", "T", "P", "E", "Z", "Y"] };
    let mut unit = base;
    let mut out = String::new();
    for letter in letters {
        unit *= base;
        out = format!("{:.1} {letter}{infix}", base * bytes / unit);
        if bytes < unit {
            break;
        }
    }
    Ok(Value::str(out.replace("NaN", "nan")))
}

fn indent(m: &dyn Machine, args: Args) -> Res<Value> {
    let [s, width, first, blank] = args.bind("indent", ["s", "width", "first", "blank"], 1)?;
    let s = match s.unwrap_or(Value::None) {
        Value::Str(s) => s,
        Value::Undefined(what) => return raise(&*what),
        other => return raise(format!("TypeError: cannot add str to {}", other.type_name())),
    };
    let indention = match width {
        None => "    ".to_owned(),
        Some(Value::Str(width)) => width.text.to_string(),
        Some(width) => {
            let n = usize::try_from(int("indent", &width)?.max(0)).unwrap_or(usize::MAX);
            m.budget().text(n)?;
            " ".repeat(n)
        }
    };
    let (first, blank) = (flag(m, &first, false)?, flag(m, &blank, false)?);
    let whole = [&*s.text, "\n"].concat();
    let lines = lines(&whole);
    m.budget().text(whole.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
    let mut out = String::new();
    for (i, (line, _)) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if i == 0 && first || i > 0 && (blank || !line.is_empty()) {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::marked(out, s.safe))
}

fn replace(m: &dyn Machine, args: Args) -> Res<Value> {
    let [s, old, new, count] = args.bind("replace", ["s", "old", "new", "count"], 3)?;
    let all = [s, old, new].map(|v| text(m, &v.unwrap_or(Value::None)));
    let [s, old, new] = all;
    let count = given(&count).map_or(Ok(-1), |n| int("replace", n))?;
    replaced(m, &s?, &old?, &new?, count).map(Value::str)
}

fn trim(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, set] = args.bind("trim", ["value", "chars"], 1)?;
    let s = soft(m, &value.unwrap_or(Value::None))?;
    let set = given(&set).map(|v| text_arg("strip", v)).transpose()?;
    let bare = stripped(&s, "strip", set.map(|s| &**s));
    Ok(if bare.len() == s.len() { Value::Str(s) } else { Value::marked(bare, s.safe) })
}

fn truncate(m: &dyn Machine, args: Args) -> Res<Value> {
    let [s, length, kill, end, leeway] = args.bind("truncate", ["s", "length", "killwords", "end", "leeway"], 1)?;
    let s = s.unwrap_or(Value::None);
    let length = length.map_or(Ok(255), |n| int("truncate", &n))?;
    let end = end.unwrap_or_else(|| Value::str("..."));
    let end = text_arg("truncate", &end)?;
    let leeway = given(&leeway).map_or(Ok(5), |n| int("truncate", n))?;
    let rest = length - chars(end) as i64;
    if rest < 0 || leeway < 0 {
        return raise(
            "AssertionError: truncate expects a length of at least that of its end, and a leeway of at least 0",
        );
    }
    let size = match super::iter::len(m, &s)? {
        Some(n) => n as i64,
        None => return raise(format!("TypeError: object of type '{}' has no len()", s.type_name())),
    };
    if size <= length.saturating_add(leeway) {
        return Ok(s);
    }
    let cut = slice(m, &s, [&Value::None, &Value::Int(rest), &Value::None])?;
    let Value::Str(cut) = &cut else { return raise("TypeError: truncate takes a text") };
    if cut.safe {
        return Err(Fault::refused("truncate of an escaped text"));
    }
    let kept = match flag(m, &kill, false)? {
        true => &*cut.text,
        false => cut.rsplit_once(' ').map_or(&*cut.text, |(before, _)| before),
    };
    binary(m, Op::Add, &Value::str(kept), &Value::Str(end.clone()))
}

fn urlencode(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value] = args.bind("urlencode", ["value"], 1)?;
    let value = value.unwrap_or(Value::None);
    let pairs = match &value {
        Value::Str(_) => return quote(m, &text(m, &value)?, false).map(Value::str),
        Value::Dict(dict) => {
            dict.map.iter().map(|(k, v)| Value::tuple(vec![k.0.clone(), v.clone()])).collect::<Res<_>>()?
        }
        other => match Iter::of(other) {
            Some(_) => members(m, other)?,
            None => return quote(m, &text(m, &value)?, false).map(Value::str),
        },
    };
    let mut out = Vec::new();
    for pair in pairs {
        let Ok([k, v]) = <[Value; 2]>::try_from(members(m, &pair)?) else {
            return raise("ValueError: urlencode takes pairs");
        };
        out.push([quote(m, &text(m, &k)?, true)?, quote(m, &text(m, &v)?, true)?].join("="));
    }
    Ok(Value::str(out.join("&")))
}

fn quote(m: &dyn Machine, text: &str, query: bool) -> Res<String> {
    m.budget().text(text.len().saturating_mul(3))?;
    let one = |b: u8| match b {
        b'/' if !query => "/".into(),
        b' ' if query => "+".into(),
        b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    Ok(text.bytes().map(one).collect())
}

fn xmlattr(m: &dyn Machine, args: Args) -> Res<Value> {
    let [d, autospace] = args.bind("xmlattr", ["d", "autospace"], 1)?;
    let Some(Value::Dict(dict)) = d else { return raise("AttributeError: xmlattr takes a dict") };
    let mut out = Vec::new();
    for (key, value) in &dict.map {
        if matches!(value, Value::None) || value.is_undefined() {
            continue;
        }
        let Value::Str(name) = &key.0 else { return raise("TypeError: expected string or bytes-like object") };
        if name.contains(|c: char| matches!(c, '\t'..='\r' | ' ' | '/' | '>' | '=')) {
            return raise(format!("ValueError: Invalid character in attribute name: '{}'", name.text));
        }
        out.push(format!("{}=\"{}\"", escaped(m, &key.0)?.text, escaped(m, value)?.text));
    }
    let out = out.join(" ");
    m.budget().text(out.len())?;
    let space = flag(m, &autospace, true)? && !out.is_empty();
    Ok(Value::str(if space { format!(" {out}") } else { out }))
}

fn round(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, precision, method] = args.bind("round", ["value", "precision", "method"], 1)?;
    let value = value.unwrap_or(Value::None);
    let method = method.unwrap_or_else(|| Value::str("common"));
    let precision = precision.unwrap_or(Value::Int(0));
    let is = |name: &str| equal(&method, &Value::str(name));
    if is("common") {
        return match &value {
            Value::Undefined(what) => raise(&**what),
            Value::Float(x) if matches!(precision, Value::None) => round_float(*x, 0).and_then(|v| match v {
                Value::Float(x) => BigInt::from_f64(x).map(Value::int).ok_or_else(|| Fault::raised("OverflowError")),
                other => Ok(other),
            }),
            Value::Float(x) => round_float(*x, int("round", &precision)?),
            other => match other.as_int() {
                Some(n) if matches!(precision, Value::None) => Ok(Value::int(n)),
                Some(n) => round_int(&n, int("round", &precision)?),
                None => raise(format!("TypeError: type {} doesn't define __round__ method", other.type_name())),
            },
        };
    }
    if !is("ceil") && !is("floor") {
        return raise("method must be common, ceil or floor");
    }
    let power = binary(m, Op::Pow, &Value::Int(10), &precision)?;
    let scaled = binary(m, Op::Mul, &value, &power)?;
    let whole = match &scaled {
        Value::Float(x) => match BigInt::from_f64(if is("ceil") { x.ceil() } else { x.floor() }) {
            Some(n) => Value::int(n),
            None => return raise("OverflowError: cannot convert float infinity to integer"),
        },
        other if other.as_int().is_some() => other.clone(),
        other => return raise(format!("TypeError: must be real number, not {}", other.type_name())),
    };
    binary(m, Op::Div, &whole, &power)
}

/// `round(x, digits)` of a float: the decimal nearest to its exact value, ties to even.
fn round_float(x: f64, digits: i64) -> Res<Value> {
    if !x.is_finite() || digits > 323 {
        return Ok(Value::Float(x));
    }
    if digits < -308 {
        return Ok(Value::Float(0.0 * x));
    }
    if let Ok(places) = usize::try_from(digits) {
        return finite_or_infinite(format!("{x:.places$}").parse().unwrap_or(x));
    }
    let Some(whole) = BigInt::from_f64(x.trunc()) else { return Ok(Value::Float(x)) };
    // Twice the value, one more for a fraction: which side of a tie it is on.
    let twice = whole.abs() * 2 + i32::from(x.fract() != 0.0);
    let rounded = nearest(&twice, digits);
    let out = as_float(&Value::int(rounded)).unwrap_or(Ok(0.0))?;
    Ok(Value::Float(if x.is_sign_negative() { -out } else { out }))
}

fn round_int(n: &BigInt, digits: i64) -> Res<Value> {
    if digits >= 0 {
        return Ok(Value::int(n.clone()));
    }
    if digits < -10_000 {
        return Ok(Value::Int(0));
    }
    let rounded = nearest(&(n.abs() * 2), digits);
    Ok(Value::int(if n.is_negative() { -rounded } else { rounded }))
}

/// The multiple of a power of ten nearest to half of `twice`, ties to the even multiple.
fn nearest(twice: &BigInt, digits: i64) -> BigInt {
    let unit = BigInt::from(10).pow(digits.unsigned_abs().to_u32().unwrap_or(u32::MAX));
    let (whole, rest): (BigInt, BigInt) = (twice / (&unit * 2), twice % (&unit * 2));
    let up = match rest.cmp(&unit) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => whole.bit(0),
        std::cmp::Ordering::Less => false,
    };
    (whole + i32::from(up)) * unit
}
