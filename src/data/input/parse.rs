//! What a row means, told by its fields alone.
//!
//! | fields | meaning |
//! |---|---|
//! | `prompt, chosen, rejected` | a pair; strings or message lists |
//! | `chosen, rejected` | a pair of whole dialogues; the prompt is what they have in common |
//! | `prompt, responses, scores` | K scored responses; equal scores make no pair |
//! | `prompt, completion` and perhaps `label` | one response, desirable or not, or plain SFT |
//! | `messages` | SFT dialogue; the last assistant turn is the response |
//! | `text` | SFT without a prompt |
//! | `prompt_ids` with `chosen_ids, rejected_ids`, `responses_ids, scores` or `completion_ids` | the same, tokenised |
//!
//! `weight` weights a row's pairs; `tools` and `chat_template_kwargs` go to the chat template. Other columns are ignored,
//! and the pack report names them.

use super::dialogue::{answer, body_of_chat, join, prompt};
use super::fields::{FieldMap, names};
use super::json::kind;
use super::row::{Body, Pairs, Prompt, Response, Row, Text, Unusable};
use serde_json::{Map, Value};

/// The shapes, for the error about an unknown one.
const SHAPES: &str = "prompt+chosen+rejected, chosen+rejected, prompt+responses+scores, prompt+completion(+label), messages, \
    text, or prompt_ids with chosen_ids+rejected_ids, responses_ids+scores or completion_ids";

/// Understands a row. The error says what is wrong with which field; the caller adds file and line.
pub fn parse(fields: Map<String, Value>, map: &FieldMap) -> Result<Row, String> {
    let mut fields = if map.0.is_empty() { fields } else { map.apply(fields)? };
    let has = |names: &[&str]| names.iter().all(|n| fields.contains_key(*n));
    let parse_shape: fn(&mut Map<String, Value>) -> Result<Row, String> = if has(&["prompt_ids"]) {
        if has(&["chosen_ids", "rejected_ids"]) {
            ids_pair
        } else if has(&["responses_ids", "scores"]) {
            ids_scored
        } else if has(&["completion_ids"]) {
            ids_completion
        } else {
            return Err(unknown(&fields));
        }
    } else if has(&["chosen", "rejected"]) {
        pair
    } else if has(&["prompt", "responses", "scores"]) {
        scored
    } else if has(&["prompt", "completion"]) {
        completion
    } else if has(&["messages"]) {
        messages
    } else if has(&["text"]) {
        text
    } else {
        return Err(unknown(&fields));
    };
    let mut row = parse_shape(&mut fields)?;
    row.tools = match fields.shift_remove("tools") {
        None | Some(Value::Null) => None,
        // Data sets keep schemas as a JSON string, because their columns cannot hold ragged objects.
        Some(Value::String(s)) => Some(serde_json::from_str(&s).map_err(|e| format!("`tools` is not JSON: {e}"))?),
        Some(other) => Some(other),
    };
    match fields.shift_remove("chat_template_kwargs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(kwargs)) => row.template_kwargs = kwargs,
        Some(other) => return Err(format!("`chat_template_kwargs` must be an object, found {}", kind(&other))),
    }
    row.ignored = fields.into_iter().map(|(name, _)| name).collect();
    Ok(row)
}

fn unknown(fields: &Map<String, Value>) -> String {
    format!(
        "unknown row shape: found {}; accepted are {SHAPES}; rename columns with `options.map` FIELD=COLUMN",
        names(fields)
    )
}

fn row(shape: &'static str, prompt: Prompt, responses: Vec<Response>, pairs: Pairs) -> Row {
    let template_kwargs = Map::new();
    Row { shape, prompt, responses, pairs, tools: None, template_kwargs, ignored: Vec::new() }
}

fn response(index: usize, body: Body) -> Response {
    Response { index: index as u32, body, score: None, label: None }
}

fn take(fields: &mut Map<String, Value>, name: &str) -> Value {
    fields.shift_remove(name).unwrap_or(Value::Null)
}

fn pair(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let weight = weight(fields)?;
    let chosen = answer(take(fields, "chosen"), "chosen")?;
    let rejected = answer(take(fields, "rejected"), "rejected")?;
    let mut responses = vec![response(0, chosen), response(1, rejected)];
    let (shape, prompt) = match fields.shift_remove("prompt") {
        Some(value) => ("prompt, chosen, rejected", join(prompt(value)?, &mut responses)?),
        None => {
            let chats = responses.iter().filter(|r| matches!(r.body, Body::Text(Text::Chat(_)))).count();
            let plain = responses.iter().filter(|r| matches!(r.body, Body::Text(Text::Plain(_)))).count();
            if chats == 1 && plain == 1 {
                return Err("`chosen` and `rejected` must both be strings or both be message lists".into());
            }
            ("chosen, rejected", Prompt::Implicit)
        }
    };
    Ok(row(shape, prompt, responses, Pairs::Given { weight }))
}

fn scored(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let weight = weight(fields)?;
    let Value::Array(items) = take(fields, "responses") else {
        return Err("`responses` must be a list".into());
    };
    let scores = scores(take(fields, "scores"), items.len(), "responses")?;
    let mut responses = Vec::with_capacity(items.len());
    for (i, (item, score)) in items.into_iter().zip(scores).enumerate() {
        responses.push(Response { score: Some(score), ..response(i, answer(item, "responses")?) });
    }
    let prompt = join(prompt(take(fields, "prompt"))?, &mut responses)?;
    Ok(row("prompt, responses, scores", prompt, responses, Pairs::FromScores { weight }))
}

