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
        let Some(Last { step, samples, damaged }) = last(run) else { continue };
        // Writing to text does not fail.
        let _ = writeln!(out, "<h3>{} {}, after step {step}</h3>", swatch(i, None), html::text(&run.name));
        if damaged > 0 {
            let lines = if damaged == 1 { "1 line".to_owned() } else { format!("{damaged} lines") };
            let _ = writeln!(
                out,
                "<p class=\"notice\" role=\"note\">{FILE}: {lines} cannot be read; what is here may not be all.</p>"
            );
        }
        samples.iter().for_each(|sample| out += &one(sample));
    }
    out
}

/// What was sampled last.
struct Last {
    step: u64,
    samples: Vec<Map<String, Value>>,
    /// Lines of the file that are none of a run's.
    damaged: usize,
}

/// Of the latest step that has samples; `None` where there is nothing to read.
fn last(run: &Run) -> Option<Last> {
    let (mut at, mut all, mut odd) = (0, Vec::new(), 0);
    let damaged = each_line(run, FILE, &mut |row| {
        // A run writes later steps behind earlier ones, each with what was said to its prompts.
        let step = row.get("step").and_then(Value::as_u64).filter(|step| all.is_empty() || *step >= at);
        let (Some(step), true) = (step, row.contains_key("policy")) else {
            odd += 1;
            return;
        };
        if step != at {
            (at, all) = (step, Vec::new());
        }
        if all.len() < MOST {
            all.push(row);
        }
    })?;
    (!all.is_empty()).then(|| Last { step: at, samples: all, damaged: damaged + odd })
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
