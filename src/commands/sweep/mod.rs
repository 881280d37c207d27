//! `fusedpo sweep`: a search over options, each run a process of its own.

mod args;
mod folder;
mod jobs;
mod row;
mod score;

use super::config;
use super::effect;
use super::hub;
use super::out;
use crate::data::shard::{Dataset, Split};
use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT};
use crate::model::wanted::Wanted;
use crate::note;
use crate::observe::Observe;
use crate::say;
use crate::sweep::{Point, Results, Spec, svg};
use crate::train::choices::DeviceChoice;
use crate::train::options::{Stage, TrainOptions};
use crate::warn;
pub use args::SweepArgs;
use folder::Folder;
pub(in crate::commands) use row::TAKEN;
use row::{Plan, REFERENCE};

/// Runs the command.
pub fn run(args: &SweepArgs, observe: &mut dyn Observe) -> Result<()> {
    out::refuse_stdout(&args.out)?;
    if args.gpus.iter().any(String::is_empty) {
        return Err(Error::usage("`gpus`: an empty name; give them as in 0,1,2"));
    }
    let text = files::read_text(&args.file, MOST_TEXT).map_err(|e| e.doing("read the sweep"))?;
    let spec = Spec::parse(&args.file, &text)?;
    let plans = plans(args, &spec, observe)?;
    if !args.gpus.is_empty() && plans.iter().all(|p| p.options.compute.device == DeviceChoice::Cpu) {
        return effect::refuse("gpus", "every run is on the CPU (`device`); leave it out");
    }
    let folder = Folder::open(&args.out, &spec, &text)?;
    note!("{}: {} runs over {}", args.out.display(), plans.len(), spec.varied.join(", "));
    let results = jobs::all(args, &spec, &folder, &plans)?;
    folder.write(&results)?;
    finish(args, &spec, results)
}

/// The runs, each checked as its own command would: nothing starts before all are sound.
fn plans(args: &SweepArgs, spec: &Spec, observe: &mut dyn Observe) -> Result<Vec<Plan>> {
    for (key, why) in [
        ("out", "a sweep names the folders of its runs"),
        ("resume", "a sweep's runs go on by themselves"),
        ("allow_other_numerics", "runs of a sweep are to be compared"),
    ] {
        if spec.base.contains_key(key) || spec.varied.iter().any(|varied| varied == key) {
            return Err(Error::file(&args.file, format!("`{key}`: {why}; leave it out")));
        }
    }
    config::check_keys(spec.stage, &args.file, spec.base.keys().chain(&spec.varied))?;
    if let Some(path) = &spec.measure.prompts {
        files::open(path).map_err(|e| e.doing("read the prompts"))?;
    }
    let mut plans: Vec<Plan> = Vec::with_capacity(spec.points.len());
    for point in &spec.points {
        plans.push(plan(args, spec, point, observe)?);
    }
    Ok(plans)
}

fn plan(args: &SweepArgs, spec: &Spec, point: &Point, observe: &mut dyn Observe) -> Result<Plan> {
    let named = |e: Error| match e {
        Error::Usage(why) => Error::file(&args.file, format!("run {}: {why}", point.name)),
        e => e,
    };
    let mut table = spec.options(point);
    let out = args.out.join(&point.name);
    let text = out.to_str().ok_or_else(|| Error::file(&args.out, "the folder's name is no UTF-8; give another"))?;
    table.insert("out".into(), text.into());
    if let Some(key) = ["model", "data"].iter().find(|key| !table.contains_key(**key)) {
        return Err(Error::file(&args.file, format!("`{key}` is missing: every run needs it")));
    }
    let mut options = TrainOptions::from_table(spec.stage, &table).map_err(named)?;
    effect::of_run(&point.values, &options).map_err(named)?;
    hub::place_run(&mut options, Wanted::Model, observe)?;
    for dir in [Some(&options.files.model), options.reference.ref_model.as_ref()].into_iter().flatten() {
        let dir = options.folder(dir);
        if !dir.is_dir() {
            return Err(Error::file(dir, format!("is not there, and {} names it as a model", args.file.display())));
        }
    }
    let data = Dataset::open(&options.files.data, Split::Train)?;
    let follows = options.reference.sync_ref_model;
    if spec.stage == Stage::Dpo && options.loss().reference() && !follows && options.reference.cache.is_none() {
        let cache = args.out.join(REFERENCE);
        table.insert("cache".into(), cache.to_string_lossy().into_owned().into());
        options.reference.cache = Some(cache);
    }
    table.remove("out");
    table.insert("stage".into(), spec.stage.to_string().into());
    Ok(Plan { point: point.clone(), table, options, pairs: data.num_pairs() > 0, labels: data.has_labels() })
}

/// Says what came out, in the end.
fn finish(args: &SweepArgs, spec: &Spec, results: Results) -> Result<()> {
    let missing: Vec<_> = results.runs.iter().filter_map(|r| Some((&r.name, r.error.as_ref()?))).collect();
    match args.json {
        true => say::json_text(results.json().trim_end()),
        false => {
            results.table().iter().for_each(|line| say!("{line}"));
            say!("{}", args.out.join("sweep.json").display());
        }
    }
    if missing.len() < results.runs.len() {
        missing.iter().for_each(|(name, error)| warn!("{name}: {error}"));
    }
    match svg(&results) {
        Some(_) => note!("reward over KL: {}", args.out.join("frontier.svg").display()),
        None if !spec.measure.scores() => {
            note!("no picture: nothing is scored without `reward` or `scorer` in [sweep]")
        }
        None => note!("no picture: no run has both a reward and a KL"),
    }
    if let ([(name, error), ..], true) = (&missing[..], missing.len() == results.runs.len()) {
        return Err(Error::Training(format!("every one of the {} runs failed; {name}: {error}", missing.len())));
    }
    Ok(())
}
