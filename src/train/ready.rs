//! What a run is made from, opened and known to fit together: before its first step, and before one of its steps is taken again.

use super::check::{check_data, check_loss, check_mismatched, check_model};
use super::choices::GraphsChoice;
use super::engine::Purpose;
use super::means;
use super::memory::{Budgets, MemoryPlan};
use super::options::{EvalStrategy, TrainOptions};
use super::sample_plan::{SamplePlan, Whereabouts};
use super::schedule::Schedule;
use super::sets::{self, NamedSet};
use super::synced;
use super::team::Ranks;
use super::trained::{Learns, Trained};
use crate::backend::Backend;
use crate::batch::Capacity;
use crate::data::plan::{PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::model::graphs::no_graphs;
use crate::model::{self, ModelConfig, ModelDir};
use std::path::Path;

/// What a run is made from.
pub(super) struct Ready<'a> {
    /// What it trains on.
    pub planner: Planner<'a>,
    /// What is held out.
    pub held_out: Option<Planner<'a>>,
    /// Other sets that are evaluated.
    pub sets: Vec<Planner<'a>>,
    /// What is sampled at evaluations.
    pub samples: Option<SamplePlan>,
    /// The model to train.
    pub dir: ModelDir,
    /// The reference, where the loss has one.
    pub reference: Option<ModelDir>,
    /// The memory that its steps take, and behind that what samples do.
    pub memory: MemoryPlan,
    /// Buffers of it that are there all the time; samples' come and go.
    pub lasting: usize,
    /// Of any micro-batch.
    pub capacity: Capacity,
    /// How passes keep what they need.
    pub purpose: Purpose,
    /// Positions of the longest row.
    pub positions: usize,
    /// Learning rates, and how many steps there are.
    pub schedule: Schedule,
}

impl<'a> Ready<'a> {
    /// What `c` names, of which `splits` are open already.
    pub fn new<B: Backend>(
        be: &B,
        c: &TrainOptions,
        (splits, named, sampling): (&'a [Dataset], &'a [NamedSet], bool),
        learns: Learns<'_>,
    ) -> Result<Self> {
        let (dir, reference) = open_models(c, splits)?;
        let models: Vec<&ModelDir> = [Some(&dir), reference.as_ref()].into_iter().flatten().collect();
        sets::check(c, named, &splits[0], (&dir, reference.as_ref()))?;
        let (planner, held_out) = planners(c, splits)?;
        for model in &models {
            [&planner].into_iter().chain(&held_out).try_for_each(|plan| check_mismatched(model, plan))?;
        }
        let sets = sets::planners(c, named, planner.token_budget())?;
        sets::check_rows(&models, &sets)?;
        let all = || [&planner].into_iter().chain(&held_out).chain(&sets);
        let budgets = Budgets::of(all());
        let mut samples = None;
        if sampling && c.eval.kl_samples + c.eval.sample_prompts > 0 {
            let prompts = held_out.as_ref().or(sets.first()).map(Planner::data).ok_or_else(|| no_prompts(c))?;
            let at = reference.as_ref().map(|reference| (reference.config(), dir.computes_as(reference)));
            let at = Whereabouts::of(c, dir.config(), at)?;
            samples = SamplePlan::new(c, (dir.config(), at), prompts, budgets.capacity())?;
        }
        let positions = all().map(Planner::longest_row).chain(samples.iter().map(|s| s.positions)).max().unwrap_or(0);
        let purpose = if c.compute.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train };
        let (mut memory, mut purpose) = budgets.training(be, dir.config(), positions, (purpose, learns))?;
        let mut lasting = memory.table.len();
        if let Some(samples) = &mut samples {
            let trained = MemoryPlan::sections(be, dir.config(), learns)?.0.trained_len;
            let (of, size) = ((dir.config(), trained), (positions, budgets.capacity()));
            if let Err(e) = samples.make_room(be, of, size, &mut memory) {
                // What is kept only because there is room gives way.
                if purpose != Purpose::TrainInFull {
                    return Err(e);
                }
                purpose = Purpose::Train;
                memory = MemoryPlan::training_as(be, dir.config(), positions, size.1, (purpose, learns))?;
                lasting = memory.table.len();
                samples.make_room(be, of, size, &mut memory)?;
            }
        }
        let (capacity, schedule) = (budgets.capacity(), Schedule::new(&c.schedule, total_steps(c, &planner))?);
        Ok(Self {
            planner,
            held_out,
            sets,
            samples,
            dir,
            reference,
            memory,
            lasting,
            capacity,
            purpose,
            positions,
            schedule,
        })
    }
}

/// What `c` says of the tensors of a run's state.
pub(super) fn learns<'a>(c: &'a TrainOptions, trained: &'a Trained, ranks: Ranks) -> Learns<'a> {
    Learns { optim: &c.optim, trained, synced: c.reference.sync_ref_model, ranks }
}

/// How products and passes are enqueued, where that is asked for. Errors: a device that cannot.
pub(super) fn choose_products<B: Backend>(be: &B, c: &TrainOptions) -> Result<()> {
    if c.compute.cuda_graphs == GraphsChoice::On && !B::GRAPHS {
        return Err(no_graphs());
    }
    c.compute.matmul_plans.as_ref().map_or(Ok(()), |file| be.tune_products(file))
}

