//! Which chat template a tokenizer gets.

use super::options::TemplateChoice;
use crate::data::text::template::ChatTemplate;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The template that `choice` means for a tokenizer of this configuration, which is `dir`'s where it came from a folder.
/// `tokens`: the special tokens that it sees.
pub(super) fn find_template(
    config: &Value,
    tokens: Vec<(String, String)>,
    dir: Option<&Path>,
    choice: &TemplateChoice,
) -> Result<Option<ChatTemplate>> {
    let read = |file: &Path| std::fs::read_to_string(file).map_err(Error::io(file, "read the chat template"));
    let (source, origin) = match choice {
        TemplateChoice::None => return Ok(None),
        TemplateChoice::File(file) => (read(file)?, file.clone()),
        TemplateChoice::Auto => {
            let file = dir.map(|d| d.join("chat_template.jinja")).filter(|f| f.is_file());
            match (file, dir) {
                (Some(file), _) => (read(&file)?, file),
                (None, Some(dir)) => match config_template(config) {
                    Some(source) => (source, dir.join("tokenizer_config.json")),
                    None => return Ok(None),
                },
                (None, None) => return Ok(None),
            }
        }
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
