//! What a run asks of its device: its own steps, taken on a backend that notes and does not compute.

use super::holds::units_of;
use super::run::{Cut, Run};
use crate::backend::Backend;
use crate::backend::metered::{Metered, Work};
use crate::batch::{Capacity, MicroBatch};
use crate::data::plan::Planner;
use crate::error::Result;
use crate::model::{Model, ModelConfig};
use crate::observe::Silent;
use crate::train::engine::{Engine, Purpose};
use crate::train::eval::{self, EvalSet};
use crate::train::memory::Budgets;
use crate::train::optim::Optimizer;
use crate::train::ready::{looked_at, total_steps};
use crate::train::reference::score_options;
use crate::train::schedule::Schedule;
use crate::train::stepper::Stepper;
use crate::train::synced::{self, Sync};
use crate::train::team::Ranks;
use crate::train::trained::Learns;

/// What the first steps ask for, and what they hold.
pub(super) struct Asked {
    /// Ops of the steps that were walked through, in order.
    pub work: Vec<Work>,
    /// How many steps these are.
    pub steps: u64,
    /// Token slots of theirs that hold a token.
    pub tokens: u64,
    /// Their pairs, or responses.
    pub units: u64,
    /// Most of these slots that a step has.
    pub largest_step: u64,
}

/// Of passes over some of the data, and how often as much they are in all.
pub(super) struct Passes {
    /// Ops of those that were walked through.
    pub work: Vec<Work>,
    /// All passes, over these.
    pub times: f64,
}

/// The first `most` steps of the run, in micro-batches as `cut` has them.
pub(super) fn steps<B: Backend>(run: &Run<'_, B>, cut: &Cut<'_>, purpose: Purpose, most: u64) -> Result<Asked> {
    let (c, plan, be) = (run.c, &cut.train, Metered::new(run.be));
    run.with(|config, learns| {
        let mut engine = engine(&be, (config, run.positions), cut, (purpose, learns))?;
        let mut optimizer = Optimizer::reserve(&be, &mut engine.state, learns.optim, Ranks::ALONE)?;
        if learns.synced {
            synced::reserve(&be, &mut engine.state)?;
        }
        let total = total_steps(c, plan);
        let stepper = Stepper {
            spec: c.loss(),
            plan,
            sidecars: None,
            sync: Sync::of(&c.reference),
            starts_at_reference: false,
            schedule: Schedule::new(&c.schedule, total)?,
            seed: c.data.seed,
            ledger: false,
            adapter_given: false,
        };
        let steps = total.min(plan.steps_in_epoch(0)).min(most);
        let (mut tokens, mut units, mut largest_step) = (0, 0, 0);
        for step in 0..steps {
            let batches = plan.step(0, step)?;
            let own = batches.iter().map(|mb| mb.used() as u64).sum::<u64>();
            (tokens, largest_step) = (tokens + own, own.max(largest_step));
            units += batches.iter().map(|mb| units_of(mb) as u64).sum::<u64>();
            let this = stepper.start(&mut engine)?;
            stepper.update(&mut engine, &mut optimizer, &this)?;
        }
        Ok(Asked { work: be.take(), steps, tokens, units, largest_step })
    })
}

fn engine<'b, B: Backend>(
    be: &'b Metered<B>,
    (config, positions): (&ModelConfig, usize),
    cut: &Cut<'_>,
    (purpose, learns): (Purpose, Learns<'_>),
) -> Result<Engine<'b, Metered<B>>> {
    let mut policy = Model::counted(be, config, positions)?;
    learns.trained.apply(&mut policy.table)?;
    Engine::for_optimizer(be, policy, Budgets::of(cut.all()).capacity(), purpose, learns.optim)
}

/// The passes of one evaluation of everything that is held out; nothing where nothing is.
pub(super) fn evaluation<B: Backend>(
    run: &Run<'_, B>,
    cut: Cut<'_>,
    purpose: Purpose,
    most: u64,
) -> Result<Vec<Passes>> {
    let be = Metered::new(run.be);
    run.with(|config, learns| {
        let mut engine = engine(&be, (config, run.positions), &cut, (purpose, learns))?;
        if learns.synced {
            synced::reserve(&be, &mut engine.state)?;
        }
        let mut all = Vec::new();
        for plan in cut.held_out.into_iter().chain(cut.sets) {
            let steps = looked_at(run.c, &plan).0;
            let some = steps.min(most);
            let set = EvalSet { plan, sidecars: None, steps: some };
            eval::evaluate(&mut engine, &set, &run.c.loss(), &mut Silent)?;
            all.push(Passes { work: be.take(), times: steps as f64 / some.max(1) as f64 });
        }
        Ok(all)
    })
}

/// The passes of the reference over everything that the run reads, of a loss that has one that stays: as where nothing is known yet.
pub(super) fn reference<B: Backend>(run: &Run<'_, B>, cut: &Cut<'_>, most: u64) -> Result<Vec<Passes>> {
    let Some(config) = &run.opened.reference else { return Ok(Vec::new()) };
    let be = Metered::new(run.be);
    let mut all = Vec::new();
    let steps = |plan: &Planner<'_>, trains| if trains { total_steps(run.c, plan) } else { looked_at(run.c, plan).0 };
    for (plan, trains) in [(&cut.train, true)].into_iter().chain(cut.evaluated().map(|plan| (plan, false))) {
        let steps = steps(plan, trains);
        let needed = plan.responses((0, 0), steps);
        if needed.is_empty() {
            continue;
        }
        let scorer = Planner::only(plan.data(), &score_options(plan.token_budget()), needed)?;
        let positions = plan.longest_row().max(plan.data().longest_row());
        let capacity = scorer.capacity().or_larger(plan.capacity());
        let mut engine = scoring(&be, (config, positions), capacity)?;
        let (looked, of) = (scorer.steps_in_epoch(0).min(most), scorer.steps_in_epoch(0));
        for step in 0..looked {
            scorer.step(0, step)?.iter().try_for_each(|mb| score(&mut engine, mb))?;
        }
        all.push(Passes { work: be.take(), times: of as f64 / looked.max(1) as f64 });
        // A loss of judgements asks for rows of a prompt with a response to another, too: about as many again.
        if plan.is_judged() {
            let again = all.last().map(|p: &Passes| Passes { work: p.work.clone(), times: p.times });
            all.extend(again);
        }
    }
    Ok(all)
}

fn scoring<'b, B: Backend>(
    be: &'b Metered<B>,
    (config, positions): (&ModelConfig, usize),
    capacity: Capacity,
) -> Result<Engine<'b, Metered<B>>> {
    Engine::new(be, Model::counted(be, config, positions)?, capacity, Purpose::Score)
}

fn score<B: Backend>(engine: &mut Engine<'_, Metered<B>>, mb: &MicroBatch) -> Result<()> {
    let late = engine.start_score(mb)?;
    engine.collect_score(late).map(|_| ())
}
