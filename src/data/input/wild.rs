//! Shapes that other programs write. They name who speaks, so each becomes a conversation of the user and the assistant.
//!
//! A request is `instruction` (with `input` after it on a line of its own, as LLaMA-Factory reads Alpaca), `question`, `query`
//! or `input`; `history` stands before it. An answer is `output`, `response`, `answer` or `completion`.

use super::columns::Columns;
use super::dialogue::{answer, answers_as_messages};
use super::messages::{self, is_assistant};
use super::pairs::{pair as pair_of, scored_after};
use super::requests::{dialogues, has_request, only, request};
use super::row::{Pairs, Prompt, Response, Row, Text};
use super::turns;
use super::values::{verdict, weight};
use serde_json::Value;

const ANSWERS: [&str; 4] = ["output", "response", "answer", "completion"];
/// Names of a pair's halves beside `chosen` and `rejected`.
const PAIRS: [(&str, &str); 5] = [
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
    ("response", "rejected_response"),
];

fn pair_names(c: &Columns) -> Option<(&'static str, &'static str)> {
    PAIRS.into_iter().find(|(a, b)| c.has_all(&[a, b]))
}

fn swift(c: &Columns) -> bool {
    c.has_all(&["messages", "rejected_response"])
}

pub(super) fn is_pair(c: &Columns) -> bool {
    swift(c) || pair_names(c).is_some() && (has_request(c) || c.has("prompt") || c.has("input"))
}

pub(super) fn pair(c: &mut Columns) -> Result<Row, String> {
    if swift(c) {
        return rejected_response(c);
    }
    let (chosen, rejected) = pair_names(c).ok_or("no pair")?;
    if !chosen.starts_with("preferred") || !c.get("input").is_some_and(Value::is_object) {
        return pair_of(c, chosen, rejected);
    }
    // OpenAI's: the request is an object with messages and tools.
    let Value::Object(mut input) = c.need("input")? else { return Err("`input` must be an object".into()) };
    let turns = messages::dialogue(input.remove("messages").unwrap_or_default(), "input.messages")?;
    let tools = input.remove("tools").filter(|t| t.as_array().is_none_or(|list| !list.is_empty()));
    let weight = weight(c)?;
    let mut responses = Vec::with_capacity(2);
    for (i, name) in [chosen, rejected].into_iter().enumerate() {
        responses.push(Response::new(i, answer(c.need(name)?, name)?));
    }
    answers_as_messages(&mut responses);
    let prompt = Prompt::Text(Text::Chat(turns));
    Ok(Row { tools, ..Row::new(["input", chosen, rejected], prompt, responses, Pairs::Given { weight }) })
}

/// A dialogue whose last answer is the chosen one, and the rejected one by itself.
fn rejected_response(c: &mut Columns) -> Result<Row, String> {
    let weight = weight(c)?;
    let mut turns = messages::dialogue(c.need("messages")?, "messages")?;
    let chosen = match turns.pop() {
        Some(last) if is_assistant(&last) => answer(Value::Array(vec![last]), "messages")?,
        _ => return Err("the last of `messages` must be the assistant's: it is what is preferred".into()),
    };
    let rejected = answer(c.need("rejected_response")?, "rejected_response")?;
    let mut responses = vec![Response::new(0, chosen), Response::new(1, rejected)];
    answers_as_messages(&mut responses);
    let shape = ["messages", "rejected_response", ""];
    Ok(Row::new(shape, Prompt::Text(Text::Chat(turns)), responses, Pairs::Given { weight }))
}

fn ratings(c: &Columns) -> Option<&'static str> {
    ["ratings", "rating"].into_iter().find(|n| c.has(n))
}

pub(super) fn is_scored(c: &Columns) -> bool {
    c.has("generations") && ratings(c).is_some() && (has_request(c) || c.has("prompt"))
}

/// distilabel's answers with their ratings.
pub(super) fn scored(c: &mut Columns) -> Result<Row, String> {
    let rated = ratings(c).ok_or("no ratings")?;
    if c.has("prompt") {
        let prompt = super::dialogue::prompt(c.need("prompt")?, "prompt")?;
        return scored_after(c, ["prompt", "generations", rated], prompt);
    }
    let (name, turns) = request(c)?;
    scored_after(c, [name, "generations", rated], Text::Chat(turns))
}

/// `messages` or `conversations`: what is learned is the assistant's.
pub(super) fn dialogue(c: &mut Columns) -> Result<Row, String> {
    let label = verdict(c)?;
    let name = dialogues(c)?.ok_or("no dialogue")?;
    let all = messages::dialogue(c.need(name)?, name)?;
    let shape = [name, if label.is_some() { "label" } else { "" }, ""];
    if c.every_turn && label.is_none() {
        turns::every(c, shape, all, name)
    } else {
        turns::last(shape, all, label, name)
    }
}

pub(super) fn is_demonstration(c: &Columns) -> bool {
    has_request(c) && ANSWERS.iter().any(|n| c.has(n))
}

/// A request and its answer; a list of two answers is a pair, the better first.
pub(super) fn demonstration(c: &mut Columns) -> Result<Row, String> {
    let label = verdict(c)?;
    let name = only(ANSWERS.into_iter().filter(|n| c.has(n)), "answer")?;
    let (asked, turns) = request(c)?;
    let value = c.need(name)?;
    let mut responses = match value {
        Value::Array(two) if two.len() == 2 && two.iter().all(Value::is_string) => {
            let bodies = two.into_iter().map(|v| answer(v, name)).collect::<Result<Vec<_>, _>>()?;
            bodies.into_iter().enumerate().map(|(i, b)| Response::new(i, b)).collect()
        }
        one => vec![Response { label, ..Response::new(0, answer(one, name)?) }],
    };
    answers_as_messages(&mut responses);
    let prompt = Prompt::Text(Text::Chat(turns));
    if responses.len() == 2 {
        if label.is_some() {
            return Err(format!("`{name}` holds two answers and a label judges one"));
        }
        return Ok(Row::new([asked, name, ""], prompt, responses, Pairs::Given { weight: weight(c)? }));
    }
    let shape = [asked, name, if label.is_some() { "label" } else { "" }];
    match (c.every_turn && label.is_none(), prompt) {
        (true, Prompt::Text(Text::Chat(turns))) if responses[0].chat().is_some() => {
            let answer = responses[0].chat().cloned().unwrap_or_default();
            turns::every(c, shape, [turns, answer].concat(), name)
        }
        (_, prompt) => Ok(Row::new(shape, prompt, responses, Pairs::None)),
    }
}
