//! The runs of a search: which values each has, and its name.

use super::axis::Axis;
use crate::model::sample::uniform;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use toml::Value;

/// Longest name of a run, in bytes: file systems take 255.
const LONGEST_NAME: usize = 120;

/// Draws of a point that are tried for each that is wanted, before there are no others.
const TRIES: usize = 200;

/// A run of the search.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its folder's name, from its values; no two are the same.
    pub name: String,
    /// What it has that others have not.
    pub values: toml::Table,
}

/// Every combination of the axes' values, the last axis fastest.
pub(super) fn grid(axes: &[(String, Axis)]) -> Vec<Point> {
    let mut all = vec![toml::Table::new()];
    for (key, axis) in axes {
        let values = axis.all();
        let with = |table: &toml::Table, value: &Value| {
            let mut table = table.clone();
            table.insert(key.clone(), value.clone());
            table
        };
        all = all.iter().flat_map(|table| values.iter().map(|value| with(table, value))).collect();
    }
    named(all)
}

/// `draws` different points; `None` where there are fewer.
pub(super) fn random(axes: &[(String, Axis)], draws: usize, seed: u64) -> Option<Vec<Point>> {
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for attempt in 0..draws.saturating_mul(TRIES) {
        if all.len() == draws {
            break;
        }
        let drawn = axes
            .iter()
            .enumerate()
            .map(|(stream, (key, axis))| (key.clone(), axis.draw(uniform(seed, stream as u64, attempt as u64))));
        let table: toml::Table = drawn.collect();
        if seen.insert(table.to_string()) {
            all.push(table);
        }
    }
    (all.len() == draws).then(|| named(all))
}

fn named(all: Vec<toml::Table>) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::with_capacity(all.len());
    for values in all {
        let mut name = name(&values);
        if points.iter().any(|p| p.name.eq_ignore_ascii_case(&name)) {
            name = shortened(&name, &values, LONGEST_NAME.min(name.len()));
        }
        points.push(Point { name, values });
    }
    points
}

/// `beta-0.1_loss_type-ipo+sft`.
fn name(values: &toml::Table) -> String {
    let parts = values.iter().map(|(key, value)| format!("{}-{}", plain(key), word(value)));
    let name = parts.collect::<Vec<_>>().join("_");
    if name.len() <= LONGEST_NAME { name } else { shortened(&name, values, LONGEST_NAME) }
}

/// A key as a part of a file's name; which keys there are is not known here.
fn plain(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

/// The first `most` bytes of `name`, which is ASCII, with a hash of what it stands for in place of the last.
fn shortened(name: &str, values: &toml::Table, most: usize) -> String {
    let hash: String = Sha256::digest(values.to_string()).iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("{}-{hash}", &name[..most.min(LONGEST_NAME - 9)])
}

/// A value as a part of a file's name, and as people read it.
pub(super) fn word(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Float(x) => number(*x),
        Value::Array(list) => list.iter().map(word).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    };
    let kept = |c: char| if c.is_ascii_alphanumeric() || "+-.".contains(c) { c } else { '-' };
    // Never hidden, and no way up.
    text.chars().map(kept).collect::<String>().trim_start_matches('.').to_owned()
}

/// `0.1`, `1e-6`.
pub(super) fn number(x: f64) -> String {
    if x != 0.0 && !(1e-3..1e6).contains(&x.abs()) { format!("{x:e}") } else { format!("{x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(text: &str, in_grid: bool) -> Vec<(String, Axis)> {
        let table: toml::Table = text.parse().unwrap();
        table.iter().map(|(k, v)| (k.clone(), Axis::of(v, in_grid).unwrap())).collect()
    }

    fn names(points: &[Point]) -> Vec<&str> {
        points.iter().map(|p| p.name.as_str()).collect()
    }

    #[test]
    fn a_grid_has_every_combination_once() {
        let text = "beta = [0.1, 1]\nlearning_rate = [1e-6, 2.5e-5]\nloss_type = ['ipo', ['ipo', 'sft']]";
        let points = grid(&axes(text, true));
        assert_eq!(points.len(), 8);
        assert_eq!(
            names(&points)[..3],
            [
                "beta-0.1_learning_rate-1e-6_loss_type-ipo",
                "beta-0.1_learning_rate-1e-6_loss_type-ipo+sft",
                "beta-0.1_learning_rate-2.5e-5_loss_type-ipo"
            ]
        );
    }

    #[test]
    fn draws_are_different_and_the_same_for_the_same_seed() {
        let text = "beta = { min = 0.01, max = 1.0, log = true }\nseed = { min = 1, max = 3 }";
        let axes = axes(text, false);
        let points = random(&axes, 40, 5).unwrap();
        assert_eq!(points, random(&axes, 40, 5).unwrap());
        assert_ne!(points, random(&axes, 40, 6).unwrap());
        let mut seen = names(&points);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 40);
        assert!(random(&axes[1..], 4, 1).is_none());
        assert_eq!(random(&axes[1..], 3, 1).unwrap().len(), 3);
    }

    #[test]
    fn names_are_files_names() {
        let text = format!("model = ['../a b', '..//a b', '{}', '{}x']", "y".repeat(400), "y".repeat(400));
        let points = grid(&axes(&text, true));
        let all = names(&points);
        for name in &all {
            assert!(
                name.len() <= LONGEST_NAME && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c))
            );
        }
        assert_eq!(all[0], "model--a-b");
        let mut different = all.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 4, "{all:?}");
    }
}
