//! What stands before an answer in the shapes that name who speaks: a dialogue, or a request.

use super::columns::Columns;
use super::json_row::kind;
use super::messages::{self, assistant, is_assistant, messages, user};
use super::row::{Body, Response, Text};
use serde_json::Value;

const REQUESTS: [&str; 4] = ["instruction", "question", "query", "input"];

pub(super) fn requests(c: &Columns) -> impl Iterator<Item = &'static str> {
    // Beside an instruction, `input` is what it is about.
    let text = |n: &str| c.get(n).is_some_and(|v| v.is_string() || v.is_array());
    REQUESTS.into_iter().filter(move |n| if *n == "input" { text(n) && !c.has("instruction") } else { c.has(n) })
}

pub(super) fn has_request(c: &Columns) -> bool {
    requests(c).next().is_some()
}

/// `NAME` alone of `names`, or an error that names two.
pub(super) fn only(mut names: impl Iterator<Item = &'static str>, what: &str) -> Result<&'static str, String> {
    match (names.next(), names.next()) {
        (Some(a), Some(b)) => Err(format!(
            "both `{a}` and `{b}` could be the {what}; leave one out (`options.map` {b}=) or name it (`options.map` \
             {}=COLUMN)",
            if what == "request" { "prompt" } else { "completion" }
        )),
        (Some(name), None) => Ok(name),
        _ => Err(format!("no column holds the {what}")),
    }
}

/// What stands before an answer: its column, and the turns.
pub(super) type Before = (&'static str, Vec<Value>);

/// The request and the turns before it, taken out.
pub(super) fn request(c: &mut Columns) -> Result<Before, String> {
    let name = only(requests(c), "request")?;
    let mut turns = history(c)?;
    let asked = match c.need(name)? {
        Value::String(text) => text,
        other => match messages(other, name)? {
            Ok(list) => return Ok((name, [turns, list].concat())),
            Err(other) => return Err(format!("`{name}` must be a string, found {}", kind(&other))),
        },
    };
    let about = if name == "instruction" { c.text("input")?.unwrap_or_default() } else { String::new() };
    let text = [asked, about].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
    if text.is_empty() {
        return Err(format!("`{name}` is empty"));
    }
    turns.push(user(text));
    Ok((name, turns))
}

/// Alpaca's `history`: a list of [request, answer].
fn history(c: &mut Columns) -> Result<Vec<Value>, String> {
    let no = || "`history` must be a list of [request, answer], each a string".to_owned();
    let value = match c.take("history")? {
        None => return Ok(Vec::new()),
        Some(Value::String(s)) if s.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::String(s)) => serde_json::from_str(&s).map_err(|_| no())?,
        Some(other) => other,
    };
    let Value::Array(exchanges) = value else { return Err(no()) };
    let mut turns = Vec::with_capacity(2 * exchanges.len());
    for exchange in exchanges {
        match exchange.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(said)]) => {
                turns.extend([user(asked.as_str()), assistant(said.as_str())])
            }
            _ => return Err(no()),
        }
    }
    Ok(turns)
}

/// What stands before a pair's halves that are answers alone: a dialogue, or a request.
pub(super) fn before(c: &mut Columns, responses: &[Response]) -> Result<Option<Before>, String> {
    if let Some(name) = dialogues(c)? {
        let turns = messages::dialogue(c.need(name)?, name)?;
        return match turns.last() {
            Some(last) if is_assistant(last) => Err(format!(
                "`{name}` ends with the assistant's turn, and the answers stand beside it; leave it out (`options.map` \
                 {name}=) or end it before them"
            )),
            _ => Ok(Some((name, turns))),
        };
    }
    let Some(name) = requests(c).next() else { return Ok(None) };
    let transcript = |r: &Response| match &r.body {
        Body::Text(Text::Plain(t)) => t.contains("\n\nHuman:") && t.contains("\n\nAssistant:"),
        _ => false,
    };
    if responses.iter().all(transcript) {
        return Err(format!(
            "the answers are whole transcripts (Human:, Assistant:), and `{name}` could be their prompt too; leave it out \
             (`options.map` {name}=)"
        ));
    }
    request(c).map(Some)
}

/// The column of a dialogue, if there is one.
pub(super) fn dialogues(c: &mut Columns) -> Result<Option<&'static str>, String> {
    let mut found = None;
    for name in ["messages", "conversations", "conversation"] {
        let Some(value) = c.get(name) else { continue };
        match found {
            None => found = Some(name),
            Some(first) if c.get(first) == Some(value) => c.drop(name),
            Some(first) => {
                return Err(format!(
                    "`{first}` and `{name}` hold different dialogues; leave one out (`options.map` {name}=)"
                ));
            }
        }
    }
    Ok(found)
}
