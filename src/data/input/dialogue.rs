//! Prompts and responses of a row, checked and brought to one form.

use super::json_row::kind;
use super::messages::{assistant, is_assistant, messages, same_turn, say_something, says, user};
use super::row::{Body, Prompt, Response, Text, Unusable};
use serde_json::Value;

pub(super) fn prompt(value: Value, name: &str) -> Result<Text, String> {
    match value {
        Value::String(text) => Ok(Text::Plain(text)),
        other => match messages(other, name)? {
            Ok(list) => Ok(Text::Chat(list)),
            Err(other) => Err(format!("`{name}` must be a string or a list of messages, found {}", kind(&other))),
        },
    }
}

pub(super) fn answer(value: Value, name: &str) -> Result<Body, String> {
    match value {
        Value::String(text) if text.is_empty() => Ok(Body::Unusable(Unusable::Empty)),
        Value::String(text) => Ok(Body::Text(Text::Plain(text))),
        other => Ok(match messages(other, name)? {
            Ok(list) => body_of_chat(list),
            Err(_) => Body::Unusable(Unusable::NotText),
        }),
    }
}

pub(super) fn body_of_chat(messages: Vec<Value>) -> Body {
    if say_something(&messages) { Body::Text(Text::Chat(messages)) } else { Body::Unusable(Unusable::Empty) }
}

/// Brings prompt and responses to one form: a whole dialogue that repeats the prompt loses it, a string beside messages
/// becomes the message it stands for. Errors where the row says two different things.
pub(super) fn join(prompt: Text, responses: &mut [Response]) -> Result<Prompt, String> {
    let turns = match prompt {
        Text::Plain(text) if responses.iter().any(|r| r.chat().is_some()) => shared_prompt(text, responses)?,
        Text::Plain(text) => return Ok(Prompt::Text(Text::Plain(text))),
        Text::Chat(turns) => {
            let begins = |m: &Vec<Value>| m.len() >= turns.len() && same_start(m, &turns) == turns.len();
            if !turns.is_empty() && responses.iter().filter_map(Response::chat).all(begins) {
                cut(responses, turns.len());
            }
            turns
        }
    };
    answers_as_messages(responses);
    Ok(Prompt::Text(Text::Chat(turns)))
}

/// Responses that are strings become the assistant's messages.
pub(super) fn answers_as_messages(responses: &mut [Response]) {
    for r in responses {
        if let Body::Text(Text::Plain(text)) = &mut r.body {
            r.body = Body::Text(Text::Chat(vec![assistant(std::mem::take(text))]));
        }
    }
}

/// Takes the first `n` messages off every dialogue; one that says no more is empty.
fn cut(responses: &mut [Response], n: usize) {
    for r in responses {
        if let Body::Text(Text::Chat(messages)) = &mut r.body {
            let rest = if messages.len() > n { messages.split_off(n) } else { Vec::new() };
            r.body = body_of_chat(rest);
        }
    }
}

/// Messages that `a` and `b` begin with in common.
fn same_start(a: &[Value], b: &[Value]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| same_turn(a, b)).count()
}

/// The prompt where it is a string and responses are messages. Whole dialogues repeat it: all that they share is the
/// prompt then, as TRL has it, and the string must be one of the user's turns in it. Where they begin with the assistant's
/// turn, the string is the user's turn before them. Takes the prompt off the dialogues.
fn shared_prompt(text: String, responses: &mut [Response]) -> Result<Vec<Value>, String> {
    let asked = |m: &Value| m["role"] == "user" && says(m, &text);
    let whole = |m: &[Value]| m.first().is_some_and(|m| !is_assistant(m));
    // A dialogue that ends with the prompt has no answer.
    for r in responses.iter_mut() {
        if r.chat().is_some_and(|m| whole(m) && m.last().is_some_and(asked)) {
            r.body = Body::Unusable(Unusable::Empty);
        }
    }
    let (wholes, answers): (Vec<_>, Vec<_>) = responses.iter().filter_map(Response::chat).partition(|m| whole(m));
    if wholes.is_empty() {
        let mut turns = vec![user(text.as_str())];
        if answers.len() > 1 && answers.len() == texts(responses) {
            let shared = shared(&answers);
            turns.extend_from_slice(&answers[0][..shared]);
            cut(responses, shared);
        }
        return Ok(turns);
    }
    if !wholes.iter().all(|m| m.iter().any(asked)) {
        return Err("`prompt` is a string and a response is a dialogue that does not repeat it; \
            leave `prompt` out (`options.map` prompt=) or give it as messages"
            .into());
    }
    let mut at = shared(&wholes);
    let last_asked = wholes[0][..at].iter().rposition(asked);
    if last_asked.is_none() || !answers.is_empty() {
        return Err("the responses' dialogues begin differently; give `prompt` as messages".into());
    }
    if texts(responses) > wholes.len() {
        at = last_asked.map_or(0, |i| i + 1); // an answer by itself follows the prompt
    }
    let turns = wholes[0][..at].to_vec();
    cut(responses, at);
    Ok(turns)
}

/// Responses with a text.
fn texts(responses: &[Response]) -> usize {
    responses.iter().filter(|r| matches!(r.body, Body::Text(_))).count()
}

/// Messages that all of them begin with in common; the last of each is still the response's.
fn shared(dialogues: &[&Vec<Value>]) -> usize {
    let [first, rest @ ..] = dialogues else { return 0 };
    let common = rest.iter().map(|m| same_start(first, m)).min().unwrap_or(first.len());
    let shortest = dialogues.iter().map(|m| m.len()).min().unwrap_or(0);
    common.min(shortest.saturating_sub(1))
}
