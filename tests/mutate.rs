//! Damaged files of every kind: no panic, no abort, no overflow of the stack, no hang, no huge allocation, no error of several
//! lines, and nothing accepted that was damaged.
//!
//! `FUSEDPO_MUTATIONS=N` tries N inputs instead of a few thousand; `FUSEDPO_MUTATE_FROM=I` starts at input I;
//! `FUSEDPO_MUTATE_ONLY=KIND,KIND` is about some kinds alone, and then each has its inputs from I on. An input is the same on
//! every machine. Another process runs them, within 8 GiB and a minute each.

mod mutations;

use mutations::runner::{self, Input, Target};
use mutations::{Watched, models, rows, runs, shards, texts};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Inputs of an ordinary run.
const ORDINARY: u64 = 3000;

/// Inputs that once went wrong, by kind and number.
const ONCE_WRONG: &[(&str, u64)] = &[
    // A panic in the tokenizers crate.
    ("tokenizer", 32981),
    // A `{%}` in a chat template.
    ("rows", 37062),
    // A line end in the name of a column.
    ("tables", 120010612),
];

const TARGETS: &[Target] = &[
    ("shard", shards::shard),
    ("forged shard", shards::forged_shard),
    ("sidecar", shards::reference),
    ("safetensors", models::weights),
    ("config.json", models::config),
    ("rotary", models::rotary),
    ("index", models::index),
    ("tokenizer", texts::tokenizer),
    ("tokenizer parts", texts::parts),
    ("side files", texts::side_files),
    ("template", texts::template),
    ("rows", rows::input),
    ("shapes", rows::shape),
    ("tables", rows::table),
    ("parquet", rows::parquet),
    ("--config", models::run_config),
    ("--config values", models::run_values),
    ("checkpoint", runs::checkpoint),
    ("forged checkpoint", runs::forged_checkpoint),
    ("run", runs::record),
];

fn kind(name: &str) -> usize {
    TARGETS.iter().position(|t| t.0 == name).unwrap_or_else(|| panic!("no kind {name}"))
}

/// The process that runs the inputs begins here; started by hand it does nothing.
#[test]
fn inputs() {
    runner::child(TARGETS);
}

#[test]
fn damaged_files_are_refused_in_one_line() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect(name));
    let n = number("FUSEDPO_MUTATIONS").unwrap_or(ORDINARY);
    let from = number("FUSEDPO_MUTATE_FROM").unwrap_or(0);
    let only = std::env::var("FUSEDPO_MUTATE_ONLY").ok();
    let kinds: Vec<usize> = match &only {
        Some(names) => names.split(',').map(kind).collect(),
        None => (0..TARGETS.len()).collect(),
    };
    let one = |i: u64| {
        let kinds_len = kinds.len() as u64;
        match only.is_some() {
            true => Input { kind: kinds[(i % kinds_len) as usize], number: from + i / kinds_len },
            false => Input { kind: kinds[((from + i) % kinds_len) as usize], number: from + i },
        }
    };
    let pinned = ONCE_WRONG.iter().map(|(name, number)| Input { kind: kind(name), number: *number });
    let all: Vec<Input> = pinned.filter(|i| kinds.contains(&i.kind)).chain((0..n).map(one)).collect();
    let begun = Instant::now();
    let outcome = runner::run(TARGETS, "inputs", &all);
    for ((name, _), (tried, read)) in TARGETS.iter().zip(&outcome.counts) {
        println!("{name}: {read} of {tried} inputs could be read");
    }
    println!("{} inputs in {:.1} s", all.len(), begun.elapsed().as_secs_f64());
    assert!(outcome.wrong.is_empty(), "{} wrong:\n{}", outcome.wrong.len(), outcome.wrong.join("\n"));
}
