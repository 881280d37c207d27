//! Which chat template a tokenizer gets.

use super::options::TemplateChoice;
use crate::choice::Choice;
use crate::data::text::template::{ChatTemplate, Sources};
use crate::error::{Error, Result};
use crate::files::{self, Inside, MOST_TEXT};
use serde_json::Value;
use std::path::Path;

/// The template that `choice` means for a tokenizer of this configuration, which is `dir`'s where it came from a folder.
/// `tokens`: the special tokens that it sees.
pub(super) fn find_template(
    config: &Value,
    tokens: Vec<(String, String)>,
    dir: Option<&Inside>,
    choice: &TemplateChoice,
) -> Result<Option<ChatTemplate>> {
    let asked = |e: Error| e.doing("read the chat template");
    let (sources, origin) = match (choice, dir) {
        (TemplateChoice::None, _) | (TemplateChoice::Auto, None) => return Ok(None),
        (TemplateChoice::BuiltIn(name), _) => (Sources::One(name.source().to_owned()), name.name().into()),
        // Named by the user, it may be a link to wherever.
        (TemplateChoice::File(file), _) => {
            (Sources::One(files::read_text(file, MOST_TEXT).map_err(asked)?), file.clone())
        }
        (TemplateChoice::Auto, Some(dir)) => match from_files(dir)? {
            Some(sources) => (sources, dir.path(FILE)),
            None => match from_config(config) {
                Some(sources) => (sources, dir.path("tokenizer_config.json")),
                None => return Ok(None),
            },
        },
    };
    ChatTemplate::from_sources(sources, tokens, &origin).map(Some)
}

const FILE: &str = "chat_template.jinja";
const MORE: &str = "additional_chat_templates";

/// `chat_template.jinja` and the files of `additional_chat_templates/`, by their names; they stand before the configuration.
fn from_files(dir: &Inside) -> Result<Option<Sources>> {
    let mut named: Vec<(String, String)> = Vec::new();
    named.extend(dir.read_text(FILE, MOST_TEXT)?.map(|source| ("default".to_owned(), source)));
    for file in dir.names(MORE)? {
        let Some(name) = file.strip_suffix(".jinja") else { continue };
        let Some(source) = dir.read_text(Path::new(MORE).join(&file), MOST_TEXT)? else { continue };
        named.retain(|(other, _)| other != name);
        named.push((name.to_owned(), source));
    }
    Ok(match named.as_slice() {
        [] => None,
        [(name, source)] if name == "default" => Some(Sources::One(source.clone())),
        _ => Some(Sources::Named(named)),
    })
}

/// The template of `tokenizer_config.json`: a string, a list of named ones, or an object of them.
fn from_config(config: &Value) -> Option<Sources> {
    let pair = |name: &str, source: &Value| Some((name.to_owned(), source.as_str()?.to_owned()));
    let named: Vec<(String, String)> = match &config["chat_template"] {
        Value::String(source) => return Some(Sources::One(source.clone())),
        Value::Array(list) => list.iter().filter_map(|t| pair(t["name"].as_str()?, &t["template"])).collect(),
        Value::Object(map) => map.iter().filter_map(|(name, source)| pair(name, source)).collect(),
        _ => return None,
    };
    (!named.is_empty()).then_some(Sources::Named(named))
}
