//! A model's chat templates, and a conversation rendered through the one that `transformers` would take.

use super::exec;
use super::fault::{Fault, Kind, Res, raise};
use super::lex::tokens;
use super::parse;
use super::plain::{message, plain};
use super::run::Run;
use super::scope::{self, Template};
use super::tests::{FILTERS, NAMES};
use super::value::Value;
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Bytes of the longest template.
const MAX_SOURCE: usize = 1 << 20;

/// A model's templates as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// One.
    One(String),
    /// Several by name: `default`, `tool_use`, ...
    Named(Vec<(String, String)>),
}

/// A compiled chat template, or several by name.
pub struct ChatTemplate {
    sources: Sources,
    compiled: Vec<(String, Arc<Template>)>,
    tokens: Vec<(Arc<str>, Arc<str>)>,
    origin: PathBuf,
    sha256: [u8; 32],
    /// The template that a row brought last.
    brought: Mutex<Option<(String, Arc<Template>)>>,
}

/// Parameters of `apply_chat_template` that a row may not set: they are set already, or do something else.
const SET: [&str; 9] = [
    "conversation",
    "conversations",
    "messages",
    "self",
    "tools",
    "add_generation_prompt",
    "tokenize",
    "return_dict",
    "continue_final_message",
];
const OTHER: [&str; 8] = [
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "processing_kwargs",
];

impl ChatTemplate {
    /// Compiles `source`; `tokens` are the special tokens it sees (`bos_token`, `eos_token`, ...), `origin` the file for
    /// messages. Errors: the template's syntax, with its line.
    pub fn new(source: String, tokens: Vec<(String, String)>, origin: &Path) -> Result<Self> {
        Self::from_sources(Sources::One(source), tokens, origin)
    }

    /// [`ChatTemplate::new`] of one or several templates.
    pub fn from_sources(sources: Sources, tokens: Vec<(String, String)>, origin: &Path) -> Result<Self> {
        let all: Vec<(&str, &str)> = match &sources {
            Sources::One(source) => vec![("default", source)],
            Sources::Named(named) => named.iter().map(|(n, s)| (n.as_str(), s.as_str())).collect(),
        };
        let mut compiled = Vec::new();
        for (name, source) in &all {
            let which = if all.len() > 1 { format!("chat template `{name}`") } else { "chat template".to_owned() };
            let template = compile(source).map_err(|fault| Error::file(origin, format!("{which}: {fault}")))?;
            compiled.push(((*name).to_owned(), Arc::new(template)));
        }
        let mut digest = Sha256::new();
        match all.as_slice() {
            [(_, source)] => digest.update(source.as_bytes()),
            several => several.iter().for_each(|part| {
                digest.update(serde_json::json!([part.0, part.1]).to_string().as_bytes());
            }),
        }
        let sha256 = digest.finalize().into();
        let tokens = tokens.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        let origin = origin.to_owned();
        Ok(Self { sources, compiled, tokens, origin, sha256, brought: Mutex::new(None) })
    }

    /// The text of the template named `default`, or of the only one, as it was read.
    pub fn source(&self) -> &str {
        match &self.sources {
            Sources::One(source) => source,
            Sources::Named(named) => {
                named.iter().find(|(name, _)| name == "default").or(named.first()).map_or("", |(_, source)| source)
            }
        }
    }

    /// `chat_template` of a `tokenizer_config.json`: a text, or a list of named ones.
    pub fn to_json(&self) -> Json {
        match &self.sources {
            Sources::One(source) => source.as_str().into(),
            Sources::Named(named) => {
                named.iter().map(|(name, source)| serde_json::json!({"name": name, "template": source})).collect()
            }
        }
    }

