//! Options of a recipe as the words of a command line, and whether the command takes them.

use crate::commands::eval::EvalArgs;
use crate::commands::merge::MergeArgs;
use crate::commands::pack::PackArgs;
use crate::commands::quantize::QuantizeArgs;
use crate::commands::reference::ReferenceArgs;
use crate::commands::report::ReportArgs;
use crate::commands::train_flags::{DpoFlags, TrainFlags};
use crate::commands::trl_keys::nearest;
use crate::commands::typed;
use crate::error::{Error, Result};
use crate::hub::{self, Repo};
use crate::recipe::{CACHE, Kind};
use crate::train::options::Stage;
use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use std::any::TypeId;
use std::path::{Component, Path, PathBuf};
use toml::{Table, Value};

/// The command of a stage with its options.
fn command(kind: Kind) -> Command {
    let command = Command::new(kind.command()).no_binary_name(true).disable_help_flag(true);
    match kind {
        Kind::Pack => PackArgs::augment_args(command),
        Kind::Sft => TrainFlags::augment_args(command),
        Kind::Dpo => DpoFlags::augment_args(TrainFlags::augment_args(command)),
        Kind::Reference => ReferenceArgs::augment_args(command),
        Kind::Eval => EvalArgs::augment_args(command),
        Kind::Export => MergeArgs::augment_args(command),
        Kind::Report => ReportArgs::augment_args(command),
        Kind::Quantize => QuantizeArgs::augment_args(command),
    }
}

/// Options that name a model or an adapter, which may be the hub's.
pub(super) const MODELS: [&str; 4] = ["model", "tokenizer", "ref_model", "adapter"];

/// What of an option's value may be a path.
pub(super) fn paths<'a>(key: &str, value: &'a Value) -> Vec<&'a str> {
    let texts = match value {
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        other => other.as_str().into_iter().collect::<Vec<_>>(),
    };
    match key {
        // NAME=FOLDER.
        "eval_data" => texts.into_iter().map(|text| text.split_once('=').map_or(text, |(_, path)| path)).collect(),
        _ => texts,
    }
}

fn is_path(command: &Command, key: &str) -> bool {
    let named = |a: &&Arg| a.get_long().is_some_and(|long| long.replace('-', "_") == key);
    let arg = command.get_arguments().find(named);
    key == "eval_data" || arg.is_some_and(|a| a.get_value_parser().type_id() == TypeId::of::<PathBuf>())
}

/// A path as it is told from others: without `./`, doubled slashes and one at its end. What is above a link is not known by its name.
pub(super) fn plain(name: &str) -> String {
    let parts: PathBuf = Path::new(name).components().filter(|part| *part != Component::CurDir).collect();
    match parts.to_str() {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => ".".to_owned(),
    }
}

/// `given` as it decides a hash: of what is there, each path in its one form.
pub(super) fn plain_paths(kind: Kind, given: &Table) -> Table {
    let command = command(kind);
    let one = |key: &str, text: &str| {
        let (name, path) = match (key, text.split_once('=')) {
            ("eval_data", Some((name, path))) => (format!("{name}="), path),
            _ => (String::new(), text),
        };
        // A name of the hub's is no path.
        if Path::new(path).exists() { name + &plain(path) } else { text.to_owned() }
    };
    let value = |key: &str, value: &Value| match value {
        Value::String(text) => one(key, text).into(),
        Value::Array(list) => {
            let all = list.iter().map(|v| v.as_str().map_or_else(|| v.clone(), |text| one(key, text).into()));
            Value::Array(all.collect())
        }
        other => other.clone(),
    };
    let all =
        given.iter().map(|(key, v)| (key.clone(), if is_path(&command, key) { value(key, v) } else { v.clone() }));
    all.collect()
}

/// Refuses a file or folder that an option names and that is not there, whichever stage would come to it. A name of the hub's is its
/// stage's to look for.
pub(super) fn refuse_missing(kind: Kind, given: &Table) -> Result<()> {
    let command = command(kind);
    // A cache is made where there is none.
    for (key, value) in given.iter().filter(|(key, _)| *key != CACHE && is_path(&command, key)) {
        for name in paths(key, value) {
            let of_hub = match key.as_str() {
                key if MODELS.contains(&key) => Repo::of(hub::Kind::Model, Path::new(name))?.is_some(),
                "input" => Repo::of(hub::Kind::Dataset, Path::new(name))?.is_some(),
                _ => false,
            };
            if !of_hub && !Path::new(name).exists() {
                let why = format!("[{kind}]: `{key}` {name}: is not there; name what is, or put it there first");
                return Err(Error::usage(why));
            }
        }
    }
    Ok(())
}

