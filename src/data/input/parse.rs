//! What a row means, told by its columns alone. A null column is an absent one.
//!
//! The first shape whose columns are all there counts; `docs/data.md` has them in this order with what each becomes. TRL's
//! `prompt`, `chosen`, `rejected`, `completion`, `text` are text as it stands where they are strings; the shapes of
//! [`wild`](super::wild) name who speaks, so they are conversations.
//!
//! `system` (or `system_prompt`) begins a conversation that has no system turn; `weight` weights a row's pairs; `tools` (or
//! `functions`) and `chat_template_kwargs` go to the chat template. Other columns are ignored, and the pack report names them.

use super::columns::Columns;
use super::dialogue::{answer, answers_as_messages, join, prompt};
use super::fields::FieldMap;
use super::integers;
use super::json_row::kind;
use super::messages::user;
use super::pairs::{pair, scored_after};
use super::row::{Body, Pairs, Prompt, Response, Row, Text, Turn};
use super::turns;
use super::values::{ids, ids_body, label, list, scores, weight};
use super::wild;
use serde_json::{Map, Value, json};

/// The shapes, for the error about an unknown one.
const SHAPES: &str = "prompt+chosen+rejected, chosen+rejected, prompt+responses+scores, prompt+completion(+label), messages, \
    text, or prompt_ids with chosen_ids+rejected_ids, responses_ids+scores or completion_ids";

/// What a shape makes of a row's columns.
type Parse = fn(&mut Columns) -> Result<Row, String>;

/// Understands a row. The error says what is wrong with which field; the caller adds file and line.
pub fn parse(fields: Map<String, Value>, map: &FieldMap) -> Result<Row, String> {
    Ok(understand(fields, map, false)?.0)
}

/// [`parse`], with a row for every turn of the assistant's in a demonstration that is a conversation: `index` is the place of
/// the turn among them, the prompt is everything before it. Each is labelled desirable. `None`: the row compares or judges
/// responses, so it has no such turns.
pub fn parse_turns(fields: Map<String, Value>, map: &FieldMap) -> Result<Option<Vec<Row>>, String> {
    let (row, further) = understand(fields, map, true)?;
    let judges = row.responses.iter().any(|r| r.label.is_some());
    match further {
        Some(further) => Ok(Some(turns::rows(row, further))),
        None if judges || row.pairs != Pairs::None => Ok(None),
        None => Ok(Some(vec![row])),
    }
}

fn understand(fields: Map<String, Value>, map: &FieldMap, all: bool) -> Result<(Row, Option<Vec<Turn>>), String> {
    let fields = if map.0.is_empty() { fields } else { map.apply(fields)? };
    let mut c = Columns::new(fields);
    c.every_turn = all;
    let parse_shape = shape_of(&c).ok_or_else(|| {
        format!(
            "unknown row shape: found {}; accepted are {SHAPES}; rename columns with `options.map` FIELD=COLUMN",
            c.names()
        )
    })?;
    no_media(&mut c)?;
    let mut row = parse_shape(&mut c)?;
    if all {
        turns::of_completion(&mut c, &mut row)?;
    }
    system(&mut c, &mut row)?;
    row.tools = tools(&mut c, row.tools.take())?;
    match c.take("chat_template_kwargs")? {
        None => {}
        Some(Value::Object(kwargs)) => row.template_kwargs = kwargs,
        Some(other) => return Err(format!("`chat_template_kwargs` must be an object, found {}", kind(&other))),
    }
    let further = c.further.take();
    row.ignored = c.rest();
    Ok((row, further))
}

fn shape_of(c: &Columns) -> Option<Parse> {
    if c.has("prompt_ids") {
        return match () {
            () if c.has_all(&["chosen_ids", "rejected_ids"]) => Some(ids_pair),
            () if c.has_all(&["responses_ids", "scores"]) => Some(ids_scored),
            () if c.has("completion_ids") => Some(ids_completion),
            () => None,
        };
    }
    match () {
        () if c.has_all(&["chosen", "rejected"]) => Some(|c| pair(c, "chosen", "rejected")),
        () if wild::is_pair(c) => Some(wild::pair),
        () if c.has_all(&["prompt", "responses", "scores"]) => Some(scored),
        () if wild::is_scored(c) => Some(wild::scored),
        () if c.has_all(&["prompt", "completions", "labels"]) => Some(stepwise),
        () if c.has_all(&["prompt", "completion"]) => Some(|c| completion(c, "completion")),
        () if c.has("messages") || c.has("conversations") || c.has("conversation") => Some(wild::dialogue),
        () if c.has_all(&["prompt", "response"]) => Some(|c| completion(c, "response")),
        () if wild::is_demonstration(c) => Some(wild::demonstration),
        () if chosen_alone(c) => Some(chosen),
        () if c.has_all(&["prompt", "rejected"]) => Some(|c| pair(c, "chosen", "rejected")),
        () if c.has("text") => Some(text),
        () if c.has("completion") => Some(|c| completion(c, "completion")),
        () => None,
    }
}

