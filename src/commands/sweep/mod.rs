//! `fusedpo sweep`: a search over options, each run a process of its own.

mod args;
mod folder;
mod inputs;
mod jobs;
mod planned;
mod plans;
mod program;
mod row;
mod score;

use super::effect;
use super::out;
use crate::device;
use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT};
use crate::note;
use crate::observe::Observe;
use crate::say;
use crate::sweep::{Results, Spec, svg};
use crate::train::choices::DeviceChoice;
use crate::warn;
pub use args::SweepArgs;
use folder::Folder;
use inputs::Inputs;
use planned::Plan;
pub(in crate::commands) use row::TAKEN;
use row::{Common, VISIBLE};

/// Runs the command.
pub fn run(args: &SweepArgs, observe: &mut dyn Observe) -> Result<()> {
    out::refuse_stdout(&args.out)?;
    if args.gpus.iter().any(String::is_empty) {
        return Err(Error::usage("`gpus`: an empty name; give them as in 0,1,2"));
    }
    let text = files::read_text(&args.file, MOST_TEXT).map_err(|e| e.doing("read the sweep"))?;
    let spec = Spec::parse(&args.file, &text)?;
    let plans = plans::of(args, &spec, observe)?;
    refuse_gpus(args, &plans)?;
    let named = plans.iter().map(|p| p.options.compute.device).find(|d| matches!(d, DeviceChoice::CudaAt(_)));
    if let Some(device) = named.filter(|_| !args.gpus.is_empty()) {
        return effect::refuse(
            "gpus",
            &format!("a run names its GPU (`device` {device}), and would see one alone; leave one of them out"),
        );
    }
    let folder = Folder::open(&args.out, &spec, &text)?;
    let inputs = Inputs::of(&spec, &plans)?;
    inputs.agree(&folder, &plans)?;
    note!("{}: {} runs over {}", args.out.display(), plans.len(), spec.varied.join(", "));
    let results = jobs::all(args, &Common { spec: &spec, folder: &folder, inputs: &inputs }, &plans)?;
    folder.write(&results)?;
    finish(args, &spec, results)
}

/// Refuses GPUs that no run would see.
fn refuse_gpus(args: &SweepArgs, plans: &[Plan]) -> Result<()> {
    let all = |of: DeviceChoice| plans.iter().all(|p| [of, DeviceChoice::Cpu].contains(&p.options.compute.device));
    if args.gpus.is_empty() || !all(DeviceChoice::Auto) {
        return Ok(());
    }
    if all(DeviceChoice::Cpu) {
        return effect::refuse("gpus", "every run is on the CPU (`device`); leave it out");
    }
    // Who hides GPUs from this process may show them to the runs.
    if std::env::var_os(VISIBLE).is_none() && !device::is_gpu(DeviceChoice::Auto) {
        return effect::refuse("gpus", "no GPU can be used here, and every run is on the CPU (`device`); leave it out");
    }
    Ok(())
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
        let (all, trained) = (missing.len(), results.runs.iter().filter(|r| r.steps.is_some()).count());
        return Err(Error::Training(match (all, trained) {
            (_, 0) => format!("every one of the {all} runs failed; {name}: {error}"),
            (1, _) => format!("the run was trained, but not measured to its end; {name}: {error}"),
            _ => format!("{trained} of {all} runs were trained, but none was measured to its end; {name}: {error}"),
        }));
    }
    Ok(())
}