fn completion(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let label = label(fields)?;
    let shape = if label.is_some() { "prompt, completion, label" } else { "prompt, completion" };
    let mut responses = vec![Response { label, ..response(0, answer(take(fields, "completion"), "completion")?) }];
    let prompt = join(prompt(take(fields, "prompt"))?, &mut responses)?;
    Ok(row(shape, prompt, responses, Pairs::None))
}

fn messages(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let Body::Text(Text::Chat(mut turns)) = answer(take(fields, "messages"), "messages")? else {
        return Err("`messages` must be a list of messages with content".into());
    };
    match turns.pop() {
        Some(last) if last["role"] == "assistant" => {
            let body = body_of_chat(vec![last]);
            Ok(row("messages", Prompt::Text(Text::Chat(turns)), vec![response(0, body)], Pairs::None))
        }
        _ => Err("the last of `messages` must be the assistant's: it is what is learned".into()),
    }
}

fn text(fields: &mut Map<String, Value>) -> Result<Row, String> {
    match answer(take(fields, "text"), "text")? {
        Body::Text(Text::Chat(_)) => Err("`text` must be a string; a message list goes into `messages`".into()),
        body => Ok(row("text", Prompt::None, vec![response(0, body)], Pairs::None)),
    }
}

fn ids_pair(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let weight = weight(fields)?;
    let responses = vec![
        response(0, ids_body(take(fields, "chosen_ids"), "chosen_ids")?),
        response(1, ids_body(take(fields, "rejected_ids"), "rejected_ids")?),
    ];
    let prompt = Prompt::Ids(ids(take(fields, "prompt_ids"), "prompt_ids")?);
    Ok(row("prompt_ids, chosen_ids, rejected_ids", prompt, responses, Pairs::Given { weight }))
}

fn ids_scored(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let weight = weight(fields)?;
    let Value::Array(items) = take(fields, "responses_ids") else {
        return Err("`responses_ids` must be a list of lists of token ids".into());
    };
    let scores = scores(take(fields, "scores"), items.len(), "responses_ids")?;
    let mut responses = Vec::with_capacity(items.len());
    for (i, (item, score)) in items.into_iter().zip(scores).enumerate() {
        responses.push(Response { score: Some(score), ..response(i, ids_body(item, "responses_ids")?) });
    }
    let prompt = Prompt::Ids(ids(take(fields, "prompt_ids"), "prompt_ids")?);
    Ok(row("prompt_ids, responses_ids, scores", prompt, responses, Pairs::FromScores { weight }))
}

fn ids_completion(fields: &mut Map<String, Value>) -> Result<Row, String> {
    let label = label(fields)?;
    let body = ids_body(take(fields, "completion_ids"), "completion_ids")?;
    let prompt = Prompt::Ids(ids(take(fields, "prompt_ids"), "prompt_ids")?);
    Ok(row("prompt_ids, completion_ids", prompt, vec![Response { label, ..response(0, body) }], Pairs::None))
}

fn weight(fields: &mut Map<String, Value>) -> Result<f32, String> {
    match fields.shift_remove("weight") {
        None | Some(Value::Null) => Ok(1.0),
        Some(value) => match value.as_f64().map(|w| w as f32) {
            Some(w) if w > 0.0 && w.is_finite() => Ok(w),
            _ => Err(format!("`weight` must be a finite number above 0, found {value}")),
        },
    }
}

fn label(fields: &mut Map<String, Value>) -> Result<Option<bool>, String> {
    match fields.shift_remove("label") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(label)) => Ok(Some(label)),
        Some(Value::Number(n)) if n.as_u64() == Some(0) || n.as_u64() == Some(1) => Ok(Some(n.as_u64() == Some(1))),
        Some(other) => Err(format!("`label` must be true or false, found {other}")),
    }
}

fn scores(value: Value, want: usize, of: &str) -> Result<Vec<f32>, String> {
    let Value::Array(items) = value else {
        return Err(format!("`scores` must be a list, found {}", kind(&value)));
    };
    if items.len() != want {
        return Err(format!("{} `scores` for {want} `{of}`; they must be as many", items.len()));
    }
    let score = |v: &Value| {
        let x = v.as_f64().or_else(|| v.as_bool().map(|b| f64::from(u8::from(b)))).map(|x| x as f32);
        x.filter(|x| x.is_finite()).ok_or_else(|| format!("`scores` holds {v}; a score must be a finite number"))
    };
    items.iter().map(score).collect()
}

fn ids(value: Value, name: &str) -> Result<Vec<u32>, String> {
    let Value::Array(items) = value else {
        return Err(format!("`{name}` must be a list of token ids, found {}", kind(&value)));
    };
    let id = |v: &Value| v.as_u64().and_then(|x| u32::try_from(x).ok());
    items.iter().map(|v| id(v).ok_or_else(|| format!("`{name}` holds {v}, which is no token id"))).collect()
}

fn ids_body(value: Value, name: &str) -> Result<Body, String> {
    let ids = ids(value, name)?;
    Ok(if ids.is_empty() { Body::Unusable(Unusable::Empty) } else { Body::Ids(ids) })
}
