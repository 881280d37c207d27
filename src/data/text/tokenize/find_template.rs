//! Which chat template a tokenizer gets.

use super::options::TemplateChoice;
use crate::data::text::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::files::{self, Inside, MOST_TEXT};
use serde_json::Value;

/// The template that `choice` means for a tokenizer of this configuration, which is `dir`'s where it came from a folder.
/// `tokens`: the special tokens that it sees.
pub(super) fn find_template(
    config: &Value,
    tokens: Vec<(String, String)>,
    dir: Option<&Inside>,
    choice: &TemplateChoice,
) -> Result<Option<ChatTemplate>> {
    const FILE: &str = "chat_template.jinja";
    let asked = |e: Error| e.doing("read the chat template");
    let (source, origin) = match (choice, dir) {
        (TemplateChoice::None, _) | (TemplateChoice::Auto, None) => return Ok(None),
        // Named by the user, it may be a link to wherever.
        (TemplateChoice::File(file), _) => (files::read_text(file, MOST_TEXT).map_err(asked)?, file.clone()),
        (TemplateChoice::Auto, Some(dir)) => match dir.read_text(FILE, MOST_TEXT)? {
            Some(source) => (source, dir.path(FILE)),
            None => match config_template(config) {
                Some(source) => (source, dir.path("tokenizer_config.json")),
                None => return Ok(None),
            },
        },
    };
    ChatTemplate::new(source, tokens, &origin).map(Some)
}

/// The template of `tokenizer_config.json`: a string, or the one named `default` in a list.
fn config_template(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let pick =
                named.iter().find(|t| t["name"] == "default").or(if named.len() == 1 { named.first() } else { None });
            pick.and_then(|t| t["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    }
}
