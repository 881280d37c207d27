//! What a run was, and the nearest place to go on from.

use super::report::From;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::{ModelConfig, ParamTable};
use crate::observe::{Event, Observe};
use crate::train::checkpoint::{Checkpoint, Identity, Saved};
use crate::train::choices::DeviceChoice;
use crate::train::memory::MemoryPlan;
use crate::train::options::{Stage, TrainOptions};
use crate::train::record::Record;
use crate::train::state::Section;
use crate::train::trained::Learns;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Options that say where things lie: those may have moved, and their content is compared.
const PLACES: [&str; 6] = ["model", "data", "ref_model", "adapter", "cache", "matmul_plans"];

/// The options of the run in `run`, as its own `config.toml` has them, with the device that it came to. Errors: it is no run's folder;
/// they cannot be read; they are others than in `run.json`.
pub fn options_of(run: &Path) -> Result<TrainOptions> {
    let record = record_of(run)?;
    let no = |why: &str| Error::file(run.join("config.toml"), format!("{why}: replay reads the run's options there"));
    let text = RunDir::read_config(run).ok_or_else(|| no("is missing or no text"))?;
    let table: toml::Table = text.parse().map_err(|_| no("is not TOML"))?;
    let named = |table: &toml::Table| table.get("stage").and_then(|v| v.as_str()).and_then(Stage::named);
    let recorded = toml::Table::try_from(given(&record)).map_err(|e| not_read(run, &e.to_string()))?;
    let stage = named(&table).or_else(|| named(&recorded));
    let stage = stage.ok_or_else(|| no("does not say whether it is one of sft or dpo"))?;
    let out = run.to_str().ok_or_else(|| Error::file(run, "has a name that is not UTF-8"))?;
    let read = |mut table: toml::Table| {
        table.insert("out".into(), out.into());
        TrainOptions::read(stage, &table).and_then(|of| of.resolve(stage).map_err(|e| e.to_string()))
    };
    let mut options = read(table).map_err(|why| no(&why))?;
    let was = read(recorded).map_err(|why| not_read(run, &why))?;
    if let Some(why) = other_option(&was, &options) {
        return Err(Error::file(run.join("config.toml"), why));
    }
    let numerics = &record.call.numerics;
    if options.compute.device == DeviceChoice::Auto && !numerics.is_empty() {
        options.compute.device = if numerics.starts_with("cpu-") { DeviceChoice::Cpu } else { DeviceChoice::Cuda };
    }
    Ok(options)
}