/// Pictures and sounds beside the text: a text model cannot take them in.
fn no_media(c: &mut Columns) -> Result<(), String> {
    for name in ["images", "image", "videos", "audios"] {
        let holds = match c.get(name) {
            None => false,
            Some(Value::Array(items)) => items.iter().any(|v| !v.is_null()),
            Some(Value::String(s)) => !s.is_empty(),
            Some(_) => true,
        };
        if holds {
            return Err(format!(
                "`{name}` holds pictures or sounds, which a text model cannot take in; leave such rows out, or that column \
                 (`options.map` {name}=) where the text stands without it"
            ));
        }
    }
    Ok(())
}

/// A system column in front of a conversation that has no system turn of its own.
fn system(c: &mut Columns, row: &mut Row) -> Result<(), String> {
    let applies = match &row.prompt {
        Prompt::Text(_) => true,
        Prompt::Implicit => row.responses.iter().all(|r| r.chat().is_some() || matches!(r.body, Body::Unusable(_))),
        Prompt::None | Prompt::Ids(_) => false,
    };
    if !applies {
        return Ok(());
    }
    let (a, b) = (c.text("system")?, c.text("system_prompt")?);
    let text = match (a, b) {
        (Some(a), Some(b)) if a != b && !a.is_empty() && !b.is_empty() => {
            return Err(
                "`system` and `system_prompt` say different things; leave one out (`options.map` system=)".into()
            );
        }
        (Some(a), b) => {
            if a.is_empty() {
                b.unwrap_or(a)
            } else {
                a
            }
        }
        (None, Some(b)) => b,
        (None, None) => return Ok(()),
    };
    if let Prompt::Text(Text::Plain(asked)) = &mut row.prompt {
        row.prompt = Prompt::Text(Text::Chat(vec![user(std::mem::take(asked))]));
        answers_as_messages(&mut row.responses);
    }
    if text.is_empty() {
        return Ok(());
    }
    let begin = |turns: &mut Vec<Value>| {
        if !turns.first().is_some_and(|m| m["role"] == "system" || m["role"] == "developer") {
            turns.insert(0, json!({"role": "system", "content": text}));
        }
    };
    match &mut row.prompt {
        Prompt::Text(Text::Chat(turns)) => begin(turns),
        Prompt::Implicit => {
            for r in &mut row.responses {
                if let Body::Text(Text::Chat(turns)) = &mut r.body {
                    begin(turns);
                }
            }
        }
        _ => {}
    }
    c.further.iter_mut().flatten().for_each(|turn| begin(&mut turn.prompt));
    Ok(())
}

/// Tools for the template: `tools`, else OpenAI's older `functions`.
fn tools(c: &mut Columns, own: Option<Value>) -> Result<Option<Value>, String> {
    let parsed = |name: &str, value: Option<Value>| match value {
        // Data sets keep schemas as a JSON string, because their columns cannot hold ragged objects.
        Some(Value::String(s)) if s.trim().is_empty() => Ok(None),
        Some(Value::String(s)) => integers::value(&s).map(Some).map_err(|e| format!("`{name}` is not JSON: {e}")),
        other => Ok(other),
    };
    if let Some(tools) = parsed("tools", c.take("tools")?)?.or(own) {
        return Ok(Some(tools).filter(|t| !t.is_null()));
    }
    match parsed("functions", c.take("functions")?)? {
        Some(Value::Array(list)) => {
            let tool = |f: Value| json!({"type": "function", "function": f});
            Ok(Some(list.into_iter().map(tool).collect()))
        }
        Some(other) => Err(format!("`functions` must be a list, found {}", kind(&other))),
        None => Ok(None),
    }
}

