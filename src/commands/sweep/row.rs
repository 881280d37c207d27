//! One run of a sweep: trained, evaluated, sampled and scored, each by a process; what is there is not made again.

use super::folder::Folder;
use super::inputs::{Inputs, Marks};
use super::planned::Plan;
use super::score;
use crate::commands::child::{self, Ended};
use crate::commands::signal;
use crate::data::shard::{Dataset, Split};
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON, MOST_TEXT, RunDir};
use crate::note;
use crate::sweep::{Row, Spec};
use crate::train::record::{Outcome, Record};
use crate::warn;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// Which GPUs a process sees.
pub(super) const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// What a row says that was not made, as somebody stopped the sweep.
pub(super) const STOPPED: &str = "stopped before its end";

/// What a run says whose folder another has.
pub(in crate::commands) const TAKEN: &str = "another run is writing to it";

/// Sidecars of all runs.
pub(super) const REFERENCE: &str = "reference";

/// Prompts of the data that are continued where nobody says how many.
pub(super) const SAMPLES: usize = 64;

/// What all runs of a sweep have.
pub(super) struct Common<'a> {
    pub spec: &'a Spec,
    pub folder: &'a Folder,
    pub inputs: &'a Inputs,
}

/// What a run computes with.
pub(super) struct Slot {
    pub threads: usize,
    pub gpu: Option<String>,
}

/// How far a row came.
pub(super) enum Step {
    /// To its end, or to an error that it says.
    Done,
    /// A signal came.
    Stopped,
}

/// An end before the last step of a row.
enum End {
    Stopped,
    Failed(String),
    Broken(Error),
}

impl From<Error> for End {
    fn from(e: Error) -> Self {
        End::Broken(e)
    }
}

/// Whether the run in `out` has all its steps.
pub(super) fn is_trained(out: &Path) -> bool {
    Record::read(out).is_some_and(|r| r.outcome == Outcome::Finished) && !RunDir::is_taken(out)
}

/// Makes what is missing of a run, and fills `row`. Errors: the sweep's folder cannot be written to; of everything else the row
/// says why.
pub(super) fn make(all: &Common, plan: &Plan, slot: &Slot, row: &mut Row) -> Result<Step> {
    match steps(all, plan, slot, row) {
        Ok(()) => Ok(Step::Done),
        Err(End::Failed(why)) => {
            row.error = Some(why);
            Ok(Step::Done)
        }
        Err(End::Stopped) => {
            row.error = Some(STOPPED.to_owned());
            Ok(Step::Stopped)
        }
        Err(End::Broken(e)) => Err(e),
    }
}

fn steps(all: &Common, plan: &Plan, slot: &Slot, row: &mut Row) -> Result<(), End> {
    let Common { spec, folder, inputs } = *all;
    let out = folder.path(&plan.point.name);
    train(folder, plan, slot, &out)?;
    let record = Record::read(&out).ok_or_else(|| End::Failed("its run.json cannot be read".into()))?;
    row.steps = Some(record.steps_done);
    // Of the model that it kept, as all that is measured below.
    let kept = record.best.as_ref().filter(|best| best.loaded).map(|best| best.step);
    RunDir::each_row_of(&out, |line| {
        let is_kept = kept.is_none_or(|step| line.get("step").and_then(Value::as_u64) == Some(step));
        if let (Some(loss), true) = (line.get("eval_loss").and_then(Value::as_f64), is_kept) {
            row.eval_loss = Some(loss);
        }
    })?;
    if plan.pairs || plan.labels {
        let eval = evaluated(spec, plan, slot, folder)?;
        let number = |key: &str| eval.get(key).and_then(Value::as_f64);
        let ends = |key: &str| serde_json::from_value(eval.get(key)?.clone()).ok();
        (row.accuracy, row.kl, row.kl_ci95) = (number("accuracy"), number("kl"), ends("kl_ci95"));
    }
    if spec.measure.scores() {
        generate(all, plan, slot, &out)?;
        let scores = score::of(spec, inputs, &out).map_err(|e| e.map_or(End::Stopped, End::Failed))?;
        row.reward = Some(scores.reward);
        row.reward_ci95 = Some(scores.reward_ci95);
        row.samples = Some(scores.samples);
    }
    Ok(())
}