/// The words that mean `options`, before the folders of `runs`. Errors: an option that the command does not have, with the nearest that it has, or a value that
/// it refuses.
pub(super) fn of(kind: Kind, options: &Table, runs: &[String]) -> Result<Vec<String>> {
    let fail = |why: String| Error::usage(format!("[{kind}]: {why}"));
    let command = command(kind);
    let names: Vec<String> = command.get_arguments().filter_map(|a| Some(a.get_long()?.replace('-', "_"))).collect();
    let mut words = Vec::new();
    for (key, value) in options {
        let arg = command.get_arguments().find(|a| a.get_long().is_some_and(|long| long.replace('-', "_") == *key));
        let arg = arg.ok_or_else(|| {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            let near = nearest(key, &known).map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
            fail(format!("`{key}` is not an option of this command{near}"))
        })?;
        words.extend(flag(arg, key, value).map_err(fail)?);
    }
    words.extend(runs.iter().cloned());
    let matches = command.try_get_matches_from(&words).map_err(|e| {
        let text = e.to_string();
        let said = text.split("\nUsage:").next().unwrap_or(&text).split("\n\nFor more").next().unwrap_or(&text);
        fail(said.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    let stage = match kind {
        Kind::Sft => Stage::Sft,
        Kind::Dpo => Stage::Dpo,
        _ => return Ok(words),
    };
    let read = |e: clap::Error| fail(e.to_string());
    let flags = TrainFlags::from_arg_matches(&matches).map_err(read)?;
    let dpo =
        if stage == Stage::Dpo { DpoFlags::from_arg_matches(&matches).map_err(read)? } else { DpoFlags::default() };
    typed::checked(stage, &flags, &dpo).map_err(|e| fail(e.to_string()))?;
    Ok(words)
}

fn flag(arg: &Arg, key: &str, value: &Value) -> Result<Vec<String>, String> {
    let name = format!("--{}", key.replace('_', "-"));
    let text = |value: &Value| match value {
        Value::Table(_) | Value::Array(_) => Err(format!("`{key}` is {value}, not one value or a list of them")),
        Value::String(text) => Ok(text.clone()),
        other => Ok(other.to_string()),
    };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            Value::Boolean(true) => Ok(vec![name]),
            Value::Boolean(false) => Ok(Vec::new()),
            other => Err(format!("`{key}` is {other}, neither true nor false")),
        };
    }
    let Value::Array(list) = value else { return Ok(vec![format!("{name}={}", text(value)?)]) };
    let texts = list.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    match arg.get_value_delimiter() {
        Some(between) => Ok(vec![format!("{name}={}", texts.join(&between.to_string()))]),
        None => Ok(texts.iter().map(|t| format!("{name}={t}")).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: Kind, text: &str) -> Result<Vec<String>, String> {
        of(kind, &text.parse().unwrap(), &[]).map_err(|e| e.to_string())
    }

    #[test]
    fn options_become_flags() {
        let text = "input = ['a', 'b']\ntokenizer = 't'\nout = 'o'\nmap = 'prompt=q'\nwrap_prompts = true\neval_fraction = 0.1";
        assert_eq!(
            words(Kind::Pack, text).unwrap(),
            [
                "--eval-fraction=0.1",
                "--input=a",
                "--input=b",
                "--map=prompt=q",
                "--out=o",
                "--tokenizer=t",
                "--wrap-prompts"
            ]
        );
        let text = "model = 'm'\ndata = 'd'\nout = 'o'\nloss_type = ['ipo', 'sft']\nuse_rslora = true\nlora_r = 4";
        let all = words(Kind::Dpo, text).unwrap();
        assert!(
            all.contains(&"--loss-type=ipo,sft".to_owned()) && all.contains(&"--use-rslora=true".to_owned()),
            "{all:?}"
        );
    }

    #[test]
    fn what_the_command_refuses_is_refused() {
        let base = "model = 'm'\ndata = 'd'\nout = 'o'\n";
        for (kind, text, want) in [
            (Kind::Pack, "tokenizer = 't'\nout = 'o'".to_owned(), "[pack]: the following required arguments"),
            (Kind::Dpo, format!("{base}bata = 1"), "`bata` is not an option of this command; did you mean `beta`?"),
            (Kind::Dpo, format!("{base}beta = -1"), "[dpo]: `beta` -1: must be"),
            (Kind::Sft, format!("{base}beta = 1"), "[sft]: `beta` is not an option"),
            (Kind::Sft, format!("{base}learning_rate = 'x'"), "[sft]: invalid value 'x'"),
            (Kind::Pack, "wrap_prompts = 3".to_owned(), "neither true nor false"),
            (Kind::Dpo, format!("{base}train = {{ a = 1 }}"), "not one value or a list"),
        ] {
            let why = words(kind, &text).unwrap_err();
            assert!(why.contains(want), "{text}: {why}");
        }
    }
}
