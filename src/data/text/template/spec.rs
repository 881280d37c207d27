//! Python's `format(value, spec)`.

use super::fault::{Fault, Res, raise};
use super::iter::chars;
use super::number::as_float;
use super::repr::{float as float_repr, text};
use super::strings::justified;
use super::value::{Machine, Value};
use num_bigint::BigInt;
use num_traits::Signed;

/// What a format specification asks for.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// What stands around a narrow text.
    pub fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    pub align: Option<char>,
    /// `+`, `-` or a space.
    pub sign: Option<char>,
    /// `#`
    pub alt: bool,
    /// `0` before the width.
    pub zero: bool,
    /// Least characters.
    pub width: usize,
    /// `,` or `_`
    pub group: Option<char>,
    /// Digits, or most characters of a text.
    pub precision: Option<usize>,
    /// The type.
    pub kind: Option<char>,
}

/// Greatest width and precision.
const MAX_WIDTH: usize = 1 << 20;

impl Spec {
    /// Reads `spec`.
    pub fn parse(spec: &str) -> Res<Self> {
        let all: Vec<char> = spec.chars().collect();
        let mut out = Spec::default();
        let mut at = 0;
        let is_align = |c: Option<&char>| c.is_some_and(|c| "<>=^".contains(*c));
        if is_align(all.get(1)) {
            (out.fill, out.align, at) = (Some(all[0]), Some(all[1]), 2);
        } else if is_align(all.first()) {
            (out.align, at) = (Some(all[0]), 1);
        }
        let take = |at: &mut usize, of: &str| {
            let c = all.get(*at).copied().filter(|c| of.contains(*c));
            *at += usize::from(c.is_some());
            c
        };
        out.sign = take(&mut at, "+- ");
        if all.get(at) == Some(&'z') {
            return Err(Fault::refused("the format option z"));
        }
        out.alt = take(&mut at, "#").is_some();
        out.zero = out.fill.is_none() && take(&mut at, "0").is_some();
        out.width = digits(&all, &mut at)?.unwrap_or(0);
        out.group = take(&mut at, ",_");
        if take(&mut at, ",_").is_some() {
            return raise("ValueError: Cannot specify both ',' and '_'.");
        }
        if take(&mut at, ".").is_some() {
            out.precision = digits(&all, &mut at)?;
            if out.precision.is_none() {
                return raise("ValueError: Format specifier missing precision");
            }
        }
        out.kind = all.get(at).copied();
        if all.len() > at + 1 {
            return raise(format!("ValueError: Invalid format specifier '{spec}'"));
        }
        Ok(out)
    }

    /// `text` in its width.
    fn fit(&self, m: &dyn Machine, text: &str, align: char) -> Res<String> {
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let how = match self.align.unwrap_or(align) {
            '<' => "ljust",
            '>' => "rjust",
            // As Python rounds here: the odd one to the right.
            '^' => {
                let pad = self.width.saturating_sub(chars(text));
                let left = justified(m, text, "rjust", (chars(text) + pad / 2) as i64, fill)?;
                return justified(m, &left, "ljust", self.width as i64, fill);
            }
            _ => return raise("ValueError: '=' alignment not allowed in string format specifier"),
        };
        justified(m, text, how, self.width as i64, fill)
    }

    /// A number in its width: `sign`, `prefix`, then what stands behind, whose first `digits` characters are digits.
    pub fn fit_number(&self, m: &dyn Machine, sign: &str, prefix: &str, body: &str, digits: usize) -> Res<String> {
        let inside = self.align == Some('=') || self.align.is_none() && self.zero;
        let body = match self.group {
            None => body.to_owned(),
            Some(_) if inside && (self.zero || self.fill == Some('0')) && self.width > body.len() => {
                return Err(Fault::refused("a format with both grouping and leading zeros"));
            }
            Some(mark) => {
                let every = if matches!(self.kind, Some('b' | 'o' | 'x' | 'X')) { 4 } else { 3 };
                let grouped = |(i, c): (usize, char)| {
                    let mark = (i > 0 && i < digits && (digits - i).is_multiple_of(every)).then_some(mark);
                    mark.into_iter().chain([c])
                };
                body.chars().enumerate().flat_map(grouped).collect()
            }
        };
        if inside {
            let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
            let width = self.width.saturating_sub(sign.len() + prefix.len());
            return Ok([sign, prefix, &justified(m, &body, "rjust", width as i64, fill)?].concat());
        }
        self.fit(m, &[sign, prefix, &body].concat(), '>')
    }