/// The options that `record` has a value of.
fn given(record: &Record) -> serde_json::Map<String, Value> {
    record.options.clone().into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn not_read(run: &Path, why: &str) -> Error {
    Error::file(run.join("run.json"), format!("its options cannot be read: {why}"))
}

/// The first option of `is` that is another than the run had, in words.
fn other_option(was: &TrainOptions, is: &TrainOptions) -> Option<String> {
    let all = |of: &TrainOptions| serde_json::to_value(of).unwrap_or_default();
    let (was, is) = (all(was), all(is));
    let keys = was.as_object()?.keys().chain(is.as_object()?.keys());
    let other = keys.filter(|key| !PLACES.contains(&key.as_str())).find(|key| was.get(key) != is.get(key))?;
    let said = |of: &Value| match of.get(other) {
        None | Some(Value::Null) => "not given".to_owned(),
        Some(value) => value.to_string(),
    };
    Some(format!(
        "`{other}` is {}, and in run.json {}: replay takes a step as the run did; put back what was there",
        said(&is),
        said(&was)
    ))
}

/// What `run.json` says. Errors: there is none.
pub(super) fn record_of(run: &Path) -> Result<Record> {
    if !RunDir::is_there(run) {
        return Err(Error::file(run, "is not the folder of a run: it has no metrics.jsonl"));
    }
    let none =
        || Error::file(run.join("run.json"), "is missing or damaged: replay reads there what the run was made from");
    Record::refuse_newer(run)?;
    Record::read(run).ok_or_else(none)
}

/// Refuses what the run was not made from.
pub(super) fn check_same(record: &Record, now: &Identity, c: &TrainOptions) -> Result<()> {
    let was = &record.sha256;
    let of = |path: &Path, was: &str, is: &str, what: &str| match was == is {
        true => Ok(()),
        false => Err(Error::file(
            path,
            format!(
                "is not the {what} of the run in {} ({was:.16}..., now {is:.16}...): put back what was there",
                c.files.out.display()
            ),
        )),
    };
    of(&c.files.data, &was.data, &now.train_sha256, "data")?;
    of(&c.files.model, &was.model, &now.model_sha256, "model")?;
    if let (Some(was), Some(is)) = (&was.reference, &now.reference_sha256) {
        of(c.reference_dir(), was, is, "reference")?;
    }
    Ok(())
}

/// Warns of each of the steps after `from`, up to `step`, that the run computed another way than is done `now`: a run that went on
/// with other numerics has steps of several kinds.
pub(super) fn warn_of_numerics(
    record: &Record,
    now: &str,
    (from, step): (u64, u64),
    observe: &mut dyn Observe,
) -> Result<()> {
    // Of each call, the first last: a step is of the last that took it.
    let of_calls = record.resumptions.iter().map(|r| &r.call).chain([&record.call]);
    let begun_at = [0].into_iter().chain(record.resumptions.iter().map(|r| r.from_step));
    let calls: Vec<(u64, &str)> = begun_at.zip(of_calls.map(|call| call.numerics.as_str())).collect();
    let mut last = step;
    while last > from {
        let Some((begun, was)) = calls.iter().rfind(|(begun, _)| *begun < last) else { break };
        let first = from.max(*begun) + 1;
        // What nothing is known of was lost with its record.
        if !was.is_empty() && *was != now {
            let steps = if first == last { format!("step {last}") } else { format!("steps {first} to {last}") };
            observe.tell(&Event::Warning(&format!(
                "the run computed {steps} another way (`{was}`, now `{now}`): the numbers here are near its own, and not the same"
            )))?;
        }
        last = first - 1;
    }
    Ok(())
}

/// The last checkpoint before `step` that can be read and that the run `goes_on` from; `None`: the run's beginning.
pub(super) fn nearest<B: Backend>(
    be: &B,
    (record, run): (&Record, &Path),
    goes_on: impl Fn(&Saved) -> bool,
    step: u64,
    (model, learns): (&ModelConfig, Learns<'_>),
    observe: &mut dyn Observe,
) -> Result<(Option<Checkpoint>, From)> {
    let own = RunDir::checkpoints(run).into_iter().map(|c| (c.step, c.path));
    let others = record.resumptions.iter().filter_map(|r| Some((r.from_step, run.join(r.checkpoint.as_ref()?))));
    let mut all: Vec<(u64, PathBuf)> = own.chain(others).filter(|(at, path)| *at < step && path.is_dir()).collect();
    // Of one step its own first.
    all.sort_by_key(|(at, path)| std::cmp::Reverse((*at, path.starts_with(run))));
    let (table, sections): (ParamTable, Vec<Section>) = MemoryPlan::sections(be, model, learns)?;
    for (_, path) in all {
        let checked = Checkpoint::open(&path).and_then(|c| c.verify(&table, &sections).map(|()| c));
        match checked {
            Ok(c) if c.saved().global_step < step => {
                if !goes_on(c.saved()) {
                    let line = format!("{} is of a run with other options; replay begins before it", path.display());
                    observe.tell(&Event::Note(&line))?;
                    continue;
                }
                let from = From { step: c.saved().global_step, checkpoint: Some(path) };
                return Ok((Some(c), from));
            }
            Ok(_) => {}
            Err(e) => observe.tell(&Event::Note(&format!("{e}; replay begins before it")))?,
        }
    }
    Ok((None, From::default()))
}
