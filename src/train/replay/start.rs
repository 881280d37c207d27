//! What a run was, and the nearest place to go on from.

use super::report::From;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::{ModelConfig, ParamTable};
use crate::observe::{Event, Observe};
use crate::train::checkpoint::{Checkpoint, Identity, Saved};
use crate::train::memory::MemoryPlan;
use crate::train::options::{Stage, TrainOptions};
use crate::train::record::Record;
use crate::train::state::Section;
use crate::train::trained::Learns;
use std::path::{Path, PathBuf};

/// The options of the run in `run`, as its own `config.toml` has them. Errors: it is no run's folder, or they cannot be read.
pub fn options_of(run: &Path) -> Result<TrainOptions> {
    let record = record_of(run)?;
    let no = |why: &str| Error::file(run.join("config.toml"), format!("{why}: replay reads the run's options there"));
    let text = RunDir::read_config(run).ok_or_else(|| no("is missing or no text"))?;
    let mut table: toml::Table = text.parse().map_err(|_| no("is not TOML"))?;
    let stage = table.get("stage").and_then(|v| v.as_str()).map(str::to_owned);
    let recorded = record.options.get("stage").and_then(|v| v.as_str());
    let stage = stage.as_deref().or(recorded).and_then(Stage::named);
    let stage = stage.ok_or_else(|| no("does not say whether it is one of sft or dpo"))?;
    let out = run.to_str().ok_or_else(|| Error::file(run, "has a name that is not UTF-8"))?;
    table.insert("out".into(), out.into());
    let read = TrainOptions::read(stage, &table).map_err(|why| no(&why))?;
    read.resolve(stage).map_err(|e| no(&e.to_string()))
}

/// What `run.json` says. Errors: there is none.
pub(super) fn record_of(run: &Path) -> Result<Record> {
    if !RunDir::is_there(run) {
        return Err(Error::file(run, "is not the folder of a run: it has no metrics.jsonl"));
    }
    let none =
        || Error::file(run.join("run.json"), "is missing or damaged: replay reads there what the run was made from");
    Record::read(run).ok_or_else(none)
}

/// Refuses what the run was not made from, and warns of another way to compute.
pub(super) fn check_same(record: &Record, now: &Identity, c: &TrainOptions, observe: &mut dyn Observe) -> Result<()> {
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
    let (was, is) = (&record.call.numerics, &now.numerics);
    if was != is {
        observe.tell(&Event::Warning(&format!(
            "the run was computed another way (`{was}`, now `{is}`): the numbers here are near its own, and not the same"
        )))?;
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
    let others = record.resumptions.iter().filter_map(|r| Some((r.from_step, PathBuf::from(r.checkpoint.as_ref()?))));
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