    fn sign(&self, negative: bool) -> &'static str {
        match self.sign {
            _ if negative => "-",
            Some('+') => "+",
            Some(' ') => " ",
            _ => "",
        }
    }
}

fn digits(all: &[char], at: &mut usize) -> Res<Option<usize>> {
    let from = *at;
    while all.get(*at).is_some_and(char::is_ascii_digit) {
        *at += 1;
    }
    let text: String = all[from..*at].iter().collect();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(n) if n <= MAX_WIDTH => Ok(Some(n)),
        _ => Err(Fault::limit(format!("a format asks for more than {MAX_WIDTH} characters"))),
    }
}

/// `format(value, spec)`
pub fn format(m: &dyn Machine, value: &Value, spec: &str) -> Res<String> {
    match value {
        Value::Str(s) if s.safe => Err(Fault::refused("the format of an escaped text")),
        _ if spec.is_empty() => text(m, value),
        Value::Str(s) => string(m, s, &Spec::parse(spec)?),
        Value::Bool(_) | Value::Int(_) | Value::Big(_) => {
            let spec = Spec::parse(spec)?;
            match spec.kind {
                Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => float(m, value, &spec),
                _ => integer(m, &value.as_int().unwrap_or_default(), &spec),
            }
        }
        Value::Float(_) => float(m, value, &Spec::parse(spec)?),
        _ => raise(format!("TypeError: unsupported format string passed to {}.__format__", value.type_name())),
    }
}

fn unknown<T>(kind: char, of: &str) -> Res<T> {
    raise(format!("ValueError: Unknown format code '{kind}' for object of type '{of}'"))
}

fn string(m: &dyn Machine, s: &str, spec: &Spec) -> Res<String> {
    match spec.kind {
        Some('s') | None => {}
        Some(kind) => return unknown(kind, "str"),
    }
    if spec.sign.is_some() || spec.alt || spec.group.is_some() || spec.align == Some('=') {
        return raise("ValueError: Sign, '#', ',', '_' or '=' not allowed in string format specifier");
    }
    let cut: String = s.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    spec.fit(m, &cut, '<')
}

/// An int in base 2, 8, 10 or 16, without its sign.
pub fn in_base(n: &BigInt, kind: char) -> Res<String> {
    let base = match kind {
        'b' => 2,
        'o' => 8,
        'x' | 'X' => 16,
        _ => 10,
    };
    let digits = n.abs().to_str_radix(base);
    if base == 10 && digits.len() > 4300 {
        return raise("Exceeds the limit (4300 digits) for integer string conversion");
    }
    Ok(if kind == 'X' { digits.to_uppercase() } else { digits })
}

fn integer(m: &dyn Machine, n: &BigInt, spec: &Spec) -> Res<String> {
    if spec.precision.is_some() {
        return raise("ValueError: Precision not allowed in integer format specifier");
    }
    let kind = spec.kind.unwrap_or('d');
    match kind {
        'd' | 'b' | 'o' | 'x' | 'X' | 'n' => {}
        'c' => {
            let code = u32::try_from(n).ok();
            if spec.sign.is_some() || spec.alt || spec.group.is_some() {
                return raise("ValueError: Sign, '#' or grouping not allowed with integer format specifier 'c'");
            }
            return match code.and_then(char::from_u32) {
                Some(c) => spec.fit(m, &c.to_string(), '<'),
                None => raise("OverflowError: %c arg not in range(0x110000)"),
            };
        }
        _ => return unknown(kind, "int"),
    }
    if spec.group == Some(',') && !matches!(kind, 'd') || spec.group.is_some() && kind == 'n' {
        return raise(format!("ValueError: Cannot specify ',' with '{kind}'."));
    }
    let digits = in_base(n, kind)?;
    let prefix = match kind {
        'b' | 'o' | 'x' | 'X' if spec.alt => format!("0{kind}"),
        _ => String::new(),
    };
    spec.fit_number(m, spec.sign(n.is_negative()), &prefix, &digits, digits.len())
}

