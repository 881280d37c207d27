//! What each run was asked for, and what went into it, by hash.

use super::html;
use super::overview::plain;
use super::run::Run;
use crate::chart::swatch;
use serde_json::{Value, json};

pub(super) fn inner(runs: &[Run]) -> String {
    let with: Vec<(usize, &Run)> = runs.iter().enumerate().filter(|(_, r)| r.record.is_some()).collect();
    if with.is_empty() {
        return String::new();
    }
    let (options, made_of, call) = (rows(&with, options), rows(&with, hashes), rows(&with, call));
    let several = with.len() > 1;
    // What no run was given says nothing.
    let options: Vec<Row> = options.into_iter().filter(|row| row.values.iter().any(|v| !v.is_null())).collect();
    let mut out = String::new();
    let head: Vec<String> = std::iter::once(String::new())
        .chain(with.iter().map(|(i, r)| format!("{} {}", swatch(*i, None), html::text(&r.name))))
        .collect();
    if several {
        let differing: Vec<Row> = options.iter().filter(|row| row.differs).cloned().collect();
        out += "<h3>Options that differ</h3>\n";
        out += &match differing.is_empty() {
            true => "<p>None: the runs were asked for the same.</p>\n".to_owned(),
            false => table("Options that differ", &head, &differing, false),
        };
    }
    let open = if several { "" } else { " open" };
    out += &format!(
        "<details{open}><summary>All options</summary>\n{}</details>\n",
        table("All options", &head, &options, several)
    );
    out += "<h3>What went in, by SHA-256</h3>\n";
    out += &table("What went in, by SHA-256", &head, &made_of, several);
    out += &format!(
        "<details><summary>Command and machine</summary>\n{}</details>\n",
        table("Command and machine", &head, &call, several)
    );
    out
}

#[derive(Clone, Debug)]
struct Row {
    key: String,
    values: Vec<Value>,
    differs: bool,
}

/// Keys and values of the runs side by side.
fn rows(runs: &[(usize, &Run)], of: impl Fn(&Run) -> Vec<(String, Value)>) -> Vec<Row> {
    let all: Vec<Vec<(String, Value)>> = runs.iter().map(|(_, r)| of(r)).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in all.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |of: &Vec<(String, Value)>, key: &str| {
        of.iter().find(|(k, _)| k == key).map_or(Value::Null, |(_, value)| value.clone())
    };
    let row = |key: &String| {
        let values: Vec<Value> = all.iter().map(|of| value(of, key)).collect();
        let differs = values.iter().any(|v| *v != values[0]);
        Row { key: key.clone(), values, differs }
    };
    keys.into_iter().map(row).collect()
}

fn options(run: &Run) -> Vec<(String, Value)> {
    let all = run.record.iter().flat_map(|r| &r.options);
    all.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn hashes(run: &Run) -> Vec<(String, Value)> {
    let Some(record) = &run.record else { return Vec::new() };
    let h = &record.sha256;
    let sets = h.eval_sets.iter().map(|(name, sha256)| (format!("set {name}"), json!(sha256)));
    let all = [
        ("training data", json!(h.data)),
        ("held-out data", json!(h.eval_data)),
        ("model", json!(h.model)),
        ("reference", json!(h.reference)),
        ("tokenizer", json!(h.tokenizer)),
        ("chat template", json!(h.template)),
    ];
    all.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(sets).collect()
}

fn call(run: &Run) -> Vec<(String, Value)> {
    let Some(record) = &run.record else { return Vec::new() };
    let (call, machine) = (&record.call, &record.call.machine);
    let all = [
        ("command", json!(call.command.join(" "))),
        ("version", json!(call.version)),
        ("device", json!(call.device)),
        ("precision", json!(call.dtype)),
        ("numerics", json!(call.numerics)),
        ("reference", json!(record.reference)),
        ("machine", json!(machine.host)),
        ("system", json!(format!("{} {}, {} threads", machine.os, machine.arch, machine.cpus))),
        ("began", json!(record.start)),
        ("ended", json!(record.end)),
    ];
    all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `marks`: rows that differ are marked.
fn table(name: &str, head: &[String], rows: &[Row], marks: bool) -> String {
    let cell = |value: &Value| match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.is_empty() => "–".to_owned(),
        value => format!("<code>{}</code>", html::text(&plain(value))),
    };
    let row = |row: &Row| {
        let mark = match marks && row.differs {
            true => " <span class=\"differs\">differs</span>",
            false => "",
        };
        let key = format!("{}{mark}", html::text(&row.key));
        std::iter::once(key).chain(row.values.iter().map(cell)).collect()
    };
    html::table(name, head, &rows.iter().map(row).collect::<Vec<_>>())
}
