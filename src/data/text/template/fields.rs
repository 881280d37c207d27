//! `str.format` and `str.format_map`, as Jinja2's sandbox runs them.

use super::attr::{get_attr, get_item};
use super::fault::{Fault, Res, raise};
use super::ops::item;
use super::percent::ascii;
use super::repr::{repr, text};
use super::spec::format;
use super::value::{Args, Machine, Str, Value};

/// `text.format(...)`
pub fn format_text(m: &dyn Machine, text: &Str, args: Args, map: bool) -> Res<Value> {
    if text.safe {
        return Err(Fault::refused("format() of an escaped text"));
    }
    let mapping = match map {
        true if !args.kw.is_empty() => return raise("TypeError: format_map() takes no keyword arguments"),
        true if args.pos.len() != 1 => return raise("TypeError: format_map() takes exactly one argument"),
        true => Some(args.pos[0].clone()),
        false => None,
    };
    let mut fields = Fields { m, args, mapping, auto: Some(0) };
    fields.all(&text.text, 3).map(Value::str)
}

struct Fields<'a> {
    m: &'a dyn Machine,
    args: Args,
    mapping: Option<Value>,
    /// The number of the next field without one; `None` where fields have numbers.
    auto: Option<usize>,
}

impl Fields<'_> {
    fn all(&mut self, source: &str, depth: u32) -> Res<String> {
        if depth == 0 {
            return raise("ValueError: Max string recursion exceeded");
        }
        let mut out = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return raise("ValueError: Single '}' encountered in format string");
            }
            let (field, after) = matching(rest)?;
            rest = after;
            out.push_str(&self.one(field, depth)?);
            self.m.budget().grow(out.len(), 0)?;
        }
        out.push_str(rest);
        self.m.budget().grow(out.len(), 0)?;
        Ok(out)
    }

    fn one(&mut self, field: &str, depth: u32) -> Res<String> {
        let mut square = false;
        let end = field.find(|c| {
            match c {
                '[' => square = true,
                ']' => square = false,
                '{' => return true,
                _ => {}
            }
            !square && matches!(c, '!' | ':')
        });
        let (name, mut rest) = field.split_at(end.unwrap_or(field.len()));
        if rest.starts_with('{') {
            return raise("ValueError: unexpected '{' in field name");
        }
        let mut conversion = None;
        if let Some(after) = rest.strip_prefix('!') {
            conversion = after.chars().next();
            rest = &after[conversion.map_or(0, char::len_utf8)..];
            if conversion.is_none() || !(rest.is_empty() || rest.starts_with(':')) {
                return raise("ValueError: expected ':' after conversion specifier");
            }
        }
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::str(text(self.m, &value)?),
            Some('r') => Value::str(repr(self.m, &value)?),
            Some('a') => Value::str(ascii(&repr(self.m, &value)?)),
            Some(c) => return raise(format!("ValueError: Unknown conversion specifier {c}")),
        };
        let spec = self.all(rest.strip_prefix(':').unwrap_or(""), depth - 1)?;
        format(self.m, &value, &spec)
    }

    /// What a field's name stands for: an argument, then members and attributes of it.
    fn value(&mut self, name: &str) -> Res<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let number =
            |text: &str| text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse::<usize>().ok()).flatten();
        let mut value = match number(first) {
            None if name.is_empty() => {
                let Some(at) = self.auto else {
                    return raise("ValueError: cannot switch from manual field specification to automatic");
                };
                self.auto = Some(at + 1);
                self.place(at)?
            }
            Some(at) if !first.is_empty() => {
                if self.auto.is_some_and(|n| n > 0) && first == name {
                    return raise("ValueError: cannot switch from automatic field numbering to manual");
                }
                if first == name {
                    self.auto = None;
                }
                self.place(at)?
            }
            _ => self.named(first)?,
        };
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (attr, after) = after.split_at(end);
                if attr.is_empty() {
                    return raise("ValueError: Empty attribute in format string");
                }
                value = get_attr(self.m, &value, attr)?;
                rest = after;
                continue;
            }
            let Some((key, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) else {
                return raise("ValueError: Missing ']' in format string");
            };
            if key.is_empty() {
                return raise("ValueError: Empty attribute in format string");
            }
            if !(after.is_empty() || after.starts_with(['.', '['])) {
                return raise("ValueError: Only '.' or '[' may follow ']' in format field specifier");
            }
            let key = number(key).map_or_else(|| Value::str(key), |n| Value::Int(n as i64));
            value = get_item(self.m, &value, &key)?;
            rest = after;
        }
        Ok(value)
    }

    fn place(&self, at: usize) -> Res<Value> {
        match self.args.pos.get(at).filter(|_| self.mapping.is_none()) {
            Some(value) => Ok(value.clone()),
            None => raise("IndexError: Replacement index out of range for positional args tuple"),
        }
    }

    fn named(&self, name: &str) -> Res<Value> {
        let found = match &self.mapping {
            Some(mapping) => item(self.m, mapping, &Value::str(name))?,
            None => self.args.kw.iter().find(|(n, _)| **n == *name).map(|(_, v)| v.clone()),
        };
        match found {
            Some(value) => Ok(value),
            None => raise(format!("KeyError: '{name}'")),
        }
    }
}

/// A field up to its closing brace, and what stands behind.
fn matching(text: &str) -> Res<(&str, &str)> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Ok((&text[..at], &text[at + 1..]));
        }
    }
    raise("ValueError: expected '}' before end of string")
}
