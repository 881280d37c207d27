//! Numbers and strings as Jinja2 reads them in a template.

use super::fault::{Fault, Res, raise};
use super::repr::escaped;
use super::token::Token;
use num_bigint::BigInt;

/// The number that `text` begins with, and its bytes. Behind a dot there is no float: `a.1.2` are two members.
pub fn number(text: &str, after_dot: bool) -> Res<(Token, usize)> {
    if let Some(len) = float_len(text).filter(|_| !after_dot) {
        let digits = text[..len].replace('_', "");
        let x: f64 = digits.parse().map_err(|_| Fault::raised(format!("malformed number {digits}")))?;
        if x.is_infinite() {
            return Err(Fault::refused(format!("the number {digits}, greater than the greatest float,")));
        }
        return Ok((Token::Float(x), len));
    }
    let lower = text.as_bytes().get(1).map(u8::to_ascii_lowercase);
    let based = match lower.filter(|_| text.starts_with('0')) {
        Some(b'b') => Some((2, digits_len(&text[2..], |c| matches!(c, b'0' | b'1'), true))),
        Some(b'o') => Some((8, digits_len(&text[2..], |c| (b'0'..=b'7').contains(&c), true))),
        Some(b'x') => Some((16, digits_len(&text[2..], |c| c.is_ascii_hexdigit(), true))),
        _ => None,
    };
    let (base, from, len) = match based {
        Some((base, len)) if len > 0 => (base, 2, len),
        _ if text.starts_with('0') => (10, 0, 1 + digits_len(&text[1..], |c| c == b'0', true)),
        _ => (10, 0, digits_len(text, |c| c.is_ascii_digit(), false)),
    };
    let digits = text[from..from + len].replace('_', "");
    if base == 10 && digits.len() > 4300 {
        return raise("Exceeds the limit (4300 digits) for integer string conversion");
    }
    match BigInt::parse_bytes(digits.as_bytes(), base) {
        Some(n) => Ok((Token::Int(n), from + len)),
        None => raise(format!("malformed number {digits}")),
    }
}

/// Bytes of digits with single underscores between them, or before each where `leading`.
fn digits_len(text: &str, digit: impl Fn(u8) -> bool, leading: bool) -> usize {
    let bytes = text.as_bytes();
    let is = |at: usize| bytes.get(at).is_some_and(|c| digit(*c));
    let mut len = 0;
    loop {
        match bytes.get(len) {
            Some(c) if digit(*c) => len += 1,
            Some(b'_') if (len > 0 || leading) && is(len + 1) => len += 2,
            _ => return len,
        }
    }
}

/// Bytes of the float that `text` begins with: digits, then a fraction, an exponent or both.
fn float_len(text: &str) -> Option<usize> {
    let digits = |at: usize| digits_len(text.get(at..).unwrap_or_default(), |c| c.is_ascii_digit(), false);
    let whole = digits(0);
    let at = |at: usize| text.as_bytes().get(at).copied();
    let mut end = whole;
    if at(whole) == Some(b'.') && digits(whole + 1) > 0 {
        end = whole + 1 + digits(whole + 1);
    }
    if matches!(at(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(at(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            return Some(end + 1 + sign + exponent);
        }
    }
    (end > whole).then_some(end)
}

/// The string literal that `text` begins with: its value and its bytes with the quotes; `None` where it does not end.
pub fn string(text: &str, quote: char) -> Res<Option<(String, usize)>> {
    let mut chars = text.char_indices().skip(1);
    let mut escapes = false;
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            escapes = true;
            chars.next();
        } else if c == quote {
            let body = &text[1..at];
            let value = if escapes { unescaped(body)? } else { body.to_owned() };
            return Ok(Some((value, at + 1)));
        }
    }
    Ok(None)
}

/// Python's `unicode-escape` of a text whose other characters were escaped first.
fn unescaped(body: &str) -> Res<String> {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { return raise("\\ at end of string") };
        let mut used = c.len_utf8();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                used = rest.bytes().take(3).take_while(|c| (b'0'..=b'7').contains(c)).count();
                out.push(char_of(u32::from_str_radix(&rest[..used], 8).unwrap_or(0))?);
            }
            'x' | 'u' | 'U' => {
                let len = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let hex = rest.get(1..1 + len).filter(|h| h.bytes().all(|c| c.is_ascii_hexdigit()));
                let Some(hex) = hex else { return raise(format!("truncated \\{c} escape")) };
                out.push(char_of(u32::from_str_radix(hex, 16).unwrap_or(u32::MAX))?);
                used = 1 + len;
            }
            'N' => return Err(Fault::refused("a character's name in a string (\\N{...})")),
            c if c.is_ascii() => out.extend(['\\', c]),
            // The backslash meets that of the character's own escape.
            c => escaped(c, &mut out),
        }
        rest = &rest[used..];
    }
    out.push_str(rest);
    Ok(out)
}

fn char_of(code: u32) -> Res<char> {
    match char::from_u32(code) {
        Some(c) => Ok(c),
        None if code <= 0xffff => Err(Fault::refused("half of a surrogate pair in a string")),
        None => raise("illegal Unicode character"),
    }
}
