//! What training changed on held-out rows: before and after, with intervals.

use super::html;
use super::keys::{KNOWN, known};
use super::overview::interval;
use super::run::{HeldOut, Run};
use crate::chart::{short, swatch};
use serde_json::{Map, Value};
use std::fmt::Write;

pub(super) fn inner(runs: &[Run]) -> String {
    let mut sets: Vec<&str> = Vec::new();
    for set in runs.iter().flat_map(|r| &r.held_out).map(|h| h.set.as_str()) {
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    sets.iter().map(|set| table(runs, set)).collect()
}

fn table(runs: &[Run], set: &str) -> String {
    let with: Vec<(usize, &Run, &HeldOut)> =
        runs.iter().enumerate().filter_map(|(i, r)| Some((i, r, r.held_out.iter().find(|h| h.set == set)?))).collect();
    let title = if set.is_empty() { "The held-out split".to_owned() } else { format!("Set {}", html::text(set)) };
    let name = if set.is_empty() { "The held-out split".to_owned() } else { html::text(&format!("Set {set}")) };
    let mut out = format!(
        "<h3>{title}</h3>\n<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{name}\"><table class=\"numbers\">\n<thead><tr><td></td>"
    );
    // Writing to text does not fail.
    for (i, run, of) in &with {
        let columns = of.columns().len();
        let _ = write!(
            out,
            "<th scope=\"colgroup\" colspan=\"{columns}\">{} {}</th>",
            swatch(*i, None),
            html::text(&run.name)
        );
    }
    out += "</tr>\n<tr><td></td>";
    for (_, _, of) in &with {
        for (step, _, best) in of.columns() {
            let _ = write!(out, "<th scope=\"col\">step {step}{}</th>", if best { ", the best" } else { "" });
        }
    }
    out += "</tr></thead>\n<tbody>\n";
    for key in keys(&with) {
        let name = known(&key).map_or_else(|| format!("<code>{}</code>", html::text(&key)), |k| k.title.to_owned());
        let _ = write!(out, "<tr><th scope=\"row\">{name}</th>");
        for (_, _, of) in &with {
            out.extend(of.columns().into_iter().map(|(_, numbers, _)| cell(numbers, &key)));
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

/// Those that are known, in the page's order, then the others.
fn keys(with: &[(usize, &Run, &HeldOut)]) -> Vec<String> {
    let all = with.iter().flat_map(|(_, _, h)| h.columns().into_iter().flat_map(|(_, numbers, _)| numbers));
    let mut there: Vec<&String> = Vec::new();
    for (key, value) in all {
        if !there.contains(&key) && (value.is_number() || value.is_null()) {
            there.push(key);
        }
    }
    let mut keys: Vec<String> = KNOWN.iter().map(|k| k.key.to_owned()).filter(|k| there.contains(&k)).collect();
    keys.extend(there.into_iter().filter(|k| known(k).is_none()).cloned());
    keys
}

fn cell(numbers: &Map<String, Value>, key: &str) -> String {
    let Some(value) = numbers.get(key) else { return "<td>–</td>".into() };
    let Some(number) = value.as_f64() else { return "<td class=\"bad\">no number</td>".into() };
    match interval(numbers, key) {
        Some([low, high]) => format!("<td>{} <small>[{}, {}]</small></td>", short(number), short(low), short(high)),
        None => format!("<td>{}</td>", short(number)),
    }
}
