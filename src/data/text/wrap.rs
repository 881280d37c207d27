//! Plain rows as conversations of one turn each.

use crate::data::input::{Body, Prompt, Row, Text};
use serde_json::{Value, json};

/// Makes a plain prompt the user's turn and each response the assistant's. Rows without a prompt (`text`), of messages and
/// of ids stay as they are: false. The error says why a row cannot be: its prompt is only what its responses have in common.
pub fn wrap(row: &mut Row) -> Result<bool, String> {
    let plain = |r: &Body| matches!(r, Body::Text(Text::Plain(_)));
    match &mut row.prompt {
        Prompt::Implicit if row.responses.iter().any(|r| plain(&r.body)) => {
            return Err("`options.wrap_prompts` needs a prompt, and the row has whole dialogues as text".into());
        }
        Prompt::Text(prompt @ Text::Plain(_)) => {
            let Text::Plain(text) = std::mem::replace(prompt, Text::Chat(Vec::new())) else { return Ok(false) };
            *prompt = Text::Chat(vec![turn("user", text)]);
        }
        _ => return Ok(false),
    }
    for response in &mut row.responses {
        if let Body::Text(body @ Text::Plain(_)) = &mut response.body {
            let Text::Plain(text) = std::mem::replace(body, Text::Chat(Vec::new())) else { continue };
            *body = Text::Chat(vec![turn("assistant", text)]);
        }
    }
    Ok(true)
}

fn turn(role: &str, text: String) -> Value {
    json!({"role": role, "content": text})
}
