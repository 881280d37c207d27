//! Chat templates: a model's own Jinja template, rendered as `transformers` renders it.
//!
//! Same settings (`trim_blocks`, `lstrip_blocks`, loop controls), same extras (`raise_exception`, `strftime_now`, a
//! `tojson` that prints as Python's `json.dumps`), Python's string and dict methods, and the `{% generation %}` tag,
//! which only marks text and renders its body.

use super::python;
use crate::error::{Error, Result};
use minijinja::value::ValueKind;
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
        env.add_function("strftime_now", |format: String| python::strftime(&format, unix_now()));
        env.add_filter("tojson", python::tojson);
        env.add_filter("string", |value: Value| python::text(&value));
        env.add_filter("trim", |value: Value, chars: Option<String>| match chars {
            Some(chars) => python::text(&value).trim_matches(|c| chars.contains(c)).to_owned(),
            None => python::text(&value).trim().to_owned(),
        });
        env.set_formatter(|out, _, value| out.write_str(&python::text(value)).map_err(minijinja::Error::from));
        // Jinja2 asks Python: None cannot be iterated, strings and dicts have a length and items.
        env.add_test("iterable", |v: &Value| {
            v.is_undefined() || python::has_items(v) || v.kind() == ValueKind::Iterable
        });
        env.add_test("sequence", |v: &Value| v.is_undefined() || python::has_items(v));
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
        // From behind the opening: `{%}` is no tag.
        let Some(len) = rest[at + 2..].find("%}").map(|n| n + 2) else { break };
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

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
