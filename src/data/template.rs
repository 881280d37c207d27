//! Chat templates: a model's own Jinja template, rendered as `transformers` renders it.
//!
//! Same settings (`trim_blocks`, `lstrip_blocks`, loop controls), same extras (`raise_exception`, `strftime_now`, a
//! `tojson` that prints as Python's `json.dumps`), Python's string and dict methods, and the `{% generation %}` tag,
//! which only marks text and renders its body.

use crate::error::{Error, Result};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Map;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "chat_template";

/// A compiled chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    tokens: Vec<(String, String)>,
    sha256: [u8; 32],
}

impl ChatTemplate {
    /// Compiles `source`; `tokens` are the special tokens it sees (`bos_token`, `eos_token`, ...), `origin` the file for
    /// messages. Errors: the template's syntax, with its line.
    pub fn new(source: String, tokens: Vec<(String, String)>, origin: &Path) -> Result<Self> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: String| strftime(&format, unix_now()));
        env.add_filter("tojson", tojson);
        let sha256 = Sha256::digest(source.as_bytes()).into();
        env.add_template_owned(NAME, without_generation_tags(&source))
            .map_err(|e| Error::file(origin, format!("chat template: {}", one_line(&e))))?;
        Ok(Self { env, source, tokens, sha256 })
    }

    /// The template's text as it was read.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// SHA-256 of the template's text.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The conversation as text. `kwargs` are further variables of the row. The error is one line: what the template
    /// itself raises, or what it could not do; the caller adds the row.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        tools: Option<&serde_json::Value>,
        kwargs: &Map<String, serde_json::Value>,
    ) -> Result<String, String> {
        let template = self.env.get_template(NAME).map_err(|e| one_line(&e))?;
        let messages: Vec<serde_json::Value> = messages.iter().map(alias_reasoning).collect();
        let mut vars: Vec<(String, Value)> =
            self.tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        vars.extend(kwargs.iter().map(|(k, v)| (k.clone(), Value::from_serialize(v))));
        let own = context! {
            messages => Value::from_serialize(&messages),
            add_generation_prompt => add_generation_prompt,
            tools => tools.map_or(Value::from(()), Value::from_serialize),
            documents => Value::from(()),
        };
        let rest: Value = vars.into_iter().collect();
        template.render(context! { ..own, ..rest }).map_err(|e| format!("chat template: {}", one_line(&e)))
    }
}

/// transformers gives a message's reasoning under every name that templates read.
fn alias_reasoning(message: &serde_json::Value) -> serde_json::Value {
    let mut message = message.clone();
    if let serde_json::Value::Object(map) = &mut message {
        let found =
            ["reasoning_content", "thinking", "reasoning"].iter().find_map(|k| map.get(*k).filter(|v| !v.is_null()));
        if let Some(found) = found.cloned() {
            map.entry("thinking").or_insert_with(|| found.clone());
            map.insert("reasoning_content".into(), found);
        }
    }
    message
}

/// `{% generation %}` marks the assistant's text for loss masks; here it must only keep its whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at..].find("%}") else { break };
        let tag = &rest[at..at + len + 2];
        let inner = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..at]);
        match inner {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[at + len + 2..];
    }
    out.push_str(rest);
    out
}

fn one_line(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    format!("{}{line}", what.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Python's `json.dumps(x, ensure_ascii, indent, separators, sort_keys)`, which does not escape HTML.
fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let json = serde_json::to_value(&value)
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
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

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// `datetime.strftime` in UTC, for the directives templates use.
fn strftime(format: &str, unix: u64) -> Result<String, minijinja::Error> {
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
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
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
