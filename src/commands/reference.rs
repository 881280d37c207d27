//! `fusedpo reference`: log-probs of all responses under the reference model, kept beside the shards.

use super::choice::{Devices, named};
use super::hub;
use super::quantize_flags::QuantizeFlags;
use super::ranks;
use crate::backend::Backend;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::data::sidecar::Pruned;
use crate::device::{self, Task};
use crate::error::Result;
use crate::observe::Observe;
use crate::say;
use crate::train::check::{check_data, open_splits};
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use crate::train::joined::Job;
use crate::train::reference::{self, Keep, ReferenceReport};
use crate::units;
use std::path::PathBuf;

/// Options of `fusedpo reference`.
#[derive(Clone, clap::Args)]
pub struct ReferenceArgs {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the reference
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter (LoRA, in PEFT's form) beside the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How weights are held.
    #[command(flatten)]
    pub quantize: QuantizeFlags,
    /// Folder of shards written by `fusedpo pack`
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder for the sidecars [default: beside the shards]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Remove the sidecars that this model and precision do not use, and compute nothing
    #[arg(long)]
    pub prune: bool,
    /// Token slots of a micro-batch; as in the run that will read the result
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

/// Runs the command.
pub fn run(args: &ReferenceArgs, job: Job<'_>, observe: &mut dyn Observe) -> Result<()> {
    let mut args = args.clone();
    ranks::first_fetches(job, || hub::place_both(&mut args.model, &mut args.adapter, observe))?;
    let args = &args;
    let done =
        device::dispatch_one_of(job.comm, args.device, (args.dtype, args.logits_dtype), Pass(args, job, observe))?;
    if !job.comm.world().is_first() {
        return Ok(());
    }
    let r = match done {
        Done::Computed(r) => r,
        Done::Pruned(Pruned { removed, bytes, kept }) => {
            say!("{removed} sidecars removed, {}; {kept} stay", units::bytes(bytes as usize));
            return Ok(());
        }
    };
    let found = r.responses - r.computed.min(r.responses);
    let speed = if r.seconds > 0.0 { r.tokens as f64 / r.seconds } else { 0.0 };
    say!(
        "{} responses: {} computed, {found} found; {} tokens in {:.1} s, {speed:.0} tokens/s",
        r.responses,
        r.computed,
        r.tokens,
        r.seconds
    );
    Ok(())
}

struct Pass<'a>(&'a ReferenceArgs, Job<'a>, &'a mut dyn Observe);

/// What was asked for, done.
enum Done {
    Computed(ReferenceReport),
    Pruned(Pruned),
}

impl Task for Pass<'_> {
    type Out = Done;
    fn run<B: Backend>(self, be: &B) -> Result<Done> {
        let Pass(a, job, observe) = self;
        job.same_device(be)?;
        let splits = open_splits(&a.data)?;
        let model = a.quantize.open(&a.model, a.adapter.as_deref())?;
        let mut parts = Vec::with_capacity(splits.len());
        for data in &splits {
            check_data(&model, data)?;
            parts.push((data, training_slots(data, a.token_budget)?));
        }
        let team = job.ranks();
        if a.prune {
            // There is nothing to share in it.
            return match team.is_first() {
                true => reference::prune(be, &model, &parts, a.cache.as_deref()).map(Done::Pruned),
                false => Ok(Done::Pruned(Pruned::default())),
            };
        }
        let slots: Vec<String> = parts.iter().map(|(_, slots)| slots.to_string()).collect();
        let all: Vec<&Dataset> = splits.iter().collect();
        job.same_work(be, (&[&model], &all), &[("token budget", slots.join(", "))])?;
        let keep = Keep { cache: a.cache.as_deref(), team };
        let mut all = ReferenceReport::default();
        for (_, r) in reference::ensure(be, &model, &parts, keep, observe)? {
            all.responses += r.responses;
            all.computed += r.computed;
            all.tokens += r.tokens;
            all.seconds += r.seconds;
        }
        Ok(Done::Computed(all))
    }
}

/// The token budget that `dpo` would choose for this data: where results depend on it, the sidecars must be made with it.
pub fn training_slots(data: &Dataset, asked: Option<usize>) -> Result<usize> {
    let options = |objective| PlanOptions { objective, batch_size: 2, token_budget: asked, seed: 0, shuffle: false };
    let budget = |objective| Planner::new(data, &options(objective)).map(|plan| plan.token_budget());
    match data.num_pairs() {
        // Labels that no run can learn from have log-probs all the same.
        0 if data.has_labels() => budget(Objective::Judgement).or_else(|_| budget(Objective::Score)),
        0 => budget(Objective::Score),
        _ => budget(Objective::Preference),
    }
}
