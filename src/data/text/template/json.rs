//! `tojson`: Python's `json.dumps(x, ensure_ascii, indent, separators, sort_keys)`, which escapes no HTML.

use super::args::given;
use super::fault::{Fault, Res, raise};
use super::iter::members;
use super::ops::sort;
use super::repr::{float, write_repr};
use super::value::{Args, Machine, Value};
use std::fmt::Write;

/// The filter.
pub fn tojson(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["x", "ensure_ascii", "indent", "separators", "sort_keys"], 1)?;
    let truth = |v: &Option<Value>| v.as_ref().map_or(Ok(false), |v| v.truth(m));
    let indent = match given(&indent) {
        None => None,
        Some(Value::Str(s)) => Some(s.text.to_string()),
        Some(v) => match v.as_index() {
            Some(n) if n > 1 << 16 => return Err(Fault::limit("tojson asks for an indent of over 65,536")),
            Some(n) => Some(" ".repeat(usize::try_from(n).unwrap_or(0))),
            None => return raise("TypeError: can't multiply sequence by a float"),
        },
    };
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(given) = given(&separators) {
        let both = members(m, given)?;
        match both.as_slice() {
            [Value::Str(i), Value::Str(k)] => (item, key) = (i.text.to_string(), k.text.to_string()),
            [_, _] => return raise("TypeError: separators must be texts"),
            _ => return raise("ValueError: separators must be two"),
        }
    }
    let dumps = Dumps { m, ascii: truth(&ascii)?, indent, sort: truth(&sort_keys)?, item, key };
    let mut out = String::new();
    dumps.write(&value.unwrap_or(Value::None), 0, &mut out)?;
    Ok(Value::str(out))
}

struct Dumps<'a> {
    m: &'a dyn Machine,
    ascii: bool,
    indent: Option<String>,
    sort: bool,
    item: String,
    key: String,
}

impl Dumps<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Res<()> {
        self.m.budget().steps(1)?;
        match value {
            Value::Str(s) => {
                self.m.budget().grow(out.len(), s.len())?;
                self.string(s, out);
            }
            Value::None => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(_) | Value::Big(_) => write_repr(self.m, value, out)?,
            Value::Float(x) => out.push_str(&number(*x)),
            Value::List(items) | Value::Tuple(items) => {
                self.list(['[', ']'], &items.items, depth, out, |v, out| self.write(v, depth + 1, out))?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<(Value, Value)> = dict.map.iter().map(|(k, v)| (k.0.clone(), v.clone())).collect();
                if self.sort {
                    entries = sort(self.m, entries, false)?;
                }
                self.list(['{', '}'], &entries, depth, out, |(k, v), out| {
                    self.string(&self.name(k)?, out);
                    out.push_str(&self.key);
                    self.write(v, depth + 1, out)
                })?;
            }
            _ => return raise(format!("TypeError: Object of type {} is not JSON serializable", value.type_name())),
        }
        Ok(())
    }

    fn name(&self, key: &Value) -> Res<String> {
        let mut out = String::new();
        match key {
            Value::Str(s) => out.push_str(s),
            Value::None => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(_) | Value::Big(_) => write_repr(self.m, key, &mut out)?,
            Value::Float(x) => out.push_str(&number(*x)),
            _ => {
                let kind = key.type_name();
                return raise(format!("TypeError: keys must be str, int, float, bool or None, not {kind}"));
            }
        }
        Ok(out)
    }

    fn list<T>(
        &self,
        ends: [char; 2],
        items: &[T],
        depth: usize,
        out: &mut String,
        mut one: impl FnMut(&T, &mut String) -> Res<()>,
    ) -> Res<()> {
        let newline = |depth: usize, out: &mut String| {
            let Some(indent) = &self.indent else { return Ok(()) };
            self.m.budget().grow(out.len(), indent.len() * depth)?;
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
            Ok(())
        };
        out.push(ends[0]);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.m.budget().grow(out.len(), self.item.len())?;
                out.push_str(&self.item);
            }
            newline(depth + 1, out)?;
            one(item, out)?;
        }
        if !items.is_empty() {
            newline(depth, out)?;
        }
        out.push(ends[1]);
        Ok(())
    }

    fn string(&self, s: &str, out: &mut String) {
        out.push('"');
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || self.ascii && !(' '..='~').contains(&c) => {
                    let mut units = [0u16; 2];
                    for unit in c.encode_utf16(&mut units) {
                        write!(out, "\\u{unit:04x}").unwrap_or_default();
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(x: f64) -> String {
    match x {
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        x => float(x),
    }
}
