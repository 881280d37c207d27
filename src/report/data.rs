//! What the data report said, where it still lies beside the shards that a run was made from.

use super::html;
use super::run::Run;
use crate::data::numbers::grouped;
use crate::data::pack::PackReport;
use crate::data::shard::Dataset;
use crate::files::{Inside, MOST_JSON};
use crate::train::check::open_splits;
use crate::train::checkpoint::data_sha256;
use serde_json::Value;
use std::path::Path;

const REPORT: &str = "report.json";
const GONE: &str = "the data is not where it was when the run was made, so nothing of it is shown";

pub(super) fn inner(runs: &[Run], typed: &dyn Fn(&str) -> String) -> String {
    // Runs on the same data have one report.
    let mut found: Vec<(String, Vec<&str>, Result<PackReport, String>)> = Vec::new();
    for run in runs {
        let Some((hash, report)) = of(run) else { continue };
        match found.iter_mut().find(|(h, _, r)| *h == hash && r.is_ok() == report.is_ok()) {
            Some((_, names, _)) => names.push(&run.name),
            None => found.push((hash, vec![&run.name], report)),
        }
    }
    let several = found.len() > 1;
    let one = |(_, names, report): &(String, Vec<&str>, Result<PackReport, String>)| {
        let names: Vec<String> = names.iter().map(|n| html::text(n)).collect();
        let title = if several { format!("<h3>Of {}</h3>\n", names.join(", ")) } else { String::new() };
        title
            + &match report {
                Ok(report) => said(report, typed),
                Err(why) => format!("<p>{}</p>\n", html::text(why)),
            }
    };
    // What cannot be said of any run is not a section.
    if found.iter().all(|(_, _, report)| report.is_err()) {
        return String::new();
    }
    found.iter().map(one).collect()
}

/// The data's hash, and its report or why there is none to show.
fn of(run: &Run) -> Option<(String, Result<PackReport, String>)> {
    let record = run.record.as_ref()?;
    let folder = run.option("data").and_then(Value::as_str)?;
    let hash = record.sha256.data.clone();
    Some((hash.clone(), read(Path::new(folder), &hash)))
}

/// The splits that a run was made from, or why there is nothing to show of them. `None`: the run says not where they lie.
pub(super) fn splits(run: &Run) -> Option<Result<Vec<Dataset>, String>> {
    let record = run.record.as_ref()?;
    let folder = run.option("data").and_then(Value::as_str)?;
    Some(opened(Path::new(folder), &record.sha256.data))
}

fn opened(folder: &Path, hash: &str) -> Result<Vec<Dataset>, String> {
    let splits = open_splits(folder).map_err(|_| GONE)?;
    match splits.first().is_some_and(|train| data_sha256(train) == hash) {
        true => Ok(splits),
        false => Err("other data lies where the run's data lay, so nothing of it is shown".into()),
    }
}

fn read(folder: &Path, hash: &str) -> Result<PackReport, String> {
    opened(folder, hash)?;
    let inside = Inside::new(folder).map_err(|_| GONE)?;
    let text = inside.read_text(REPORT, MOST_JSON).ok().flatten().ok_or("the data has no report beside it")?;
    serde_json::from_str(&text).map_err(|_| "the data's report is damaged".to_owned())
}

fn said(r: &PackReport, typed: &dyn Fn(&str) -> String) -> String {
    let mut out = String::new();
    for (class, texts) in [("notice", &r.warnings), ("quiet", &r.notes)] {
        if !texts.is_empty() {
            let items: String = texts.iter().map(|t| format!("<li>{}</li>", html::text(&typed(t)))).collect();
            out += &format!("<div class=\"{class}\"><ul>{items}</ul></div>\n");
        }
    }
    let splits = [("training", &r.train), ("held out", &r.eval)];
    let head = ["", "prompts", "responses", "pairs", "tokens", "saved by sharing prompts"].map(str::to_owned);
    let rows: Vec<Vec<String>> = splits
        .iter()
        .filter(|(_, s)| s.groups > 0)
        .map(|(name, s)| {
            let numbers = [s.groups, s.responses, s.pairs, s.tokens].map(grouped);
            let saved = format!("{:.1} %", s.saving_percent());
            std::iter::once((*name).to_owned()).chain(numbers).chain([saved]).collect()
        })
        .collect();
    out += &html::table("Splits", &head, &rows);
    let lengths =
        [("prompt", r.prompt_lengths), ("response", r.response_lengths), ("prompt + response", r.total_lengths)];
    let head = ["length in tokens", "median", "90 %", "99 %", "longest"].map(str::to_owned);
    let rows: Vec<Vec<String>> = lengths
        .iter()
        .map(|(name, l)| std::iter::once((*name).to_owned()).chain([l.p50, l.p90, l.p99, l.max].map(grouped)).collect())
        .collect();
    out += &html::table("Lengths", &head, &rows);
    out + &rows_and_what_was_noticed(r)
}

fn rows_and_what_was_noticed(r: &PackReport) -> String {
    let mut rows = vec![
        vec!["rows read".to_owned(), grouped(r.rows_read), String::new()],
        vec!["rows kept".to_owned(), grouped(r.rows_kept), String::new()],
    ];
    for (reason, d) in &r.dropped {
        let alone = match d.responses {
            0 => String::new(),
            n => format!(" and {} single responses", grouped(n)),
        };
        let more = if d.rows + d.responses > d.first.len() as u64 { ", ..." } else { "" };
        rows.push(vec![
            format!("dropped: {}", html::text(reason.text())),
            format!("{}{alone}", grouped(d.rows)),
            html::text(&(d.first.join(", ") + more)),
        ]);
    }
    let noticed = [
        ("responses cut at the longest length, their end lost", r.truncated_responses),
        ("prompts cut on the left", r.truncated_prompts),
        ("responses without an end, not cut", r.responses_without_eos),
        ("responses with two or more ends", r.responses_with_many_eos),
        ("scored rows without a pair: equal scores", r.rows_without_pair),
        ("pairs of identical responses, left out", r.identical_pairs),
        ("duplicate pairs, kept", r.duplicate_pairs),
        ("contradictory pairs, kept", r.contradictory_pairs),
    ];
    rows.extend(
        noticed.iter().filter(|(_, n)| *n > 0).map(|(name, n)| vec![(*name).to_owned(), grouped(*n), String::new()]),
    );
    html::table("Rows", &["".to_owned(), "how many".to_owned(), "the first".to_owned()], &rows)
}
