//! What micro-batches and steps hold.

use super::run::Run;
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::plan::{PlanOptions, Planner};
use crate::error::Result;
use crate::train::ready::plan_options;

/// Token slots of a micro-batch that is laid out to see what it holds, unless steps are larger.
const ENOUGH: usize = 1 << 16;
/// Steps whose micro-batches are looked at.
const STEPS: u64 = 64;

/// What a token budget comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Token slots of a micro-batch.
    pub slots: usize,
    /// Bytes that the device must have free, the margin included.
    pub needed: usize,
    /// What a micro-batch and a step hold.
    pub holds: Holds,
}

/// Means over the first steps of an epoch; units are pairs, or responses where the loss takes no pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Holds {
    /// Units a micro-batch.
    pub units: f64,
    /// Token slots of a micro-batch that hold a token.
    pub filled: f64,
    /// Micro-batches a step.
    pub micro_batches: f64,
    /// Token slots of a step that hold a token.
    pub step: f64,
    /// Most of them.
    pub largest_step: usize,
}

impl Budget {
    /// Of `slots` token slots, with what they need.
    pub(super) fn of<B: Backend>(run: &Run<'_, B>, slots: usize, needed: usize) -> Result<Self> {
        let options = plan_options(run.c);
        let train = &run.opened.splits[0];
        let holds = |slots| holds(&Planner::new(train, &PlanOptions { token_budget: Some(slots), ..options })?);
        // Where every step is one micro-batch, it is in any larger one too, which would be laid out for nothing.
        let some = holds(slots.min(ENOUGH.max(run.budgets.least())))?;
        let whole = slots <= ENOUGH || some.largest_step <= ENOUGH;
        Ok(Self { slots, needed, holds: if whole { some } else { holds(slots)? } })
    }
}

/// Pairs of a micro-batch, or where it has none its responses.
pub(super) fn units_of(mb: &MicroBatch) -> usize {
    if mb.pairs().is_empty() { mb.responses().len() } else { mb.pairs().len() }
}

fn holds(planner: &Planner<'_>) -> Result<Holds> {
    let steps = planner.steps_in_epoch(0).min(STEPS);
    let (mut units, mut filled, mut batches, mut largest_step) = (0, 0, 0, 0);
    for step in 0..steps {
        let all = planner.step(0, step)?;
        let slots: usize = all.iter().map(|mb| mb.used()).sum();
        units += all.iter().map(units_of).sum::<usize>();
        (filled, batches, largest_step) = (filled + slots, batches + all.len(), slots.max(largest_step));
    }
    let by = |n: usize, of: f64| n as f64 / of.max(1.0);
    Ok(Holds {
        units: by(units, batches as f64),
        filled: by(filled, batches as f64),
        micro_batches: by(batches, steps as f64),
        step: by(filled, steps as f64),
        largest_step,
    })
}
