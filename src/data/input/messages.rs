//! Message lists, checked and brought to `role` and `content`: from ShareGPT's `from` and `value` too, and from one message
//! that stands for a list.

use super::integers;
use super::json_row::kind;
use serde_json::{Map, Value, json};

/// A message list, if `value` is one or a single message. Errors: messages that no template could render as they are meant.
pub(super) fn messages(value: Value, name: &str) -> Result<Result<Vec<Value>, Value>, String> {
    let mut list = match value {
        Value::Array(list) if list.iter().all(Value::is_object) => list,
        Value::Object(map) if ["role", "from"].iter().any(|k| map.contains_key(*k)) => vec![Value::Object(map)],
        other => return Ok(Err(other)),
    };
    for (i, message) in list.iter_mut().enumerate() {
        if let Value::Object(map) = message {
            spoken(map).and_then(|()| check(map)).map_err(|why| format!("message {i} of `{name}` {why}"))?;
        }
    }
    Ok(Ok(list))
}

/// A message list in a column that holds nothing else, where it may be written as JSON text.
pub(super) fn dialogue(value: Value, name: &str) -> Result<Vec<Value>, String> {
    let value = match value {
        Value::String(text) if text.trim_start().starts_with('[') => {
            integers::value(&text).map_err(|e| format!("`{name}` is not JSON: {e}"))?
        }
        other => other,
    };
    match messages(value, name)? {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(format!("`{name}` is empty")),
        Err(other) => Err(format!("`{name}` must be a list of messages, found {}", kind(&other))),
    }
}

pub(super) fn user(text: impl Into<Value>) -> Value {
    json!({"role": "user", "content": text.into()})
}

pub(super) fn assistant(text: impl Into<Value>) -> Value {
    json!({"role": "assistant", "content": text.into()})
}

pub(super) fn is_assistant(message: &Value) -> bool {
    message["role"] == "assistant"
}

/// Whether two messages say the same: a null key is an absent one.
pub fn same_turn(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let within = |x: &Map<String, Value>, y: &Map<String, Value>| {
        x.iter().all(|(key, value)| value.is_null() || y.get(key) == Some(value))
    };
    within(a, b) && within(b, a)
}

/// Whether the message is text and that text says `text`, but for spaces around it.
pub(super) fn says(message: &Value, text: &str) -> bool {
    match &message["content"] {
        Value::String(content) => content.trim() == text.trim(),
        Value::Array(parts) => {
            let all: Option<String> = parts.iter().map(|p| p["text"].as_str()).collect();
            all.is_some_and(|all| all.trim() == text.trim())
        }
        _ => false,
    }
}

/// Whether the messages say, call or think anything.
pub(super) fn say_something(messages: &[Value]) -> bool {
    let part = |p: &Value| p["type"] != "text" || p["text"].as_str().is_none_or(|t| !t.is_empty());
    let filled = |v: &Value| match v {
        Value::Null => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    messages.iter().any(|m| match &m["content"] {
        Value::String(s) if !s.is_empty() => true,
        Value::Array(parts) if parts.iter().any(part) => true,
        _ => {
            ["tool_calls", "function_call", "reasoning_content", "thinking", "reasoning"].iter().any(|k| filled(&m[*k]))
        }
    })
}

/// Parts of a message that a text model cannot take in.
const MEDIA: [&str; 10] = [
    "image",
    "image_url",
    "input_image",
    "video",
    "video_url",
    "input_video",
    "audio",
    "audio_url",
    "input_audio",
    "file",
];

fn check(message: &Map<String, Value>) -> Result<(), String> {
    if !message.get("role").is_some_and(Value::is_string) {
        return Err("has no `role` string; messages are {\"role\", \"content\"}".into());
    }
    let content = message.get("content");
    if !content.is_some_and(|c| c.is_string() || c.is_array() || c.is_null()) && !message.contains_key("tool_calls") {
        return Err("has no `content` string; messages are {\"role\", \"content\"}".into());
    }
    let parts = content.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    match parts.iter().filter_map(|p| p["type"].as_str()).find(|t| MEDIA.contains(t)) {
        Some(media) => Err(format!("holds a part of type `{media}`, which a text model cannot take in")),
        None => Ok(()),
    }
}

/// `from` and `value` to `role` and `content`; what is there already stays.
fn spoken(message: &mut Map<String, Value>) -> Result<(), String> {
    if !message.contains_key("from") || message.contains_key("role") {
        return Ok(());
    }
    let Some(from) = message.get("from").and_then(Value::as_str) else {
        return Err("has no `from` string; such messages are {\"from\", \"value\"}".into());
    };
    let (role, call) = match from {
        "human" | "user" | "prompter" => ("user", false),
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => ("assistant", false),
        "system" => ("system", false),
        "observation" | "tool" | "tool_response" | "function_response" => ("tool", false),
        "function_call" | "tool_call" => ("assistant", true),
        other => {
            return Err(format!(
                "is from \"{}\"; known are human, gpt, system, function_call, observation and tool",
                other.escape_debug()
            ));
        }
    };
    // In their places, so that a template that lists the keys sees the usual order.
    let mut out = Map::with_capacity(message.len());
    for (key, value) in std::mem::take(message) {
        match key.as_str() {
            "from" => drop(out.insert("role".into(), role.into())),
            "value" if call => {
                out.insert("content".into(), "".into());
                out.insert("tool_calls".into(), tool_calls(&value)?);
            }
            "value" => drop(out.insert("content".into(), value)),
            _ => drop(out.insert(key, value)),
        }
    }
    *message = out;
    Ok(())
}

/// Calls as ShareGPT writes them, `{"name", "arguments"}` as JSON text, one or a list, in OpenAI's form.
fn tool_calls(value: &Value) -> Result<Value, String> {
    let no = || "is a call that is not {\"name\", \"arguments\"} as JSON".to_owned();
    let parsed = match value {
        Value::String(text) => integers::value(text).map_err(|_| no())?,
        other => other.clone(),
    };
    let calls = match parsed {
        Value::Array(calls) if !calls.is_empty() => calls,
        one => vec![one],
    };
    let one = |mut call: Value| {
        if call["function"]["name"].is_string() {
            return Ok(call);
        }
        let (Some(name), Some(map)) = (call["name"].as_str().map(str::to_owned), call.as_object_mut()) else {
            return Err(no());
        };
        let arguments = map.remove("arguments").or_else(|| map.remove("parameters")).unwrap_or_else(|| json!({}));
        Ok(json!({"type": "function", "function": {"name": name, "arguments": arguments}}))
    };
    calls.into_iter().map(one).collect::<Result<Vec<_>, _>>().map(Value::Array)
}
