//! How long a run takes that is not begun.

use super::asked::{self, Asked, Passes};
use super::rates::{Basis, Rates};
use super::run::{Cut, MOST, Run};
use crate::backend::Backend;
use crate::error::Result;
use crate::train::engine::Purpose;
use crate::train::ready::total_steps;

/// Steps, and as many of each pass beside them, that are walked through.
const STEPS: u64 = 24;

/// How fast steps are in micro-batches of some size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Token slots of a micro-batch.
    pub slots: usize,
    /// Seconds a step.
    pub step_seconds: f64,
    /// Tokens a second, each prompt once.
    pub tokens_per_second: f64,
    /// Pairs, or responses, a second.
    pub units_per_second: f64,
}

/// What is known before a run, of its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Time {
    /// On what it rests.
    pub basis: Basis,
    /// Of the steps at [`Forecast::at`](super::Forecast::at).
    pub pace: Pace,
    /// Steps of the run; `None` where the data are lengths alone, and nothing says how many there are.
    pub steps: Option<u64>,
    /// Seconds of the reference's pass, where nothing is known yet; `None` where there is none, or where it is of unknown data.
    pub reference_seconds: Option<f64>,
    /// Seconds of an evaluation of everything that is held out; without samples.
    pub evaluation_seconds: f64,
    /// How many evaluations there are.
    pub evaluations: u64,
}

impl Time {
    /// Seconds of the steps, the reference's pass and all evaluations; loading, saving and samples are not in it.
    pub fn total_seconds(&self) -> Option<f64> {
        let steps = self.steps? as f64 * self.pace.step_seconds;
        Some(steps + self.reference_seconds.unwrap_or(0.0) + self.evaluations as f64 * self.evaluation_seconds)
    }
}

/// The data in micro-batches of `slots`, or of [`MOST`]: nobody has larger steps, and they are laid out in memory.
pub(super) fn laid_out<'a, B: Backend>(run: &Run<'a, B>, slots: usize) -> Result<Cut<'a>> {
    Cut::at(run.c, run.opened, slots.min(MOST))
}

/// The pace of the run in micro-batches of `slots`.
pub(super) fn pace<B: Backend>(run: &Run<'_, B>, (slots, purpose): (usize, Purpose), rates: &Rates) -> Result<Pace> {
    let cut = laid_out(run, slots)?;
    let Asked { work, steps, tokens, units, .. } = asked::steps(run, &cut, purpose, STEPS)?;
    let seconds: f64 = work.iter().map(|work| rates.seconds(work)).sum();
    let by = |n: u64| n as f64 / seconds.max(1e-12);
    Ok(Pace {
        slots,
        step_seconds: seconds / steps.max(1) as f64,
        tokens_per_second: by(tokens),
        units_per_second: by(units),
    })
}

/// The time of the run in micro-batches of `slots`; `counted` says whether the data are all there is, and not their lengths alone.
pub(super) fn time<B: Backend>(
    run: &Run<'_, B>,
    (slots, purpose): (usize, Purpose),
    rates: Rates,
    counted: bool,
) -> Result<Time> {
    let pace = pace(run, (slots, purpose), &rates)?;
    let cut = laid_out(run, slots)?;
    let c = run.c;
    let steps = (counted || c.data.max_steps.is_some()).then(|| total_steps(c, &cut.train));
    let seconds = |all: Vec<Passes>| -> f64 {
        all.iter().map(|p| p.times * p.work.iter().map(|work| rates.seconds(work)).sum::<f64>()).sum()
    };
    let reference_seconds = match counted && run.opened.reference.is_some() {
        true => Some(seconds(asked::reference(run, &cut, STEPS)?)),
        false => None,
    };
    let evaluated = cut.evaluated().next().is_some();
    let evaluations = match (steps.filter(|_| evaluated), c.eval.eval_steps) {
        (None, _) => 0,
        // Before the first step and after the last.
        (Some(_), 0) => 2,
        (Some(steps), every) => 2 + steps.saturating_sub(1) / every,
    };
    let evaluation_seconds = if evaluated { seconds(asked::evaluation(run, cut, purpose, STEPS)?) } else { 0.0 };
    Ok(Time { basis: rates.basis, pace, steps, reference_seconds, evaluation_seconds, evaluations })
}
