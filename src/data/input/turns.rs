//! Which of the assistant's turns a demonstration teaches: the last one, or every one.

use super::columns::Columns;
use super::dialogue::body_of_chat;
use super::messages::is_assistant;
use super::row::{Pairs, Prompt, Response, Row, Text, Turn};
use serde_json::Value;

/// Takes OpenAI's `weight` off a message: whether it is learned.
fn learned(message: &mut Value, name: &str) -> Result<bool, String> {
    let Some(map) = message.as_object_mut() else { return Ok(true) };
    match map.get("weight").map(|w| (w.is_null(), w.as_f64())) {
        None => Ok(true),
        Some((null, weight)) if null || weight == Some(0.0) || weight == Some(1.0) => {
            map.shift_remove("weight");
            Ok(weight != Some(0.0))
        }
        Some(_) => Err(format!("a message of `{name}` has a `weight` that is neither 0 nor 1")),
    }
}

/// The row of a dialogue whose last turn, the assistant's, is learned.
pub(super) fn last(
    shape: [&'static str; 3],
    mut turns: Vec<Value>,
    label: Option<bool>,
    name: &str,
) -> Result<Row, String> {
    let mut learn = true;
    for message in &mut turns {
        learn = learned(message, name)?;
    }
    match turns.pop() {
        Some(last) if is_assistant(&last) && learn => {
            let answer = Response { label, ..Response::new(0, body_of_chat(vec![last])) };
            Ok(Row::new(shape, Prompt::Text(Text::Chat(turns)), vec![answer], Pairs::None))
        }
        Some(last) if is_assistant(&last) => Err(format!(
            "the last of `{name}` has weight 0, which says not to learn it; `options.assistant_turns` all learns the others"
        )),
        _ => Err(format!("the last of `{name}` must be the assistant's: it is what is learned")),
    }
}

/// The row of a dialogue of which every turn of the assistant's is learned, but for those of weight 0. What stands behind the
/// last of them plays no part.
pub(super) fn every(c: &mut Columns, shape: [&'static str; 3], turns: Vec<Value>, name: &str) -> Result<Row, String> {
    let mut row = Row::new(shape, Prompt::Text(Text::Chat(Vec::new())), Vec::new(), Pairs::None);
    split(c, &mut row, turns, 0, name)?;
    Ok(row)
}

/// A completion of several turns is learned turn by turn as well; its prompt is not.
pub(super) fn of_completion(c: &mut Columns, row: &mut Row) -> Result<(), String> {
    let (Pairs::None, Prompt::Text(Text::Chat(prompt)), [only]) = (row.pairs, &row.prompt, &row.responses[..]) else {
        return Ok(());
    };
    if only.label.is_some() {
        return Ok(());
    }
    let Some(messages) = only.chat().filter(|m| m.iter().any(is_assistant)) else { return Ok(()) };
    let (from, turns) = (prompt.len(), [&prompt[..], messages].concat());
    split(c, row, turns, from, "completion")
}

fn split(c: &mut Columns, row: &mut Row, mut turns: Vec<Value>, from: usize, name: &str) -> Result<(), String> {
    let mut found = Vec::new();
    let mut place = 0;
    for (i, message) in turns.iter_mut().enumerate() {
        let learn = learned(message, name)?;
        if is_assistant(message) && i >= from {
            found.extend(learn.then_some((i, place)));
            place += 1;
        }
    }
    let turn = |&(at, place): &(usize, usize)| Turn {
        prompt: turns[..at].to_vec(),
        response: Response { label: Some(true), ..Response::new(place, body_of_chat(vec![turns[at].clone()])) },
    };
    let mut all = found.iter().map(turn);
    let Some(first) = all.next() else {
        return Err(format!("no turn of the assistant's in `{name}` is to be learned"));
    };
    row.prompt = Prompt::Text(Text::Chat(first.prompt));
    row.responses = vec![first.response];
    c.further = Some(all.collect());
    Ok(())
}

/// The first turn's row, and one for each of `further`.
pub(super) fn rows(first: Row, further: Vec<Turn>) -> Vec<Row> {
    let more = further.into_iter().map(|turn| Row {
        shape: first.shape,
        prompt: Prompt::Text(Text::Chat(turn.prompt)),
        responses: vec![turn.response],
        pairs: Pairs::None,
        tools: first.tools.clone(),
        template_kwargs: first.template_kwargs.clone(),
        ignored: Vec::new(),
    });
    let more: Vec<Row> = more.collect();
    let mut rows = vec![first];
    rows.extend(more);
    rows
}
