//! What policy and reference write to the same prompts, side by side: of the last evaluation that sampled.

use super::diff;
use super::html;
use super::run::{Run, each_line};
use crate::chart::swatch;
use serde_json::{Map, Value};
use std::fmt::Write;

const FILE: &str = "samples.jsonl";
/// Prompts that are shown of a run.
const MOST: usize = 24;
/// Characters of a text that are shown.
const MOST_CHARS: usize = 6000;

pub(super) fn inner(runs: &[Run]) -> String {
    let mut out = String::new();
    for (i, run) in runs.iter().enumerate() {
        let Some((step, samples)) = last(run) else { continue };
        // Writing to text does not fail.
        let _ = writeln!(out, "<h3>{} {}, after step {step}</h3>", swatch(i, None), html::text(&run.name));
        samples.iter().for_each(|sample| out += &one(sample));
    }
    out
}

/// The lines of the last step that has some; `None` where there is nothing to read.
fn last(run: &Run) -> Option<(u64, Vec<Map<String, Value>>)> {
    let mut found: Option<(u64, Vec<Map<String, Value>>)> = None;
    // What cannot be read was never whole: a run adds its lines at once.
    each_line(run, FILE, &mut |row| {
        let Some(step) = row.get("step").and_then(Value::as_u64) else { return };
        let (at, all) = found.get_or_insert_with(|| (step, Vec::new()));
        if *at != step {
            (*at, *all) = (step, Vec::new());
        }
        if all.len() < MOST {
            all.push(row);
        }
    })?;
    found
}

fn one(sample: &Map<String, Value>) -> String {
    let text = |key: &str| sample.get(key).and_then(Value::as_str).map(cut);
    let (prompt, policy, reference) = (text("prompt"), text("policy"), text("reference"));
    let row = sample.get("row").and_then(Value::as_u64).map_or_else(String::new, |row| format!("Row {row}"));
    let length = |who: &str| {
        let tokens = sample.get(&format!("{who}_tokens")).and_then(Value::as_u64);
        let open = sample.get(&format!("{who}_finished")).and_then(Value::as_bool) == Some(false);
        let end = if open { ", without an end" } else { "" };
        tokens.map_or_else(String::new, |n| format!(" <small>{n} tokens{end}</small>"))
    };
    let mut out = format!(
        "<article class=\"sample\">\n<h4>{row}</h4>\n<p class=\"text prompt\">{}</p>\n<div class=\"pair\">\n",
        html::text(&prompt.unwrap_or_default())
    );
    let policy = policy.unwrap_or_default();
    let mut put = |who: &str, key: &str, html: &str| {
        let _ = writeln!(out, "<div><h5>{who}{}</h5><p class=\"text\">{html}</p></div>", length(key));
    };
    match reference {
        Some(reference) => {
            let [before, after] = diff::marked(&reference, &policy);
            put("Reference", "reference", &before);
            put("Policy", "policy", &after);
        }
        None => put("Policy", "policy", &html::text(&policy)),
    }
    out + "</div>\n</article>\n"
}

pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
        Some((at, _)) => format!("{}... ({} more characters)", &text[..at], text[at..].chars().count()),
        None => text.to_owned(),
    }
}