fn train(folder: &Folder, plan: &Plan, slot: &Slot, out: &Path) -> Result<(), End> {
    let name = &plan.point.name;
    let config = folder.path(&format!("{name}.toml"));
    let text = toml::to_string(&plan.table).map_err(|e| End::Failed(e.to_string()))?;
    // One of a folder that was moved since names a cache that is no more.
    if files::read_text(&config, MOST_TEXT).ok().as_ref() != Some(&text) {
        files::write(&config, text.as_bytes())?;
    }
    let stage = plan.options.stage.to_string();
    let mut words = words([&stage, "--config"]);
    words.push(config.into());
    words.extend(["--out".into(), out.into(), "--resume".into(), "auto".into()]);
    loop {
        // One that a killed sweep left saves and ends; what it saved is gone on with.
        if RunDir::is_taken(out) {
            note!("{name}: a run of before is still ending");
        }
        while RunDir::is_taken(out) {
            if signal::stop_requested() {
                return Err(End::Stopped);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if is_trained(out) {
            return Ok(());
        }
        match own(name, &words, slot, "training") {
            // It had hardly begun when its sweep was killed, and took the folder just now.
            Err(End::Failed(why)) if why.contains(TAKEN) && !signal::stop_requested() => {}
            ended => return ended.map(drop),
        }
    }
}

/// The held-out split and the KL estimate, by one measure for all runs: `eval --json`.
fn evaluated(spec: &Spec, plan: &Plan, slot: &Slot, folder: &Folder) -> Result<Value, End> {
    let out = &folder.path(&plan.point.name);
    let path = out.join("eval.json");
    if let Some(found) = files::read_text(&path, MOST_TEXT).ok().and_then(|text| serde_json::from_str(&text).ok()) {
        return Ok(found);
    }
    let o = &plan.options;
    let mut words = model("eval", plan, out);
    words.extend(["--data".into(), (&o.files.data).into(), "--ref-model".into(), o.reference_dir().into()]);
    // One measure, whatever the runs' losses are.
    let loss = if plan.pairs { "sigmoid" } else { "kto" };
    words.extend(self::words(["--loss-type", loss, "--beta", "0.1", "--json"]));
    words.extend(self::words(["--kl-samples", &spec.measure.kl_samples.to_string()]));
    if spec.measure.kl_samples > 0 {
        let length = spec.measure.max_new_tokens.to_string();
        words.extend(self::words(["--kl-max-new-tokens", &length, "--seed", &spec.measure.sample_seed.to_string()]));
    }
    // Of a run without a reference of its own too.
    let cache = o.reference.cache.clone().unwrap_or_else(|| folder.path(REFERENCE));
    words.extend(["--cache".into(), cache.into()]);
    words.extend(o.data.token_budget.iter().flat_map(|n| ["--token-budget".into(), n.to_string().into()]));
    words.extend(given(plan, &["logits_dtype"]));
    let text = own(&plan.point.name, &words, slot, "eval")?;
    let value: Value =
        serde_json::from_slice(&text).map_err(|e| End::Failed(format!("eval printed what is no JSON: {e}")))?;
    files::write(&path, &text)?;
    Ok(value)
}

/// Responses to the prompts: `generate --input`, a line each in `generations.jsonl`.
fn generate(all: &Common, plan: &Plan, slot: &Slot, out: &Path) -> Result<(), End> {
    let to = out.join(score::GENERATIONS);
    let marks = Marks { prompts: Some(all.inputs.prompts()), scorer: None };
    if to.symlink_metadata().is_ok() && Marks::of(out).prompts == marks.prompts {
        let Some(why) = score::damage(&to, plan.prompts) else { return Ok(()) };
        warn!("{}: {} {why}: responses are drawn again", plan.point.name, to.display());
    }
    let m = &all.spec.measure;
    let prompts = match &m.prompts {
        Some(path) => path.clone(),
        None => {
            let path = out.join("prompts.jsonl");
            files::write(&path, prompts(&plan.options.files.data, m.samples.unwrap_or(SAMPLES))?.as_bytes())?;
            path
        }
    };
    let mut words = model("generate", plan, out);
    // One of a killed sweep may just have written it.
    words.extend(["--input".into(), prompts.into(), "--out".into(), (&to).into(), "--overwrite".into()]);
    words.extend(self::words(["--max-new-tokens", &m.max_new_tokens.to_string()]));
    if m.temperature > 0.0 {
        let [temperature, seed] = [m.temperature.to_string(), m.sample_seed.to_string()];
        words.extend(self::words(["--temperature", &temperature, "--seed", &seed]));
        if m.top_p < 1.0 {
            words.extend(self::words(["--top-p", &m.top_p.to_string()]));
        }
    }
    // Nothing is known of the file until it is whole: one that is killed between the two must not take it for that of other prompts.
    Marks::default().write(out)?;
    own(&plan.point.name, &words, slot, "generate")?;
    marks.write(out)?;
    Ok(())
}

/// Rows for `generate` with the first prompts of the data.
fn prompts(data: &Path, samples: usize) -> Result<String> {
    // A row needs an answer's column, which `generate` does not read.
    let row = |ids: Vec<u32>| json!({ "prompt_ids": ids, "completion_ids": ids[..1] }).to_string() + "\n";
    Ok(prompt_ids(data, samples)?.into_iter().map(row).collect())
}

/// The first prompts of the held-out split, or of the training split where nothing is held out.
pub(super) fn prompt_ids(data: &Path, samples: usize) -> Result<Vec<Vec<u32>>> {
    let split = if Dataset::has_split(data, Split::Eval) { Split::Eval } else { Split::Train };
    let data = Dataset::open(data, split)?;
    let all = (0..data.num_groups()).map(|g| data.group(g).prompt().iter().collect::<Vec<u32>>());
    Ok(all.filter(|ids| !ids.is_empty()).take(samples).collect())
}

/// A pass of `reference` for a run that reads sidecars; `None`: it reads none, or has them of its own.
pub(super) fn reference(plan: &Plan) -> Option<Vec<OsString>> {
    let o = &plan.options;
    let cache = o.reference.cache.as_ref()?;
    let mut words = words(["reference", "--quiet", "--model"]);
    words.push(o.reference_dir().into());
    if let (Some(adapter), None) = (&o.train.adapter, &o.reference.ref_model) {
        words.extend(["--adapter".into(), adapter.into()]);
    }
    words.extend(["--data".into(), (&o.files.data).into(), "--cache".into(), cache.into()]);
    words.extend(o.data.token_budget.iter().flat_map(|n| ["--token-budget".into(), n.to_string().into()]));
    words.extend(given(plan, &["device", "dtype", "logits_dtype", "quantize", "double_quant"]));
    Some(words)
}

/// `COMMAND --model ...` of what a run made: a model, or an adapter beside one.
fn model(command: &str, plan: &Plan, out: &Path) -> Vec<OsString> {
    let mut all = words([command, "--model"]);
    match plan.options.train.has_adapter() {
        true => {
            all.extend([plan.options.files.model.clone().into(), "--adapter".into(), out.into()]);
            all.extend(given(plan, &["quantize", "double_quant"]));
        }
        false => all.push(out.into()),
    }
    all.extend(given(plan, &["device", "dtype"]));
    all
}

/// Those of `keys` that the run has, as flags.
fn given(plan: &Plan, keys: &[&str]) -> Vec<OsString> {
    let value = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let found = keys.iter().filter_map(|key| Some((key, plan.table.get(*key)?)));
    found.flat_map(|(key, v)| [format!("--{}", key.replace('_', "-")).into(), value(v).into()]).collect()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).to_vec()
}

/// A process of this program for `doing`; what it printed.
fn own(name: &str, words: &[OsString], slot: &Slot, doing: &str) -> Result<Vec<u8>, End> {
    let mut all: Vec<OsString> = words.to_vec();
    all.extend(["--quiet".into(), "--threads".into(), slot.threads.to_string().into()]);
    let env: Vec<_> = slot.gpu.iter().map(|gpu| (VISIBLE.to_owned(), gpu.clone())).collect();
    match child::run_self(&all, &env, &|line| warn!("{name}: {}", line.trim_start_matches("warning: ")))? {
        Ended::Well(text) if text.len() as u64 <= MOST_JSON => Ok(text),
        Ended::Well(_) => Err(End::Failed(format!("{doing} printed more than can be"))),
        Ended::Stopped => Err(End::Stopped),
        Ended::Badly(why) => Err(End::Failed(format!("{doing} {why}"))),
    }
}
