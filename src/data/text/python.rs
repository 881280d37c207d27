//! What Python prints: `json.dumps`, `str`, `repr` and `strftime`, for chat templates.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Whether Python's `len` and indexing work: strings, lists, dicts.
pub fn has_items(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

/// `str(value)`; the empty string for an undefined one.
pub fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        _ => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let list = |open: &str, close: &str, items: Vec<String>| format!("{open}{}{close}", items.join(", "));
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::String => value.as_str().map_or_else(|| value.to_string(), quoted),
        ValueKind::Seq => list("[", "]", value.try_iter().into_iter().flatten().map(|v| repr(&v)).collect()),
        ValueKind::Map if value.as_object().is_some_and(|o| o.repr() == minijinja::value::ObjectRepr::Map) => {
            let item = |key: Value| {
                let found = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&found))
            };
            list("{", "}", value.try_iter().into_iter().flatten().map(item).collect())
        }
        _ => value.to_string(),
    }
}

/// `repr` of a string.
fn quoted(s: &str) -> String {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Python's `json.dumps(x, ensure_ascii, indent, separators, sort_keys)`, which does not escape HTML.
pub fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let json =
        serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
    let ascii: bool = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent: Option<Value> = kwargs.get("indent")?;
    let sort: bool = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let indent = match indent {
        Some(v) if v.kind() == ValueKind::Number => Some(" ".repeat(usize::try_from(v).unwrap_or(0))),
        Some(v) if v.kind() == ValueKind::String => v.as_str().map(str::to_owned),
        _ => None,
    };
    let default = if indent.is_some() { (",", ": ") } else { (", ", ": ") };
    let (item, key) = match &separators {
        Some(s) if s.len() == 2 => (s[0].as_str(), s[1].as_str()),
        _ => default,
    };
    let mut out = String::new();
    Dumps { ascii, indent, sort, item, key }.write(&json, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

struct Dumps<'a> {
    ascii: bool,
    indent: Option<String>,
    sort: bool,
    item: &'a str,
    key: &'a str,
}

impl Dumps<'_> {
    fn write(&self, value: &serde_json::Value, depth: usize, out: &mut String) {
        match value {
            serde_json::Value::String(s) => self.string(s, out),
            serde_json::Value::Array(items) => {
                self.list(['[', ']'], items.len(), depth, out, |i, out| self.write(&items[i], depth + 1, out));
            }
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort {
                    entries.sort_by_key(|(k, _)| *k);
                }
                self.list(['{', '}'], entries.len(), depth, out, |i, out| {
                    self.string(entries[i].0, out);
                    out.push_str(self.key);
                    self.write(entries[i].1, depth + 1, out);
                });
            }
            other => out.push_str(&other.to_string()),
        }
    }

    fn list(&self, ends: [char; 2], n: usize, depth: usize, out: &mut String, item: impl Fn(usize, &mut String)) {
        let newline = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(ends[0]);
        for i in 0..n {
            if i > 0 {
                out.push_str(self.item);
            }
            newline(depth + 1, out);
            item(i, out);
        }
        if n > 0 {
            newline(depth, out);
        }
        out.push(ends[1]);
    }

    fn string(&self, s: &str, out: &mut String) {
        let quoted = serde_json::Value::from(s).to_string();
        if !self.ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                let mut units = [0u16; 2];
                c.encode_utf16(&mut units).iter().for_each(|u| out.push_str(&format!("\\u{u:04x}")));
            }
        }
    }
}

/// `datetime.strftime` in UTC, for the directives templates use.
pub fn strftime(format: &str, unix: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('%') => "%".into(),
            other => {
                let what = format!("strftime_now: %{} is not supported", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}
