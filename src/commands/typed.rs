//! What was typed for a run, beside a file of options: the run's options, and back again as a command.

use super::config;
use super::effect;
use super::train_flags::{DpoFlags, TrainFlags};
use crate::error::{Error, Result};
use crate::train::options::{Stage, TrainOptions};
use serde::Serialize;
use std::path::Path;

/// What was typed, by key. Errors: a number or a path that TOML cannot hold.
pub fn typed(flags: &TrainFlags, dpo: Option<&DpoFlags>) -> Result<toml::Table> {
    let mut all = table(flags)?;
    if let Some(dpo) = dpo {
        all.extend(table(dpo)?);
    }
    Ok(all)
}

fn table(flags: &impl Serialize) -> Result<toml::Table> {
    toml::Table::try_from(flags).map_err(|e| {
        let all = serde_json::to_value(flags).ok();
        let mut numbers =
            all.iter().filter_map(|v| v.as_object()).flatten().filter_map(|(k, v)| Some((k, v.as_u64()?)));
        match numbers.find(|(_, n)| i64::try_from(*n).is_err()) {
            Some((key, n)) => Error::usage(format!("--{} {n}: must be at most 2^63 - 1", key.replace('_', "-"))),
            None => Error::usage(e.to_string()),
        }
    })
}

/// What was typed, over the keys of the file `config`, over the defaults; checked.
pub fn resolve(stage: Stage, config: Option<&Path>, typed: toml::Table) -> Result<TrainOptions> {
    let mut all = match config {
        Some(path) => config::read(stage, path, &typed)?,
        None => toml::Table::new(),
    };
    all.extend(typed.clone());
    match ["model", "data", "out"].iter().find(|key| !all.contains_key(**key)) {
        Some(key) => Err(Error::usage(format!("--{key} is required (as a flag or in --config)"))),
        None => {
            let options = TrainOptions::from_table(stage, &all)?;
            effect::of_run(&typed, &options).map(|()| options)
        }
    }
}

/// The options of a run that is planned and not begun: what it writes needs no name, nor has data of which lengths alone are
/// known.
pub fn options_for_plan(stage: Stage, flags: &TrainFlags, dpo: &DpoFlags, of_lengths: bool) -> Result<TrainOptions> {
    let mut all = typed(flags, Some(dpo))?;
    let mut unnamed = vec!["out"];
    unnamed.extend(of_lengths.then_some("data"));
    let nowhere = unnamed.into_iter().filter(|key| !all.contains_key(*key)).map(|key| (key.to_owned(), "-".into()));
    let nowhere: Vec<(String, toml::Value)> = nowhere.collect();
    all.extend(nowhere);
    if flags.config.is_none() && !all.contains_key("data") {
        return Err(Error::usage("--data or --lengths is required"));
    }
    resolve(stage, flags.config.as_deref(), all)
}

/// The options of a run that is to begin later, checked.
pub fn checked(stage: Stage, flags: &TrainFlags, dpo: &DpoFlags) -> Result<TrainOptions> {
    resolve(stage, None, typed(flags, Some(dpo))?)
}

/// The command that begins the run that was planned, with `slots` token slots.
pub fn command_of_plan(stage: Stage, flags: &TrainFlags, dpo: &DpoFlags, slots: usize) -> Result<String> {
    let mut all = typed(flags, Some(dpo))?;
    all.remove("fit");
    // A file of options may name them.
    if flags.config.is_none() {
        all.entry("data").or_insert_with(|| "DATA".into());
        all.entry("out").or_insert_with(|| "RUN".into());
    }
    all.insert("token_budget".into(), toml::Value::Integer(slots as i64));
    let mut line = format!("fusedpo {stage}");
    if let Some(config) = &flags.config {
        line += &format!(" --config {}", word(&config.display().to_string()));
    }
    let text = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for (key, value) in &all {
        // Losses and modules are one list with commas, sets of data one option each.
        let values = match value {
            toml::Value::Array(of) if key == "eval_data" => of.iter().map(text).collect(),
            toml::Value::Array(of) => vec![of.iter().map(text).collect::<Vec<_>>().join(",")],
            one => vec![text(one)],
        };
        values.iter().for_each(|value| line += &format!(" --{} {}", key.replace('_', "-"), word(value)));
    }
    Ok(line)
}

/// A word as a shell reads it.
pub(super) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
