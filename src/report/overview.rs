//! What a reader wants to know first: how each run ended, and what it came to.

use super::html;
use super::keys::INTERVAL;
use super::run::{HeldOut, Run};
use crate::chart::{short, swatch};
use crate::data::numbers::grouped;
use crate::train::metrics::wilson_95;
use crate::units;
use serde_json::{Map, Value};

pub(super) fn inner(runs: &[Run]) -> String {
    let facts: Vec<Vec<(&str, String)>> = runs.iter().enumerate().map(|(i, r)| facts(r, i)).collect();
    let mut out = match facts.as_slice() {
        [facts] => tiles(facts),
        facts => {
            // A column is there where one run has it.
            let mut names: Vec<&str> = Vec::new();
            for (name, _) in facts.iter().flatten() {
                if !names.contains(name) {
                    names.push(name);
                }
            }
            let cell = |facts: &Vec<(&str, String)>, name: &str| {
                facts.iter().find(|(n, _)| *n == name).map_or("–".to_owned(), |(_, value)| value.clone())
            };
            let head: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let rows: Vec<Vec<String>> =
                facts.iter().map(|facts| names.iter().map(|name| cell(facts, name)).collect()).collect();
            html::table("Runs", &head, &rows)
        }
    };
    let notes: String = runs.iter().flat_map(notes).collect();
    if !notes.is_empty() {
        out += &format!("<div class=\"notice\" role=\"note\"><h3>To know</h3><ul>{notes}</ul></div>\n");
    }
    out
}

fn tiles(facts: &[(&str, String)]) -> String {
    let tile = |(name, value): &(&str, String)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    format!("<dl class=\"tiles\">\n{}</dl>\n", facts.iter().map(tile).collect::<String>())
}

fn notes(run: &Run) -> Vec<String> {
    let mut all: Vec<String> = run.notes.clone();
    if let Some(record) = &run.record {
        all.extend(record.error.iter().map(|e| format!("it failed: {e}")));
        let early = |why: &String| format!("it ended at step {} of {}: {why}", record.steps_done, record.steps_asked);
        all.extend(record.stopped_early.iter().map(early));
        for r in &record.resumptions {
            let other = if r.other_numerics { ", with other numerics than before" } else { "" };
            let from = match &r.checkpoint {
                Some(checkpoint) => format!("from {checkpoint}"),
                None => "from the beginning".to_owned(),
            };
            let before = format!("{:?}", r.before).to_lowercase();
            all.push(format!("went on at {} {from}, step {}{other}; before that it was {before}", r.at, r.from_step));
        }
    }
    let name = &run.name;
    all.into_iter().map(|note| format!("<li><b>{}</b>: {}</li>", html::text(name), html::text(&note))).collect()
}

/// HTML of what there is to say, by name.
fn facts(run: &Run, number: usize) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Run", format!("{} {}", swatch(number, None), html::text(&run.name)))];
    let outcome = run.outcome();
    let class = if ["failed", "killed"].contains(&outcome) { "bad" } else { "state" };
    facts.push(("Outcome", format!("<span class=\"{class}\">{outcome}</span>")));
    let done = grouped(run.last_step.max(0.0) as u64);
    let asked = run.record.as_ref().map(|r| format!(" <small>of {}</small>", grouped(r.steps_asked)));
    facts.push(("Steps", done + &asked.unwrap_or_default()));
    if let Some(stage) = run.option("stage").and_then(Value::as_str) {
        facts.push(("Method", html::text(stage) + &method(run, stage)));
    }
    if let Some(best) = run.record.as_ref().and_then(|r| r.best.as_ref()) {
        let (metric, value) = (html::text(&best.metric), short(best.value));
        let model = if best.loaded { "the model is that of it" } else { "the model is that of the last step" };
        facts
            .push(("Best evaluation", format!("step {} <small>{metric} {value}; {model}</small>", grouped(best.step))));
    }
    if let Some(held_out) = run.held_out.iter().find(|h| h.set.is_empty()) {
        facts.extend(of_model(held_out, run.record.as_ref().and_then(|r| r.best.as_ref()).is_some_and(|b| b.loaded)));
    }
    if let Some(loss) = late(run, "loss") {
        facts.push(("Loss, last twentieth", short(loss)));
    }
    if let Some(speed) = mean(run, "tokens_per_second") {
        facts.push(("Tokens a second", grouped(speed.max(0.0) as u64)));
    }
    if let Some(bytes) = run.series("peak_memory_bytes", None).and_then(|s| Some(s.high()?.1)) {
        facts.push(("Memory, at most", units::bytes(bytes.max(0.0) as usize)));
    }
    if let Some(took) = took(run) {
        facts.push(("Time", took));
    }
    if let Some(record) = &run.record {
        facts.push(("Device", html::text(&record.call.device)));
        facts.push(("Began", html::text(&record.start.replace('T', " ").replace('Z', " UTC"))));
    }
    facts
}

