//! `--config FILE`: options as keys, and which of them what was typed leaves no meaning.

use super::{trl, trl_keys, yaml};
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT, parse_toml};
use crate::loss::{LossType, Param};
use crate::note;
use crate::train::group::Group;
use crate::train::loss_options::LossTypes;
use crate::train::optim::OptimOptions;
use crate::train::options::{
    ComputeOptions, DataOptions, EvalOptions, FileOptions, LossOptions, ReferenceOptions, ReportOptions, ResumeOptions,
    SaveOptions, Stage, TrainOptions, TrainedOptions,
};
use crate::train::schedule::ScheduleOptions;
use std::path::Path;
use toml::Value;

/// A key and the value that alone is meant; `None`: any.
type Meant = (&'static str, Option<&'static str>);

const LORA: [Meant; 5] =
    [("lora_r", None), ("lora_alpha", None), ("lora_target_modules", None), ("use_rslora", None), ("lora_init", None)];

/// What has no meaning where nothing is evaluated.
const OF_EVALUATIONS: [Meant; 14] = [
    ("eval_steps", None),
    ("max_eval_samples", None),
    ("eval_data", None),
    ("kl_samples", None),
    ("kl_max_new_tokens", None),
    ("kl_budget", None),
    ("sample_prompts", None),
    ("sample_max_new_tokens", None),
    ("sample_temperature", None),
    ("load_best_model_at_end", None),
    ("metric_for_best_model", None),
    ("greater_is_better", None),
    ("early_stopping_patience", None),
    ("early_stopping_threshold", None),
];

/// What a typed option rules out in a file: a run would refuse it beside that, or not read what was typed.
fn overrules(key: &str, value: &Value) -> Vec<Meant> {
    let beside_an_adapter = [("train", None), ("gradient_dtype", Some("bf16"))];
    match (key, value) {
        ("num_train_epochs", _) => vec![("max_steps", None)],
        ("fit", Value::Boolean(true)) => vec![("token_budget", None)],
        ("token_budget", _) => vec![("fit", None)],
        ("warmup_steps", _) => vec![("warmup_ratio", None)],
        ("warmup_ratio", _) => vec![("warmup_steps", None)],
        ("eval_strategy", Value::String(s)) if s == "no" => OF_EVALUATIONS.to_vec(),
        ("eval_steps", Value::Integer(1..)) | ("max_eval_samples" | "eval_data", _) => {
            vec![("eval_strategy", Some("no"))]
        }
        ("sync_ref_model", Value::Boolean(true)) => vec![("cache", None)],
        ("sync_ref_model", _) => vec![("ref_model_mixup_alpha", None), ("ref_model_sync_steps", None)],
        ("f_divergence_type", Value::String(s)) if s != "alpha_divergence" => vec![("f_alpha_divergence_coef", None)],
        ("adapter", _) => [&LORA[..], &beside_an_adapter].concat(),
        ("lora_r", _) => [&[("adapter", None)][..], &beside_an_adapter].concat(),
        ("device", Value::String(s)) if s == "cpu" => {
            vec![("logits_dtype", Some("bf16")), ("cuda_graphs", Some("on")), ("matmul_plans", None)]
        }
        _ => vec![],
    }
}

/// Takes out of `file` what is ruled out by what was typed, and says so.
fn overrule(path: &Path, file: &mut toml::Table, typed: &toml::Table) {
    for (key, value) in typed {
        let meant = |(out, is): &Meant| is.is_none_or(|is| file.get(*out).and_then(Value::as_str) == Some(is));
        let out = overrules(key, value).into_iter().filter(meant).map(|(out, _)| out);
        // What was typed twice over is for its own message.
        let out: Vec<&str> = out.filter(|out| !typed.contains_key(*out)).collect();
        let (flag, value) = (key.replace('_', "-"), value.as_str().map(|s| format!(" {s}")).unwrap_or_default());
        remove(path, file, &out, &format!("--{flag}{value} was typed"));
    }
}

/// The options in a file, without those that what was typed has no use for. Errors: every key that nobody knows or that means
/// something else here, in one line with what to write.
pub fn read(stage: Stage, path: &Path, typed: &toml::Table) -> Result<toml::Table> {
    let text = files::read_text(path, MOST_TEXT).map_err(|e| e.doing("read the configuration"))?;
    let is_yaml = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
    let mut table = match is_yaml {
        true => of_yaml(stage, path, &text, typed)?,
        false => {
            let table = parse_toml(path, &text)?;
            refuse(path, strangers(stage, table.keys()))?;
            table
        }
    };
    leave_out(stage, path, &mut table, typed);
    TrainOptions::read(stage, &table).map_err(|why| Error::file(path, why))?;
    Ok(table)
}

/// Refuses keys of `path` that `stage` does not know, all of them in one line.
pub fn check_keys<'a>(stage: Stage, path: &Path, keys: impl Iterator<Item = &'a String>) -> Result<()> {
    refuse(path, strangers(stage, keys))
}