    /// SHA-256 of the template's text; of names and texts where there are several.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The conversation as text. `tools` and `kwargs` are a row's: its tools choose the template named `tool_use` where
    /// there is one; `kwargs` are further variables, but `documents`, and `chat_template`, which names or brings another
    /// template. The error is one line: what the template itself raises, or what it could not do; the caller adds the row.
    pub fn render(
        &self,
        messages: &[Json],
        add_generation_prompt: bool,
        tools: Option<&Json>,
        kwargs: &Map<String, Json>,
    ) -> std::result::Result<String, String> {
        self.rendered(messages, add_generation_prompt, tools.filter(|t| !t.is_null()), kwargs).map_err(|fault| {
            match fault.kind {
                Kind::Raised => format!("chat template: {fault}"),
                Kind::Refused | Kind::Limit => format!("chat template {}: {fault}", self.origin.display()),
            }
        })
    }

    fn rendered(
        &self,
        messages: &[Json],
        add_generation_prompt: bool,
        tools: Option<&Json>,
        kwargs: &Map<String, Json>,
    ) -> Res<String> {
        let template = self.choose(tools.is_some(), kwargs.get("chat_template").filter(|v| !v.is_null()))?;
        let mut vars: Vec<(Arc<str>, Value)> =
            self.tokens.iter().map(|(name, text)| (name.clone(), Value::str(text.clone()))).collect();
        for (name, value) in kwargs {
            match name.as_str() {
                "chat_template" | "documents" => {}
                name if SET.contains(&name) => {
                    return raise(format!("`chat_template_kwargs` sets `{name}`, which is set already"));
                }
                name if OTHER.contains(&name) => {
                    return Err(Fault::refused(format!("`{name}` in `chat_template_kwargs`")));
                }
                name => vars.push((name.into(), plain(value)?)),
            }
        }
        let messages = messages.iter().map(|m| match m {
            Json::Object(map) => message(map),
            _ => raise("a message is not an object"),
        });
        vars.push(("messages".into(), Value::list(messages.collect::<Res<_>>()?)?));
        vars.push(("tools".into(), objects("tools", tools)?));
        vars.push(("documents".into(), objects("documents", kwargs.get("documents"))?));
        vars.push(("add_generation_prompt".into(), Value::Bool(add_generation_prompt)));
        let run = Run::new(vars);
        exec::render(&run, &template.root, template.cells)
    }

    /// The template that `transformers` takes: the one a row names or brings, else `tool_use` for tools, else the default.
    fn choose(&self, tools: bool, asked: Option<&Json>) -> Res<Arc<Template>> {
        let named = |name: &str| self.compiled.iter().find(|(n, _)| n == name).map(|(_, template)| template.clone());
        let several = matches!(self.sources, Sources::Named(_));
        if let Some(asked) = asked {
            let Json::String(asked) = asked else { return raise("`chat_template` of a row is not a text") };
            return match named(asked).filter(|_| several) {
                Some(template) => Ok(template),
                None => self.brought(asked),
            };
        }
        match named("tool_use").filter(|_| tools && several).or_else(|| named("default")) {
            Some(template) => Ok(template),
            None => {
                let names: Vec<&str> = self.compiled.iter().map(|(name, _)| name.as_str()).collect();
                raise(format!("there are several and none is named `default`: {}", names.join(", ")))
            }
        }
    }

    /// The template that a row brings, compiled once for rows that bring the same.
    fn brought(&self, source: &str) -> Res<Arc<Template>> {
        let mut last = self.brought.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, template)) = last.as_ref().filter(|(text, _)| text == source) {
            return Ok(template.clone());
        }
        let template = Arc::new(compile(source)?);
        *last = Some((source.to_owned(), template.clone()));
        Ok(template)
    }
}

/// `None`, or a list of objects.
fn objects(what: &str, json: Option<&Json>) -> Res<Value> {
    match json {
        None | Some(Json::Null) => Ok(Value::None),
        Some(list @ Json::Array(items)) if items.iter().all(Json::is_object) => plain(list),
        Some(_) => raise(format!("`{what}` must be a list of objects")),
    }
}

fn compile(source: &str) -> Res<Template> {
    if source.len() > MAX_SOURCE {
        return Err(Fault::limit(format!("longer than {} KiB", MAX_SOURCE >> 10)));
    }
    let body = parse::template(tokens(source)?)?;
    scope::resolve(body, &|filter, name| if filter { FILTERS } else { NAMES }.contains(&name))
}
