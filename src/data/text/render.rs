//! Prompts for generation, and tokens made visible.

use super::tokenize::TextTokenizer;
use crate::data::input::Text;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// The conversation of one user turn.
pub fn user_turn(text: &str) -> Text {
    Text::Chat(vec![json!({"role": "user", "content": text})])
}

/// Ids of a prompt to continue: plain text as [`TextTokenizer::encode`] gives it, without a suffix such as EOS; a
/// conversation through the chat template with its generation prompt, `tools` and further variables. Errors: a conversation
/// without a template, or one that the template refuses; tools or variables that plain text has no use for.
pub fn encode_prompt(
    tok: &TextTokenizer,
    prompt: &Text,
    tools: Option<&Value>,
    variables: &Map<String, Value>,
) -> Result<Vec<u32>> {
    match prompt {
        Text::Plain(_) if tools.is_some() || !variables.is_empty() => Err(Error::file(
            &tok.path,
            "a plain prompt has no use for `tools` or `chat_template_kwargs`, which go to a chat template; give messages, or \
             `options.wrap_prompts`",
        )),
        Text::Plain(text) => {
            let mut ids = tok.prefix().to_vec();
            ids.extend(tok.encode_bare(text)?);
            Ok(ids)
        }
        Text::Chat(messages) => {
            let template = tok.template.as_ref().ok_or_else(|| {
                Error::file(
                    &tok.path,
                    "has no chat template for a conversation; give one with `options.chat_template`, a file or chatml, zephyr or alpaca",
                )
            })?;
            let text = template.render(messages, true, tools, variables).map_err(|why| Error::file(&tok.path, why))?;
            tok.encode_bare(&text)
        }
    }
}

/// Tokens with their borders: `|` between tokens, special tokens in double brackets, line ends and control characters
/// escaped. A token that ends inside a character shows as `·`.
pub fn visible(tok: &TextTokenizer, ids: &[u32]) -> Result<String> {
    let pieces = tok.pieces(ids)?;
    let show = |(id, piece): (&u32, &String)| {
        let text = piece.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
        match () {
            () if tok.is_special(*id) => format!("⟦{}⟧", if text.is_empty() { id.to_string() } else { text }),
            () if text.is_empty() => "·".to_owned(),
            () => text,
        }
    };
    Ok(ids.iter().zip(&pieces).map(show).collect::<Vec<_>>().join("|"))
}
