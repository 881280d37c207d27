//! Python's `text % values`.

use super::fault::{Fault, Res, raise};
use super::number::as_float;
use super::ops::item;
use super::repr::{escaped, repr, text};
use super::spec::{Spec, in_base, unsigned};
use super::strings::justified;
use super::value::{Machine, Str, Value};
use num_traits::{FromPrimitive, Signed};

/// `format % values`
pub fn percent(m: &dyn Machine, format: &Str, values: &Value) -> Res<Value> {
    if format.safe {
        return Err(Fault::refused("% of an escaped text"));
    }
    let tuple = match values {
        Value::Tuple(items) => Some(items.items.as_slice()),
        _ => None,
    };
    // What can be asked for members counts as a mapping, even a list.
    let mapping = match values {
        Value::Dict(_) | Value::List(_) | Value::Undefined(_) => true,
        Value::Object(_) => values.type_name() == "range",
        _ => false,
    };
    let mut given = Given { tuple, single: Some(values), at: 0 };
    let mut out = String::new();
    let mut rest = &*format.text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        rest = one(m, rest, values, mapping, &mut given, &mut out)?;
        m.budget().grow(out.len(), 0)?;
    }
    out.push_str(rest);
    if given.left() && !mapping {
        return raise("TypeError: not all arguments converted during string formatting");
    }
    m.budget().grow(out.len(), 0)?;
    Ok(Value::str(out))
}

struct Given<'a> {
    tuple: Option<&'a [Value]>,
    single: Option<&'a Value>,
    at: usize,
}

impl<'a> Given<'a> {
    fn next(&mut self) -> Res<&'a Value> {
        let next = match self.tuple {
            Some(items) => items.get(self.at),
            None => self.single.take(),
        };
        self.at += 1;
        match next {
            Some(value) => Ok(value),
            None => raise("TypeError: not enough arguments for format string"),
        }
    }

    fn left(&self) -> bool {
        self.tuple.map_or(self.single.is_some(), |items| self.at < items.len())
    }
}

/// One conversion, behind its `%`; gives what stands behind it.
fn one<'a>(
    m: &dyn Machine,
    mut rest: &'a str,
    values: &Value,
    mapping: bool,
    given: &mut Given,
    out: &mut String,
) -> Res<&'a str> {
    let mut named = None;
    if let Some(after) = rest.strip_prefix('(') {
        if !mapping {
            return raise("TypeError: format requires a mapping");
        }
        let (key, after) = key_of(after)?;
        match item(m, values, &Value::str(key))? {
            Some(value) => named = Some(value),
            None => return raise(format!("KeyError: '{key}'")),
        }
        given.single = None;
        rest = after;
    }
    let mut spec = Spec { align: Some('>'), ..Spec::default() };
    let (mut left, mut zero) = (false, false);
    while let Some(c) = rest.chars().next().filter(|c| "-+ #0".contains(*c)) {
        match c {
            '-' => left = true,
            '+' => spec.sign = Some('+'),
            ' ' if spec.sign.is_none() => spec.sign = Some(' '),
            '#' => spec.alt = true,
            '0' => zero = true,
            _ => {}
        }
        rest = &rest[1..];
    }
    let (width, after) = size(rest, given)?;
    rest = after;
    left |= width < 0;
    let mut precision = None;
    if let Some(after) = rest.strip_prefix('.') {
        let (n, after) = size(after, given)?;
        precision = Some(n.max(0));
        rest = after;
    }
    rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
    let Some(kind) = rest.chars().next() else { return raise("ValueError: incomplete format") };
    rest = &rest[kind.len_utf8()..];
    if kind == '%' {
        out.push('%');
        return Ok(rest);
    }
    let value = match &named {
        Some(value) => value,
        None => given.next()?,
    };
    let fits = |n: i64| match usize::try_from(n.unsigned_abs()) {
        Ok(n) if n <= 1 << 20 => Ok(n),
        _ => Err(Fault::limit("a format asks for more than a million characters")),
    };
    spec.width = fits(width)?;
    spec.precision = precision.map(fits).transpose()?;
    let how = if left { "ljust" } else { "rjust" };
    if left {
        spec.align = Some('<');
    } else if zero {
        (spec.align, spec.fill) = (Some('='), Some('0'));
    }
    let done = match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => text(m, value)?,
                'r' => repr(m, value)?,
                _ => ascii(&repr(m, value)?),
            };
            let cut: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            justified(m, &cut, how, spec.width as i64, ' ')?
        }
        'c' => justified(m, &char_of(value)?, how, spec.width as i64, ' ')?,
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => integer(m, value, kind, &spec)?,
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(x) = as_float(value) else {
                return raise(format!("TypeError: must be real number, not {}", value.type_name()));
            };
            let x = x?;
            let body = unsigned(x.abs(), Some(kind), spec.precision.or(Some(6)), spec.alt)?;
            spec.fit_number(m, sign(&spec, x.is_sign_negative()), "", &body, 0)?
        }
        _ => return raise(format!("ValueError: unsupported format character '{kind}'")),
    };
    out.push_str(&done);
    Ok(rest)
}

fn sign(spec: &Spec, negative: bool) -> &'static str {
    match spec.sign {
        _ if negative => "-",
        Some('+') => "+",
        Some(_) => " ",
        None => "",
    }
}

/// The key up to its closing bracket, and what stands behind.
fn key_of(text: &str) -> Res<(&str, &str)> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Ok((&text[..at], &text[at + 1..]));
        }
    }
    raise("ValueError: incomplete format key")
}

/// A width or precision: digits, or `*` for the next value.
fn size<'a>(text: &'a str, given: &mut Given) -> Res<(i64, &'a str)> {
    if let Some(rest) = text.strip_prefix('*') {
        return match given.next()?.as_index() {
            Some(n) => Ok((n, rest)),
            None => raise("TypeError: * wants int"),
        };
    }
    let len = text.bytes().take_while(u8::is_ascii_digit).count();
    let n = if len == 0 { 0 } else { text[..len].parse().unwrap_or(i64::MAX) };
    Ok((n, &text[len..]))
}

fn integer(m: &dyn Machine, value: &Value, kind: char, spec: &Spec) -> Res<String> {
    let whole = match value {
        Value::Float(x) if matches!(kind, 'd' | 'i' | 'u') => match num_bigint::BigInt::from_f64(x.trunc()) {
            Some(n) => Some(n),
            None => return raise("OverflowError: cannot convert float infinity to integer"),
        },
        _ => value.as_int(),
    };
    let Some(n) = whole else {
        return raise(format!("TypeError: %{kind} format: an integer is required, not {}", value.type_name()));
    };
    let digits = in_base(&n, kind)?;
    let digits = justified(m, &digits, "rjust", spec.precision.unwrap_or(0) as i64, '0')?;
    let prefix = match kind {
        'o' | 'x' | 'X' if spec.alt => format!("0{kind}"),
        _ => String::new(),
    };
    spec.fit_number(m, sign(spec, n.is_negative()), &prefix, &digits, 0)
}

fn char_of(value: &Value) -> Res<String> {
    match value {
        Value::Str(s) if s.chars().count() == 1 => Ok(s.text.to_string()),
        _ => match value.as_index() {
            Some(n) => match u32::try_from(n).ok().and_then(char::from_u32) {
                Some(c) => Ok(c.to_string()),
                None => raise("OverflowError: %c arg not in range(0x110000)"),
            },
            None => raise("TypeError: %c requires int or char"),
        },
    }
}

/// `ascii` of what `repr` gives.
pub fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii() { out.push(c) } else { escaped(c, &mut out) }
    }
    out
}
