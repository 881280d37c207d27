//! `fusedpo score`: the log-probability of every response, one JSON line each, in input order.

use super::choice::{Devices, named};
use super::hub;
use super::out::Out;
use super::quantize_flags::QuantizeFlags;
use super::ranks;
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard::{Dataset, Response};
use crate::device::{self, Task};
use crate::error::{Error, Result};
use crate::files::Spool;
use crate::model::{Model, ModelDir};
use crate::observe::{Event, Flow, Observe};
use crate::train::check::{check_data, open_splits, warn_of_positions};
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use crate::train::engine::{Engine, Purpose};
use crate::train::joined::Job;
use crate::train::memory::{Budgets, MemoryPlan};
use crate::train::team::Team;
use serde::Serialize;
use std::path::PathBuf;

/// Options of `fusedpo score`.
#[derive(Clone, clap::Args)]
pub struct ScoreArgs {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter (LoRA, in PEFT's form) beside the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How weights are held.
    #[command(flatten)]
    pub quantize: QuantizeFlags,
    /// Folder of shards written by `fusedpo pack`; all splits are scored
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// File to write; `-`: stdout. A device, a pipe or a link may be named too
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace FILE where it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Add `token_logps`, one number per scored token
    #[arg(long)]
    pub per_token: bool,
    /// Token slots of a micro-batch
    #[arg(long)]
    pub token_budget: Option<usize>,
    /// Precision of the matrix products
    #[arg(long, value_parser = named::<DtypeChoice>(), default_value = "auto")]
    pub dtype: DtypeChoice,
    /// Precision of the head's logits; bf16 on a GPU only
    #[arg(long, value_parser = named::<LogitsChoice>(), default_value = "f32")]
    pub logits_dtype: LogitsChoice,
    /// Device
    #[arg(long, value_parser = Devices, default_value = "auto")]
    pub device: DeviceChoice,
}

/// One line of the output.
#[derive(Clone, Debug, Serialize)]
struct Line {
    row: u64,
    response: u32,
    group: u64,
    num_tokens: usize,
    logp: f64,
    /// `train` or `eval`.
    split: &'static str,
    /// Of the response in its split, as messages and sidecars count.
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_logps: Option<Vec<f64>>,
}

/// Runs the command.
pub fn run(args: &ScoreArgs, job: Job<'_>, observe: &mut dyn Observe) -> Result<()> {
    // Rank 0 alone writes.
    let first = job.comm.world().is_first();
    let out = if first { Some(Out::open(&args.out, args.overwrite)?) } else { None };
    let mut args = args.clone();
    ranks::first_fetches(job, || hub::place_both(&mut args.model, &mut args.adapter, observe))?;
    let args = &args;
    let lines = out.as_ref().map(|out| out.spool(&args.out)).transpose()?;
    let lines = device::dispatch_one_of(
        job.comm,
        args.device,
        (args.dtype, args.logits_dtype),
        Score { args, lines, job, observe },
    )?;
    let (Some(mut out), Some(lines)) = (out, lines) else { return Ok(()) };
    let scored = lines.len();
    lines.drain(|line| out.put(line))?;
    out.finish(&format!("{scored} responses scored"))
}

/// Lines in the order of the input: by row, then by place in it.
type Lines = Spool<(u64, u32)>;

struct Score<'a> {
    args: &'a ScoreArgs,
    lines: Option<Lines>,
    job: Job<'a>,
    observe: &'a mut dyn Observe,
}

impl Task for Score<'_> {
    type Out = Option<Lines>;
    fn run<B: Backend>(mut self, be: &B) -> Result<Option<Lines>> {
        self.job.same_device(be)?;
        let mut groups = 0;
        let splits = open_splits(&self.args.data)?;
        let model = self.args.quantize.open(&self.args.model, self.args.adapter.as_deref())?;
        let asked = format!("token budget {:?}, per token {}", self.args.token_budget, self.args.per_token);
        self.job.same_work(be, (&[&model], &splits.iter().collect::<Vec<_>>()), &[("set of options", asked)])?;
        // Train comes first.
        for (data, split) in splits.into_iter().zip(["train", "eval"]) {
            check_data(&model, &data)?;
            let of =
                Of { args: self.args, dir: &model, data: &data, split, first_group: groups, team: self.job.ranks() };
            of.score(be, self.lines.as_mut(), self.observe)?;
            groups += data.num_groups();
        }
        Ok(self.lines)
    }
}