fn float(m: &dyn Machine, value: &Value, spec: &Spec) -> Res<String> {
    let x = as_float(value).unwrap_or(Ok(0.0))?;
    let kind = spec.kind;
    if !matches!(kind, None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' | 'n')) {
        return unknown(kind.unwrap_or(' '), "float");
    }
    if spec.group.is_some() && kind == Some('n') {
        return raise("ValueError: Cannot specify ',' with 'n'.");
    }
    let (scaled, tail) = if kind == Some('%') { (x * 100.0, "%") } else { (x, "") };
    let kind = match kind {
        Some('%') => Some('f'),
        Some('n') => Some('g'),
        kind => kind,
    };
    let mut body = unsigned(scaled.abs(), kind, spec.precision, spec.alt)?;
    let digits = body.chars().take_while(char::is_ascii_digit).count();
    body.push_str(tail);
    spec.fit_number(m, spec.sign(scaled.is_sign_negative()), "", &body, digits)
}

/// A float that is not negative, in notation `kind`; without one as `repr`, or with `precision` nearly as `g`.
pub fn unsigned(x: f64, kind: Option<char>, precision: Option<usize>, alt: bool) -> Res<String> {
    if precision.is_some_and(|p| p > 1100) {
        return Err(Fault::limit("a format asks for more than 1100 digits"));
    }
    let upper = kind.is_some_and(|k| k.is_ascii_uppercase());
    let out = match kind.map(|k| k.to_ascii_lowercase()) {
        _ if !x.is_finite() => float_repr(x),
        None if precision.is_none() && !alt => float_repr(x),
        Some('f') => {
            let precision = precision.unwrap_or(6);
            let out = format!("{x:.precision$}");
            if alt && precision == 0 { out + "." } else { out }
        }
        Some('e') => scientific(x, precision.unwrap_or(6), alt),
        Some('g') => general(x, precision.unwrap_or(6).max(1), alt, false),
        _ => match precision {
            Some(precision) => general(x, precision.max(1), alt, true),
            None => return Err(Fault::refused("the format option # of a float without a type")),
        },
    };
    Ok(if upper { out.to_uppercase() } else { out })
}

fn scientific(x: f64, precision: usize, alt: bool) -> String {
    let out = format!("{x:.precision$e}");
    let (digits, exponent) = out.split_once('e').unwrap_or((&out, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let point = if alt && precision == 0 { "." } else { "" };
    format!("{digits}{point}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `g`: so many digits in all, without zeros at the end. `dotted`: the notation of no type, which keeps one behind the
/// point.
fn general(x: f64, precision: usize, alt: bool, dotted: bool) -> String {
    let rounded = format!("{x:.*e}", precision - 1);
    let exponent: i32 = rounded.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let bare = |digits: &str| match alt || !digits.contains('.') {
        true => digits.to_owned(),
        false => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
    };
    let most = precision as i32 - i32::from(dotted);
    if exponent < -4 || exponent >= most {
        let out = scientific(x, precision - 1, alt);
        let (digits, exponent) = out.split_once('e').unwrap_or((&out, "+00"));
        return format!("{}e{exponent}", bare(digits));
    }
    let decimals = usize::try_from(precision as i32 - 1 - exponent).unwrap_or(0);
    let out = bare(&format!("{x:.decimals$}"));
    match () {
        () if dotted && !out.contains('.') => out + ".0",
        () if alt && !out.contains('.') => out + ".",
        () => out,
    }
}
