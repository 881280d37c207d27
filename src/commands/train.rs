//! `fusedpo sft` and `fusedpo dpo`.

use super::hub;
use super::out;
use super::ranks;
use super::train_flags::{DpoFlags, TrainFlags};
use super::typed::{resolve, typed, word};
use crate::backend::Backend;
use crate::device::{self, Task};
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::wanted::Wanted;
use crate::note;
use crate::observe::{Event, Flow, Observe};
use crate::say;
use crate::train::eval;
use crate::train::joined::Job;
use crate::train::options::{Stage, TrainOptions};
use crate::train::record::{Outcome, Record};
use crate::train::resume;
use crate::train::run::{self, Ended, Summary};
use crate::units::decimals;
use crate::warn;
use std::path::Path;

/// Seconds, and share of all of them, from which on evaluations are worth a word.
const LONG_EVALUATIONS: (f64, f64) = (60.0, 0.25);

/// `fusedpo sft`: supervised fine-tuning on completions.
pub fn sft(flags: &TrainFlags, job: Job<'_>, observe: &mut dyn Observe) -> Result<()> {
    train(Stage::Sft, flags.config.as_deref(), (typed(flags, None)?, job), observe)
}

/// `fusedpo dpo`: preference optimisation.
pub fn dpo(flags: &TrainFlags, dpo: &DpoFlags, job: Job<'_>, observe: &mut dyn Observe) -> Result<()> {
    train(Stage::Dpo, flags.config.as_deref(), (typed(flags, Some(dpo))?, job), observe)
}

/// Whoever looks on, and the log in the run's folder: begun when the run has something to keep, with all that was said before.
struct Logged<'a> {
    to: &'a mut dyn Observe,
    run: &'a Path,
    open: bool,
}

impl Observe for Logged<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        if !self.open && matches!(event, Event::Step { .. } | Event::Evaluation { .. } | Event::Saved { .. }) {
            self.open = true;
            match RunDir::open_log(self.run) {
                Ok(file) => say::log_to(file),
                Err(e) => warn!("{e}; the run goes on without it"),
            }
        }
        self.to.on(event)
    }
}

struct Train<'a>(&'a TrainOptions, Job<'a>, &'a mut dyn Observe);

impl Task for Train<'_> {
    type Out = Summary;
    fn run<B: Backend>(self, be: &B) -> Result<Summary> {
        let job = self.1;
        job.join_devices(be, &ranks::environment)?;
        let summary = run::train_as(be, job, self.0, self.2)?;
        // Rank 0 may be at it for minutes. Whoever parts, or stops with another exit code than 0, would take it along.
        job.comm.barrier("wait for what rank 0 saves")?;
        be.leave(job.comm)?;
        Ok(summary)
    }
}

fn train(
    stage: Stage,
    config: Option<&Path>,
    (typed, job): (toml::Table, Job<'_>),
    observe: &mut dyn Observe,
) -> Result<()> {
    let rank = job.comm.world().rank;
    let mut options = resolve(stage, config, typed)?;
    out::refuse_stdout(&options.files.out)?;
    options.command = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // Rank 0 alone has the run's folder. What is fetched it fetches first, and the others find it.
    ranks::first_fetches(job, || {
        if rank == 0 && options.resume.resume.is_none() {
            refuse_taken(&options.files.out)?;
        }
        hub::place_run(&mut options, Wanted::Model, observe)
    })?;
    let finished = if rank == 0 { resume::finished(&options) } else { None };
    if let Some(said) = job.told(finished)? {
        if rank == 0 {
            say!("{said}");
        }
        return Ok(());
    }
    say::log(&format!("fusedpo {}: {}", env!("CARGO_PKG_VERSION"), options.command.join(" ")));
    let s = device::dispatch_one_of(
        job.comm,
        options.compute.device,
        (options.compute.dtype, options.compute.logits_dtype),
        Train(&options, job, &mut Logged { to: observe, run: &options.files.out, open: rank > 0 }),
    )?;
    if s.ended == Ended::Paused {
        ranks::share_signal(job.comm)?;
        let (steps, asked) = (s.steps, s.steps_asked);
        let from = s.checkpoint.map_or("no checkpoint".to_owned(), |step| format!("checkpoint-{step}"));
        let again = again(stage, &options.files.out);
        return Err(Error::stopped(format!(
            "stopped after step {steps} of {asked}, with {from}; this goes on: {again}"
        )));
    }
    if rank == 0 {
        tell(&s, &options);
    }
    Ok(())
}

/// Says what came out.
fn tell(s: &Summary, options: &TrainOptions) {
    // One that follows the policy has no pass of its own.
    let passes = options.loss().reference() && !options.reference.sync_ref_model;
    let reference = passes.then(|| format!("{:.1} s for the reference", s.reference_seconds));
    let beside: Vec<String> = reference.into_iter().chain(evaluation(s)).collect();
    let beside = if beside.is_empty() { String::new() } else { format!(" ({})", beside.join(", ")) };
    say!("{} steps in {:.1} s{beside}: {}", s.steps, s.train_seconds, options.files.out.display());
    if let Some((step, metric, value)) = &s.best {
        say!("the model is that of step {step}: {metric} {}", decimals(*value, 6));
    }
    if let Some((first, last)) = &s.eval {
        say!("held-out before: {}", eval::line(first));
        say!("held-out after:  {}", eval::line(last));
    }
    for (name, last) in &s.sets {
        say!("held-out {name}, after: {}", eval::line(last));
    }
    if s.eval_seconds > LONG_EVALUATIONS.0
        && eval_share(s) > LONG_EVALUATIONS.1
        && options.eval.max_eval_samples.is_none()
    {
        note!("evaluations took much of the time: --max-eval-samples N takes N pairs of each held-out set");
    }
}

/// How long the evaluations took, where there were some, and what share of all that is.
fn evaluation(s: &Summary) -> Option<String> {
    let said = || format!("{:.1} s, {:.0} % of all, for evaluations", s.eval_seconds, 100.0 * eval_share(s));
    (s.eval_seconds > 0.0).then(said)
}

fn eval_share(s: &Summary) -> f64 {
    s.eval_seconds / (s.eval_seconds + s.train_seconds + s.reference_seconds)
}

/// Refuses a folder that is in use; of a run that ended before its last step, says how it goes on.
fn refuse_taken(out: &Path) -> Result<()> {
    let refused = RunDir::refuse_taken(out);
    let unfinished = Record::read(out).filter(|r| r.outcome != Outcome::Finished && !RunDir::is_taken(out));
    if let (Err(_), Some(run)) = (&refused, unfinished) {
        let (done, asked) = (run.steps_done, run.steps_asked);
        note!("{}: a run of {done} of {asked} steps; --resume auto goes on with it", out.display());
    }
    refused
}

/// The command that goes on with the run in `out`, from where this one was started.
fn again(stage: Stage, out: &Path) -> String {
    let word = |path: &Path| word(&path.display().to_string());
    format!("fusedpo {stage} --config {} --out {} --resume auto", word(&out.join("config.toml")), word(out))
}