/// The held-out numbers of the run's model: of the best evaluation where it is that of the best, else of the last.
fn of_model(held_out: &HeldOut, is_best: bool) -> Vec<(&'static str, String)> {
    let last = held_out.last.as_ref().or(Some(&held_out.first));
    // The best of a run that began in another's checkpoint may be among that one's evaluations.
    let Some((_, numbers)) = (if is_best { held_out.best.as_ref() } else { last }) else { return Vec::new() };
    let number = |of: &Map<String, Value>, key: &str| of.get(key).and_then(Value::as_f64);
    let mut facts = Vec::new();
    for (name, key) in [("Held-out loss", "loss"), ("Held-out margin", "rewards/margins")] {
        if let (Some(first), Some(is)) = (number(&held_out.first.1, key), number(numbers, key)) {
            facts.push((name, format!("{} <small>from {}</small>", short(is), short(first))));
        }
    }
    if let Some(accuracy) = number(numbers, "rewards/accuracies") {
        let interval = interval(numbers, "rewards/accuracies")
            .map_or_else(String::new, |[low, high]| format!(" <small>[{low:.3}, {high:.3}]</small>"));
        facts.push(("Held-out accuracy", format!("{accuracy:.3}{interval}")));
    }
    facts
}

fn method(run: &Run, stage: &str) -> String {
    if stage != "dpo" {
        return String::new();
    }
    let said = |key: &str| match run.option(key) {
        None | Some(Value::Null) => None,
        Some(Value::Array(all)) => {
            let all: Vec<String> = all.iter().map(plain).collect();
            Some(all.join(" + "))
        }
        Some(value) => Some(plain(value)),
    };
    let loss = said("loss_type").map_or_else(String::new, |loss| format!(", {loss}"));
    let beta = said("beta").map_or_else(String::new, |beta| format!(", beta {beta}"));
    format!(" <small>{}</small>", html::text(&(loss + &beta)).trim_start_matches(", "))
}

/// A value as a person writes it.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The 95 % interval of a held-out number: what the run wrote down, or Wilson's of its pairs.
pub(super) fn interval(numbers: &Map<String, Value>, key: &str) -> Option<[f64; 2]> {
    let written = |name: &str| {
        let ends = numbers.get(&format!("{name}{INTERVAL}"))?.as_array()?;
        match ends.as_slice() {
            [low, high] => Some([low.as_f64()?, high.as_f64()?]),
            _ => None,
        }
    };
    let accuracy = key == "rewards/accuracies";
    written(key).or_else(|| written("accuracy").filter(|_| accuracy)).or_else(|| {
        let (share, pairs) = (numbers.get(key)?.as_f64()?, numbers.get("pairs")?.as_u64()?);
        (accuracy && pairs > 0).then(|| wilson_95(share, pairs))
    })
}

/// The mean over the last twentieth of the steps, by whole buckets.
fn late(run: &Run, key: &str) -> Option<f64> {
    let buckets = run.series(key, None)?.buckets();
    let of = &buckets[buckets.len() - buckets.len().div_ceil(20)..];
    let (sum, count) = of.iter().fold((0.0, 0.0), |(s, n), b| (s + b.sum, n + b.count as f64));
    (count > 0.0).then_some(sum / count)
}

fn mean(run: &Run, key: &str) -> Option<f64> {
    let (sum, count) =
        run.series(key, None)?.buckets().iter().fold((0.0, 0.0), |(s, n), b| (s + b.sum, n + b.count as f64));
    (count > 0.0).then_some(sum / count)
}

/// From its start to its end: of a run that nobody interrupted.
fn took(run: &Run) -> Option<String> {
    let record = run.record.as_ref().filter(|r| r.resumptions.is_empty())?;
    let at = |text: &str| chrono::DateTime::parse_from_rfc3339(text).ok();
    let seconds = (at(record.end.as_deref()?)? - at(&record.start)?).num_seconds();
    // A number and its unit stay together.
    Some(match seconds {
        ..0 => return None,
        0..120 => format!("{seconds}&nbsp;s"),
        120..7200 => format!("{}&nbsp;min {}&nbsp;s", seconds / 60, seconds % 60),
        _ => format!("{}&nbsp;h {}&nbsp;min", seconds / 3600, seconds / 60 % 60),
    })
}
