//! `fusedpo score`: the log-probability of every response, one JSON line each, in input order.

use super::choice::named;
use super::hub;
use super::out::Out;
use super::quantize_flags::QuantizeFlags;
use crate::backend::Backend;
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
use crate::train::memory::{Budgets, MemoryPlan};
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
    /// Where to compute
    #[arg(long, value_parser = named::<DeviceChoice>(), default_value = "auto")]
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
pub fn run(args: &ScoreArgs, observe: &mut dyn Observe) -> Result<()> {
    let mut out = Out::open(&args.out, args.overwrite)?;
    let mut args = args.clone();
    hub::place_both(&mut args.model, &mut args.adapter, observe)?;
    let args = &args;
    let task = Score { args, lines: out.spool(&args.out)?, observe };
    let lines = device::dispatch(args.device, (args.dtype, args.logits_dtype), task)?;
    let scored = lines.len();
    lines.drain(|line| out.put(line))?;
    out.finish(&format!("{scored} responses scored"))
}

/// Lines in the order of the input: by row, then by place in it.
type Lines = Spool<(u64, u32)>;

struct Score<'a> {
    args: &'a ScoreArgs,
    lines: Lines,
    observe: &'a mut dyn Observe,
}

impl Task for Score<'_> {
    type Out = Lines;
    fn run<B: Backend>(mut self, be: &B) -> Result<Lines> {
        let mut groups = 0;
        let splits = open_splits(&self.args.data)?;
        let model = self.args.quantize.open(&self.args.model, self.args.adapter.as_deref())?;
        // Train comes first.
        for (data, split) in splits.into_iter().zip(["train", "eval"]) {
            check_data(&model, &data)?;
            score(be, (self.args, &model), (&data, split), groups, (&mut self.lines, self.observe))?;
            groups += data.num_groups();
        }
        Ok(self.lines)
    }
}

fn score<B: Backend>(
    be: &B,
    (a, dir): (&ScoreArgs, &ModelDir),
    (data, split): (&Dataset, &'static str),
    first_group: u64,
    (lines, observe): (&mut Lines, &mut dyn Observe),
) -> Result<()> {
    let options = PlanOptions {
        objective: Objective::Score,
        batch_size: 64,
        token_budget: a.token_budget,
        seed: 0,
        shuffle: false,
    };
    let planner = Planner::new(data, &options)?;
    let (config, positions) = (dir.config(), data.longest_row());
    warn_of_positions(config, positions, observe)?;
    let plan = Budgets::of([&planner]).fitting(be, |c| MemoryPlan::scoring(be, config, positions, c))?;
    be.reserve(&plan.table)?;
    let model = Model::load(be, dir, positions)?;
    let mut engine = Engine::new(be, model, planner.capacity(), Purpose::Score)?;
    observe.tell(&Event::Begin { task: "score", total: data.num_responses(), keeps: false })?;
    let mut done = 0;
    for step in 0..planner.steps_in_epoch(0) {
        for mb in planner.step(0, step)? {
            let logps = engine.score(&mb)?;
            // The pass took its time; what follows looks into the shards again.
            data.check_unchanged()?;
            let tokens = if a.per_token { Some(engine.token_logps(&mb)?) } else { None };
            for g in mb.groups() {
                let group = data.group(g.id);
                for i in g.responses.clone() {
                    let slot = &mb.responses()[i as usize];
                    let r = group.responses().find(|r| r.id == slot.id).expect("the plan was made from this group");
                    let logp = logps[i as usize];
                    if !logp.is_finite() {
                        return Err(not_finite(dir, &r, logp));
                    }
                    let scored = slot.predictions.start as usize..slot.predictions.end as usize;
                    let line = Line {
                        row: r.row,
                        response: r.index,
                        group: first_group + g.id,
                        num_tokens: scored.len(),
                        logp,
                        split,
                        id: slot.id,
                        token_logps: tokens.as_ref().map(|t| t[scored].to_vec()),
                    };
                    let text = serde_json::to_string(&line).expect("plain values") + "\n";
                    lines.put((line.row, line.response), text.as_bytes())?;
                    done += 1;
                }
            }
        }
        if observe.on(&Event::Progress { done, beside: format_args!("") })? != Flow::On {
            return Err(Error::stopped("stopped; nothing was written"));
        }
    }
    observe.tell(&Event::End)?;
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
