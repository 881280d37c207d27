//! What the card says of the sets that were evaluated beside the held-out split.

use super::{Card, plain};
use crate::chart::short;
use crate::error::Result;
use crate::files::RunDir;
use serde_json::{Map, Value};
use std::fmt::Write;

impl Card<'_> {
    /// A table of named sets at the model's own evaluation, from `metrics.jsonl`; nothing where it was not evaluated on any.
    pub(super) fn sets(&self, out: &RunDir) -> Result<String> {
        let names: Vec<&str> = self.options.eval.eval_data.iter().map(|set| set.name.as_str()).collect();
        let (mut row, at) = (Map::new(), self.steps);
        let of = |row: &Map<String, Value>, name: &str| row.contains_key(&format!("eval_{name}_loss"));
        if !names.is_empty() {
            out.each_row(|other| {
                if other.get("step").and_then(Value::as_u64) == Some(at) && names.iter().any(|name| of(other, name)) {
                    row.clone_from(other);
                }
            })?;
        }
        let names: Vec<&str> = names.into_iter().filter(|name| of(&row, name)).collect();
        if names.is_empty() {
            return Ok(String::new());
        }
        let columns = [
            ("rewards/accuracies", "accuracy, with its 95 % interval (Wilson)"),
            ("loss", "loss"),
            ("rewards/margins", "reward margin"),
            ("mean_token_accuracy", "tokens that are the most likely one"),
        ];
        let number = |name: &str, key: &str| row.get(&format!("eval_{name}_{key}")).and_then(Value::as_f64);
        let known = columns.iter().filter(|(key, _)| names.iter().any(|name| number(name, key).is_some()));
        let known: Vec<&(&str, &str)> = known.collect();
        let titles: Vec<&str> = known.iter().map(|(_, title)| *title).collect();
        let mut text = format!("| set, after | {} |\n| --- |{}\n", titles.join(" | "), " --- |".repeat(known.len()));
        for name in &names {
            let cells = known.iter().map(|(key, _)| {
                let interval = row.get(&format!("eval_{name}_{key}_ci95")).filter(|_| *key == "rewards/accuracies");
                let interval = interval.and_then(|ends| Some([ends[0].as_f64()?, ends[1].as_f64()?]));
                match (number(name, key), interval) {
                    (Some(x), Some([low, high])) => format!("{x:.3} [{low:.3}, {high:.3}]"),
                    (Some(x), None) => short(x),
                    (None, _) => "not a number".to_owned(),
                }
            });
            // Writing to text does not fail.
            let _ = writeln!(text, "| {} | {} |", plain(name), cells.collect::<Vec<_>>().join(" | "));
        }
        Ok(text + "\n")
    }
}
