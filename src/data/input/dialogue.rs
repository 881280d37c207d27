//! Strings and message lists of a row, checked and brought to one form.

use super::json::kind;
use super::row::{Body, Prompt, Response, Text, Unusable};
use serde_json::Value;

pub(super) fn prompt(value: Value) -> Result<Text, String> {
    match value {
        Value::String(text) => Ok(Text::Plain(text)),
        Value::Array(messages) if messages.iter().all(Value::is_object) => {
            check_messages(&messages, "prompt")?;
            Ok(Text::Chat(messages))
        }
        other => Err(format!("`prompt` must be a string or a list of messages, found {}", kind(&other))),
    }
}

pub(super) fn answer(value: Value, name: &str) -> Result<Body, String> {
    match value {
        Value::String(text) if text.is_empty() => Ok(Body::Unusable(Unusable::Empty)),
        Value::String(text) => Ok(Body::Text(Text::Plain(text))),
        Value::Array(messages) if messages.iter().all(Value::is_object) => {
            check_messages(&messages, name)?;
            Ok(body_of_chat(messages))
        }
        _ => Ok(Body::Unusable(Unusable::NotText)),
    }
}

pub(super) fn body_of_chat(messages: Vec<Value>) -> Body {
    let says_something = |m: &Value| match &m["content"] {
        Value::String(s) => !s.is_empty(),
        Value::Array(parts) => !parts.is_empty(),
        _ => m.get("tool_calls").is_some_and(|t| !t.is_null()),
    };
    if messages.iter().any(says_something) { Body::Text(Text::Chat(messages)) } else { Body::Unusable(Unusable::Empty) }
}

fn check_messages(messages: &[Value], name: &str) -> Result<(), String> {
    for (i, message) in messages.iter().enumerate() {
        if !message["role"].is_string() {
            return Err(format!(
                "message {i} of `{name}` has no `role` string; messages are {{\"role\", \"content\"}}"
            ));
        }
        let content = message.get("content").is_some_and(|c| c.is_string() || c.is_array() || c.is_null());
        if !content && message.get("tool_calls").is_none() {
            return Err(format!(
                "message {i} of `{name}` has no `content` string; messages are {{\"role\", \"content\"}}"
            ));
        }
    }
    Ok(())
}

/// Brings prompt and responses to one form: a whole dialogue that repeats the prompt loses it, a string beside messages
/// becomes the message it stands for. Errors where the row says two different things.
pub(super) fn join(prompt: Text, responses: &mut [Response]) -> Result<Prompt, String> {
    let any_chat = responses.iter().any(|r| matches!(r.body, Body::Text(Text::Chat(_))));
    let prompt = match prompt {
        Text::Plain(text) if any_chat => chat_prompt(text, responses)?,
        other => other,
    };
    let Text::Chat(turns) = prompt else {
        return Ok(Prompt::Text(prompt));
    };
    for r in responses.iter_mut() {
        if let Body::Text(Text::Plain(text)) = &r.body {
            r.body = Body::Text(Text::Chat(vec![serde_json::json!({"role": "assistant", "content": text})]));
        }
    }
    let chats =
        || responses.iter().filter_map(|r| if let Body::Text(Text::Chat(m)) = &r.body { Some(m) } else { None });
    if !turns.is_empty() && chats().all(|m| m.len() > turns.len() && m.starts_with(&turns)) {
        for r in responses {
            if let Body::Text(Text::Chat(messages)) = &mut r.body {
                r.body = body_of_chat(messages.split_off(turns.len()));
            }
        }
    }
    Ok(Prompt::Text(Text::Chat(turns)))
}

/// A string prompt beside message responses: the dialogue's opening up to the user turn that repeats it (as in
/// UltraFeedback-binarized), or a user turn of its own where the responses begin with the assistant's.
fn chat_prompt(text: String, responses: &[Response]) -> Result<Text, String> {
    let mut opening: Option<&[Value]> = None;
    for r in responses {
        let Body::Text(Text::Chat(messages)) = &r.body else { continue };
        let turns =
            messages.iter().position(|m| m["role"] == "user" && m["content"] == text.as_str()).map_or(0, |i| i + 1);
        if turns == 0 && messages[0]["role"] != "assistant" {
            return Err("`prompt` is a string and a response is a dialogue that does not repeat it; \
                leave `prompt` out or give it as messages"
                .into());
        }
        match opening {
            None => opening = Some(&messages[..turns]),
            Some(first) if first == &messages[..turns] => {}
            Some(_) => return Err("the responses' dialogues begin differently; give `prompt` as messages".into()),
        }
    }
    match opening {
        Some(turns) if !turns.is_empty() => Ok(Text::Chat(turns.to_vec())),
        _ => Ok(Text::Chat(vec![serde_json::json!({"role": "user", "content": text})])),
    }
}