pub(super) fn no_prompts(c: &TrainOptions) -> Error {
    let key = if c.eval.kl_samples > 0 { "kl_samples" } else { "sample_prompts" };
    Error::usage(format!(
        "`{key}`: {} has no held-out split to take prompts from; pack with `eval_fraction`, give `eval_data`, or leave it out",
        c.files.data.display()
    ))
}

pub(super) fn refuse_empty_evaluation(c: &TrainOptions, splits: &[Dataset]) -> Result<()> {
    let (data, eval) = (c.files.data.display(), &c.eval);
    let asked = match (eval.eval_steps, eval.max_eval_samples) {
        _ if splits.len() > 1 || !eval.eval_data.is_empty() => return Ok(()),
        (0, None) => return Ok(()),
        (0, Some(most)) => format!("`max_eval_samples` {most}"),
        (steps, _) => format!("`eval_steps` {steps}"),
    };
    Err(Error::usage(format!("{asked}: {data} has no held-out split; pack with `eval_fraction`, or leave it out")))
}

/// The model to train, and the reference where the loss has one; both fit the data.
fn open_models(c: &TrainOptions, splits: &[Dataset]) -> Result<(ModelDir, Option<ModelDir>)> {
    let mut dir = ModelDir::open(c.folder(&c.files.model))?;
    check_quantized(dir.path(), dir.config(), c)?;
    dir = dir.quantized_if(c.train.quantized())?;
    if let Some(adapter) = &c.train.adapter {
        dir = dir.with_adapter_dropping(c.folder(adapter), c.train.lora_dropout)?;
    }
    let base = dir.clone();
    if let Some((shape, init)) = c.train.new_adapter() {
        dir = dir.with_new_adapter(shape, init, c.data.seed)?;
    }
    // What the export will copy: a file that cannot be copied is known before the work.
    dir.read_side_files()?;
    // Of a new adapter, what it is beside: it changes nothing yet. Of a loaded one, the policy as it is now.
    let reference = match &c.reference.ref_model {
        _ if !c.loss().reference() => None,
        Some(other) if c.train.has_adapter() => Some(base.base().open_other(c.folder(other))?),
        Some(other) => Some(dir.open_other(c.folder(other))?),
        None => Some(base),
    };
    for d in splits {
        check_data(&dir, d)?;
        check_loss(&c.loss(), d)?;
        if let Some(reference) = &reference {
            check_model(reference, d)?;
        }
    }
    if let Some(reference) = reference.as_ref().filter(|_| c.reference.sync_ref_model) {
        synced::check(&dir, reference)?;
    }
    Ok((dir, reference))
}

/// Refuses what cannot be done with the weights of `model` in four bits, `config` being of it as it is stored.
pub(super) fn check_quantized(model: &Path, config: &ModelConfig, c: &TrainOptions) -> Result<()> {
    let Some(_) = config.quantized else { return Ok(()) };
    if c.train.quantized().is_some() {
        return Err(model::dir::quantized_already(model));
    }
    match c.train.has_adapter() {
        true => Ok(()),
        false => Err(Error::file(
            model,
            "its weights are in four bits, which do not train: give `options.lora_r` to train an adapter beside them, or the model that is not quantized",
        )),
    }
}

/// How the run cuts what it trains on, and what is held out.
pub(super) fn planners<'a>(c: &TrainOptions, splits: &'a [Dataset]) -> Result<(Planner<'a>, Option<Planner<'a>>)> {
    let options = plan_options(c);
    let planner = Planner::new(&splits[0], &options)?.in_lanes(c.data.lanes.unwrap_or(1));
    let held_out = PlanOptions { shuffle: false, token_budget: Some(planner.token_budget()), ..options };
    let evaluated = splits.get(1).filter(|_| c.eval.eval_strategy != EvalStrategy::No);
    let held_out = evaluated.map(|data| Planner::new(data, &held_out)).transpose()?;
    Ok((planner, held_out))
}

/// Steps of a held-out set that an evaluation takes, and their pairs (SFT: responses).
pub(super) fn looked_at(c: &TrainOptions, held_out: &Planner<'_>) -> (u64, u64) {
    held_out.steps_of(c.eval.max_eval_samples.unwrap_or(u64::MAX))
}

/// How the run reads its data.
pub(super) fn plan_options(c: &TrainOptions) -> PlanOptions {
    let objective = means::objective(&c.loss());
    PlanOptions {
        objective,
        batch_size: c.data.batch_size,
        token_budget: c.data.token_budget,
        seed: c.data.seed,
        shuffle: true,
    }
}

/// Steps of the run: `max_steps`, or whole epochs and the given share of the last.
pub(super) fn total_steps(c: &TrainOptions, planner: &Planner<'_>) -> u64 {
    c.data.max_steps.unwrap_or_else(|| {
        let whole = c.data.num_train_epochs.floor() as u64;
        let part = c.data.num_train_epochs - whole as f64;
        let steps: u64 = (0..whole).map(|e| planner.steps_in_epoch(e)).sum();
        steps + (part * planner.steps_in_epoch(whole) as f64).ceil() as u64
    })
}