/// What is scored.
struct Of<'a> {
    args: &'a ScoreArgs,
    dir: &'a ModelDir,
    data: &'a Dataset,
    split: &'static str,
    /// Groups of the splits before.
    first_group: u64,
    /// Who shares it.
    team: Team<'a>,
}

impl Of<'_> {
    /// Scores all of it; `lines`, which rank 0 has, get every rank's.
    fn score<B: Backend>(&self, be: &B, mut lines: Option<&mut Lines>, observe: &mut dyn Observe) -> Result<()> {
        let options = PlanOptions {
            objective: Objective::Score,
            batch_size: 64,
            token_budget: self.args.token_budget,
            seed: 0,
            shuffle: false,
        };
        let (data, team) = (self.data, self.team);
        let planner = Planner::new(data, &options)?;
        let (config, positions) = (self.dir.config(), data.longest_row());
        warn_of_positions(config, positions, observe)?;
        let plan = Budgets::of([&planner]).fitting(be, |c| MemoryPlan::scoring(be, config, positions, c))?;
        be.reserve(&plan.table)?;
        let model = Model::load(be, self.dir, positions)?;
        let mut engine = Engine::new(be, model, planner.capacity(), Purpose::Score)?;
        observe.tell(&Event::Begin { task: "score", total: data.num_responses(), keeps: false })?;
        let (mut done, mut step, steps) = (0, 0, planner.steps_in_epoch(0));
        while step < steps {
            let mut outlines = Vec::new();
            while step < steps && !team.is_enough(outlines.len()) {
                outlines.extend(planner.outlines(0, step)?);
                step += 1;
            }
            let mut mine = String::new();
            let share = team.share(outlines.len());
            let batches = planner.batches(outlines, share)?;
            for mb in &batches.own {
                self.lines(&mut engine, mb, &mut mine)?;
            }
            for said in team.comm.gather(mine.as_bytes(), "hear what the others scored")? {
                lines.as_mut().map_or(Ok(()), |to| put(to, &said))?;
            }
            done += batches.all().map(|of| of.responses().len() as u64).sum::<u64>();
            let flow = observe.on(&Event::Progress { done, beside: format_args!("") })?;
            if team.agree(flow, false)?.0 != Flow::On {
                return Err(Error::stopped("stopped; nothing was written"));
            }
        }
        observe.tell(&Event::End)?;
        Ok(())
    }

    /// Adds the lines of `mb` to `out`: before each its place, which is two numbers.
    fn lines<B: Backend>(&self, engine: &mut Engine<'_, B>, mb: &MicroBatch, out: &mut String) -> Result<()> {
        let logps = engine.score(mb)?;
        // The pass took its time; what follows looks into the shards again.
        self.data.check_unchanged()?;
        let tokens = if self.args.per_token { Some(engine.token_logps(mb)?) } else { None };
        for g in mb.groups() {
            let group = self.data.group(g.id);
            for i in g.responses.clone() {
                let slot = &mb.responses()[i as usize];
                let r = group.responses().find(|r| r.id == slot.id).expect("the plan was made from this group");
                let logp = logps[i as usize];
                if !logp.is_finite() {
                    return Err(not_finite(self.dir, &r, logp));
                }
                let scored = slot.predictions.start as usize..slot.predictions.end as usize;
                let line = Line {
                    row: r.row,
                    response: r.index,
                    group: self.first_group + g.id,
                    num_tokens: scored.len(),
                    logp,
                    split: self.split,
                    id: slot.id,
                    token_logps: tokens.as_ref().map(|t| t[scored].to_vec()),
                };
                let text = serde_json::to_string(&line).expect("plain values");
                *out += &format!("{} {} {text}\n", line.row, line.response);
            }
        }
        Ok(())
    }
}

/// Puts the lines of a rank, each behind its place, where they are put in order.
fn put(lines: &mut Lines, said: &[u8]) -> Result<()> {
    for line in said.split_inclusive(|byte| *byte == b'\n') {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let place = number().zip(number().and_then(|n| u32::try_from(n).ok()));
        let Some((place, text)) = place.zip(parts.next()) else {
            return Err(Error::Device("what another rank scored arrived damaged".into()));
        };
        lines.put(place, text)?;
    }
    Ok(())
}

/// A number that is none: the weights are finite, so the configuration or their size makes it so.
fn not_finite(model: &ModelDir, r: &Response<'_>, logp: f64) -> Error {
    let model = model.path().display();
    Error::Training(format!(
        "{model}: row {}, response {}: its log-probability is {logp}, as the model computes no finite numbers; check its \
         config.json, and whether the download is whole",
        r.row, r.index
    ))
}
