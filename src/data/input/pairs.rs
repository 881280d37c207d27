//! Two answers or several to one prompt, compared.

use super::columns::Columns;
use super::dialogue::{answer, join, prompt};
use super::messages::is_assistant;
use super::requests::before;
use super::row::{Body, Pairs, Prompt, Response, Row, Text};
use super::values::{list, scores, weight};

/// Chosen and rejected, with a prompt or as whole dialogues.
pub(super) fn pair(c: &mut Columns, chosen: &'static str, rejected: &'static str) -> Result<Row, String> {
    let weight = weight(c)?;
    let bodies = [answer(c.need(chosen)?, chosen)?, answer(c.need(rejected)?, rejected)?];
    let mut responses: Vec<Response> = bodies.into_iter().enumerate().map(|(i, b)| Response::new(i, b)).collect();
    let pairs = Pairs::Given { weight };
    if let Some(value) = c.take("prompt")? {
        let prompt = join(prompt(value, "prompt")?, &mut responses)?;
        return Ok(Row::new(["prompt", chosen, rejected], prompt, responses, pairs));
    }
    let whole = |r: &Response| r.chat().is_some_and(|m| m.first().is_some_and(|m| !is_assistant(m)));
    if !responses.iter().any(whole)
        && let Some((name, turns)) = before(c, &responses)?
    {
        let prompt = join(Text::Chat(turns), &mut responses)?;
        return Ok(Row::new([name, chosen, rejected], prompt, responses, pairs));
    }
    let chats = responses.iter().filter(|r| r.chat().is_some()).count();
    let plain = responses.iter().filter(|r| matches!(r.body, Body::Text(Text::Plain(_)))).count();
    if chats == 1 && plain == 1 {
        return Err(format!("`{chosen}` and `{rejected}` must both be strings or both be message lists"));
    }
    Ok(Row::new([chosen, rejected, ""], Prompt::Implicit, responses, pairs))
}

/// Several responses to a prompt, each with a score; `shape` names the prompt, the responses and the scores.
pub(super) fn scored_after(c: &mut Columns, shape: [&'static str; 3], prompt: Text) -> Result<Row, String> {
    let [_, of, name] = shape;
    let weight = weight(c)?;
    let items = list(c.need(of)?).map_err(|_| format!("`{of}` must be a list"))?;
    let scores = scores(c.need(name)?, items.len(), name, of)?;
    let mut responses = Vec::with_capacity(items.len());
    for (i, (item, score)) in items.into_iter().zip(scores).enumerate() {
        responses.push(Response { score: Some(score), ..Response::new(i, answer(item, of)?) });
    }
    let prompt = join(prompt, &mut responses)?;
    Ok(Row::new(shape, prompt, responses, Pairs::FromScores { weight }))
}