fn scored(c: &mut Columns) -> Result<Row, String> {
    let prompt = prompt(c.need("prompt")?, "prompt")?;
    scored_after(c, ["prompt", "responses", "scores"], prompt)
}

fn completion(c: &mut Columns, name: &'static str) -> Result<Row, String> {
    let label = label(c)?;
    let mut responses = vec![Response { label, ..Response::new(0, answer(c.need(name)?, name)?) }];
    let prompt = join(prompt(c.need("prompt")?, "prompt")?, &mut responses)?;
    Ok(Row::new(["prompt", name, if label.is_some() { "label" } else { "" }], prompt, responses, Pairs::None))
}

/// A chosen response without a rejected one, where something says what its prompt is.
fn chosen_alone(c: &Columns) -> bool {
    let asked = ["prompt", "instruction", "question", "query", "input"].iter().any(|n| c.has(n));
    c.has("chosen") && (asked || c.get("chosen").is_some_and(Value::is_array))
}

/// It is judged desirable by itself.
fn chosen(c: &mut Columns) -> Result<Row, String> {
    let body = answer(c.need("chosen")?, "chosen")?;
    let mut responses = vec![Response { label: Some(true), ..Response::new(0, body) }];
    if let Some(value) = c.take("prompt")? {
        let prompt = join(prompt(value, "prompt")?, &mut responses)?;
        return Ok(Row::new(["prompt", "chosen", ""], prompt, responses, Pairs::None));
    }
    if let Body::Text(Text::Chat(messages)) = responses.remove(0).body {
        return turns::last(["chosen", "", ""], messages, Some(true), "chosen");
    }
    Err("`chosen` is alone and has no `prompt`: without `rejected` nothing says where its prompt ends".into())
}

fn stepwise(_: &mut Columns) -> Result<Row, String> {
    Err("`prompt`, `completions` and `labels` judge the steps of one answer, which no method here learns from; accepted is one \
        `completion` with one `label`, or `responses` with `scores`"
        .into())
}

fn text(c: &mut Columns) -> Result<Row, String> {
    match answer(c.need("text")?, "text")? {
        Body::Text(Text::Chat(_)) => Err("`text` must be a string; a message list goes into `messages`".into()),
        body => Ok(Row::new(["text", "", ""], Prompt::None, vec![Response::new(0, body)], Pairs::None)),
    }
}

fn ids_pair(c: &mut Columns) -> Result<Row, String> {
    let weight = weight(c)?;
    let responses = vec![
        Response::new(0, ids_body(c.need("chosen_ids")?, "chosen_ids")?),
        Response::new(1, ids_body(c.need("rejected_ids")?, "rejected_ids")?),
    ];
    let prompt = Prompt::Ids(ids(c.need("prompt_ids")?, "prompt_ids")?);
    Ok(Row::new(["prompt_ids", "chosen_ids", "rejected_ids"], prompt, responses, Pairs::Given { weight }))
}

fn ids_scored(c: &mut Columns) -> Result<Row, String> {
    let weight = weight(c)?;
    let items = list(c.need("responses_ids")?).map_err(|_| "`responses_ids` must be a list of lists of token ids")?;
    let scores = scores(c.need("scores")?, items.len(), "scores", "responses_ids")?;
    let mut responses = Vec::with_capacity(items.len());
    for (i, (item, score)) in items.into_iter().zip(scores).enumerate() {
        responses.push(Response { score: Some(score), ..Response::new(i, ids_body(item, "responses_ids")?) });
    }
    let prompt = Prompt::Ids(ids(c.need("prompt_ids")?, "prompt_ids")?);
    Ok(Row::new(["prompt_ids", "responses_ids", "scores"], prompt, responses, Pairs::FromScores { weight }))
}

fn ids_completion(c: &mut Columns) -> Result<Row, String> {
    let label = label(c)?;
    let body = ids_body(c.need("completion_ids")?, "completion_ids")?;
    let prompt = Prompt::Ids(ids(c.need("prompt_ids")?, "prompt_ids")?);
    let responses = vec![Response { label, ..Response::new(0, body) }];
    Ok(Row::new(["prompt_ids", "completion_ids", ""], prompt, responses, Pairs::None))
}