/// The options in YAML, by our names or TRL's.
fn of_yaml(stage: Stage, path: &Path, text: &str, typed: &toml::Table) -> Result<toml::Table> {
    let entries = yaml::entries(text).map_err(|why| Error::file(path, why))?;
    let nulls = entries.iter().filter(|(key, value, _)| value.is_none() && !trl_keys::knows(key));
    let nulls: Vec<String> = nulls.map(|(key, ..)| key.clone()).collect();
    let trl::Translated { table, defaults, mut answers } = trl::translated(yaml::table(entries), stage, typed);
    answers.extend(strangers(stage, table.keys().chain(&nulls)));
    refuse(path, answers)?;
    let beside = |key: &str| {
        let new_adapter = LORA.iter().any(|(of, _)| *of == key) && typed.contains_key("adapter");
        typed.contains_key(key) || new_adapter || (key == "num_train_epochs" && typed.contains_key("max_steps"))
    };
    let said: Vec<String> = defaults.into_iter().filter(|(key, _)| !beside(key)).map(|(_, said)| said).collect();
    if !said.is_empty() {
        note!("{}: not in the file: {}", path.display(), said.join("; "));
    }
    Ok(table)
}

/// One error of all.
fn refuse(path: &Path, answers: Vec<String>) -> Result<()> {
    match answers.is_empty() {
        true => Ok(()),
        false => Err(Error::file(path, answers.join("; "))),
    }
}

/// About each of `keys` that no stage knows: what there is instead, or the nearest that there is.
fn strangers<'a>(stage: Stage, keys: impl Iterator<Item = &'a String>) -> Vec<String> {
    let of_all = [
        FileOptions::KEYS,
        ScheduleOptions::KEYS,
        OptimOptions::KEYS,
        TrainedOptions::KEYS,
        DataOptions::KEYS,
        ComputeOptions::KEYS,
        EvalOptions::KEYS,
        SaveOptions::KEYS,
        ReportOptions::KEYS,
        ResumeOptions::KEYS,
    ];
    let of_dpo = [LossOptions::KEYS, ReferenceOptions::KEYS].concat();
    let mut known = of_all.concat();
    // What the other stage knows is no slip of the pen.
    let strange =
        keys.filter(|key| *key != "stage" && !known.contains(&key.as_str()) && !of_dpo.contains(&key.as_str()));
    let strange: Vec<&String> = strange.collect();
    if stage == Stage::Dpo {
        known.extend(of_dpo);
    }
    let about = |key: &String| {
        trl_keys::answer(key).unwrap_or_else(|| {
            let why = format!("`{key}` is not an option of this command");
            trl_keys::nearest(key, &known).map_or(why.clone(), |name| format!("{why}; did you mean `{name}`?"))
        })
    };
    strange.into_iter().map(about).collect()
}

/// A run's own configuration serves another stage and another loss too: what is asked for wins, and what of the file has no
/// meaning there is left out and named. In a file that contradicts itself nothing is left out.
fn leave_out(stage: Stage, path: &Path, file: &mut toml::Table, typed: &toml::Table) {
    let name = |table: &toml::Table, key: &str| table.get(key)?.as_str().map(str::to_owned);
    let of = name(file, "stage").and_then(|s| Stage::named(&s)).filter(|of| *of != stage);
    if let Some(of) = of {
        file.remove("stage");
        let of_dpo = [LossOptions::KEYS, ReferenceOptions::KEYS].concat();
        // An SFT run did not choose its loss.
        let mut keys: Vec<&str> = if of == Stage::Sft { vec!["loss_type"] } else { of_dpo };
        // Nor did a run that has its stage's default choose its learning rate.
        let default = TrainOptions::read(of, &toml::Table::new()).map(|o| o.schedule.learning_rate);
        if file.get("learning_rate").and_then(toml::Value::as_float) == default.ok()
            && !typed.contains_key("learning_rate")
        {
            keys.push("learning_rate");
        }
        remove(path, file, &keys, &format!("the file is of {of}, this is {stage}"));
    }
    overrule(path, file, typed);
    let loss = |table: &toml::Table| -> Option<LossTypes> { table.get("loss_type")?.clone().try_into().ok() };
    let Some(asked) = loss(typed).filter(|l| *l != loss(file).unwrap_or(LossType::Sigmoid.into())) else { return };
    let asked = LossOptions { loss_type: asked, ..Default::default() }.spec();
    let mut keys = vec!["loss_weights"];
    keys.extend(Param::ALL.iter().filter(|p| !asked.has(**p)).map(|p| p.name()));
    keys.extend(ReferenceOptions::KEYS.iter().filter(|_| !asked.reference()));
    let asked = asked.name();
    remove(path, file, &keys, &format!("not for the {asked} loss"));
}

/// Takes `keys` out of `file` and says which it had.
fn remove(path: &Path, file: &mut toml::Table, keys: &[&str], why: &str) {
    // Nothing is lost with what says that there is nothing: no smoothing, no weighting, the divergence of all losses.
    let nothing = |value: &toml::Value| {
        let zero = value.as_float() == Some(0.0) || value.as_integer() == Some(0);
        zero || value.as_bool() == Some(false) || value.as_str() == Some("reverse_kl")
    };
    let had = keys.iter().filter(|key| file.remove(**key).is_some_and(|value| !nothing(&value)));
    let had: Vec<String> = had.map(|key| format!("`{key}`")).collect();
    if !had.is_empty() {
        note!("{}: {} left out: {why}", path.display(), had.join(", "));
    }
}
