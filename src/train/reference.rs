//! The reference pass: log-probs of every response under the reference, kept in sidecars beside the shards.
//!
//! A sidecar belongs to one shard, one set of weights and one way of computing; nothing else may read it. The pass
//! writes as it goes, so an interrupted one goes on where it stopped.

use super::engine::{Engine, Late, Purpose};
use super::memory::{Budgets, MemoryPlan};
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::plan::{Objective, PlanOptions, Planner, ResponseSet};
use crate::data::shard::Dataset;
use crate::data::sidecar::{self, Pruned, RefKey, Sidecars};
use crate::error::{Error, Result};
use crate::model::{Model, ModelDir};
use crate::observe::{Event, Flow, Observe};
use std::path::Path;
use std::time::{Duration, Instant};

/// How much work an interruption may lose.
pub(super) const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReferenceReport {
    /// Responses of the data set.
    pub responses: u64,
    /// Responses that were computed now.
    pub computed: u64,
    /// Tokens computed now, each prompt once.
    pub tokens: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// A data set, and the token budget of the run that will read its log-probs: part of their key where results depend on it.
pub type Part<'a> = (&'a Dataset, usize);

/// The reference's log-probs for all of `parts`, computed where they are missing, and what that took: an answer a part.
/// Where `observe` ends it, what was computed is kept.
/// The weights are hashed once, and loaded once where anything is missing.
pub fn ensure<B: Backend>(
    be: &B,
    model: &ModelDir,
    parts: &[Part<'_>],
    cache: Option<&Path>,
    observe: &mut dyn Observe,
) -> Result<Vec<(Sidecars, ReferenceReport)>> {
    let all = |data: &Dataset| ResponseSet::of(data.num_responses(), |_| true);
    let parts: Vec<_> = parts.iter().map(|&(data, slots)| ((data, slots), all(data))).collect();
    ensure_of(be, model, &parts, cache, observe)
}

/// [`ensure`] for some responses of each part; what else a sidecar has stays in it, and a later pass adds to it.
pub fn ensure_of<B: Backend>(
    be: &B,
    model: &ModelDir,
    parts: &[(Part<'_>, ResponseSet)],
    cache: Option<&Path>,
    observe: &mut dyn Observe,
) -> Result<Vec<(Sidecars, ReferenceReport)>> {
    let mut begun = Instant::now();
    let (mut all, mut planners, mut positions) = (Vec::with_capacity(parts.len()), Vec::new(), 0);
    for ((data, slots), needed) in parts {
        let sidecars = open(be, model, data, cache, *slots)?;
        let missing = ResponseSet::of(data.num_responses(), |id| needed.contains(id) && !sidecars.has(id));
        if !missing.is_empty() {
            positions = positions.max(data.longest_row());
            planners.push(Some(Planner::only(data, &score_options(*slots), missing)?));
        } else {
            planners.push(None);
        }
        let report = ReferenceReport { responses: needed.len(), seconds: lap(&mut begun), ..Default::default() };
        all.push((sidecars, report));
    }
    let used: Vec<&Planner<'_>> = planners.iter().flatten().collect();
    let mut engine = match used.is_empty() {
        true => None,
        false => Some(scorer(be, model, &used, positions)?),
    };
    for (planner, (sidecars, report)) in planners.iter().zip(&mut all) {
        if let Some(note) = not_used(sidecars.notes()) {
            observe.tell(&Event::Note(&note))?;
        }
        if let (Some(engine), Some(planner)) = (&mut engine, planner) {
            fill(engine, planner, (sidecars, report), observe)?;
            report.seconds += lap(&mut begun);
        }
        let &mut ReferenceReport { responses, computed, seconds, .. } = report;
        observe.tell(&Event::Referenced { responses, computed, seconds })?;
    }
    Ok(all)
}

/// What lies beside the shards and does not serve, in one line.
pub(super) fn not_used(notes: &[String]) -> Option<String> {
    match notes {
        [] => None,
        [one] => Some(one.clone()),
        [first, rest @ ..] => {
            let more = rest.len();
            let others = if more == 1 { "another is".to_owned() } else { format!("{more} others are") };
            Some(format!("{first}; {others} not used either (`fusedpo reference` with `options.prune` removes them)"))
        }
    }
}

/// The reference, loaded for what `planners` will ask of it.
pub(super) fn scorer<'b, B: Backend>(
    be: &'b B,
    model: &ModelDir,
    planners: &[&Planner<'_>],
    positions: usize,
) -> Result<Engine<'b, B>> {
    let budgets = Budgets::of(planners.iter().copied());
    let plan = budgets.fitting(be, |capacity| MemoryPlan::scoring(be, model.config(), positions, capacity))?;
    be.reserve(&plan.table)?;
    Engine::new(be, Model::load(be, model, positions)?, budgets.capacity(), Purpose::Score)
}

/// Seconds since the last lap.
pub(super) fn lap(since: &mut Instant) -> f64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(since, now)).as_secs_f64()
}

pub(super) fn open<B: Backend>(
    be: &B,
    model: &ModelDir,
    data: &Dataset,
    cache: Option<&Path>,
    slots: usize,
) -> Result<Sidecars> {
    Sidecars::open(data, cache, &key(be, model, slots)?)
}

/// What the log-probs of `model` are kept under, for runs of `slots` token slots.
pub(super) fn key<B: Backend>(be: &B, model: &ModelDir, slots: usize) -> Result<RefKey> {
    let shapes = if B::SHAPES_BY_CAPACITY { format!(" T={slots}") } else { String::new() };
    Ok(RefKey { model_sha256: model.identity()?, fingerprint: be.fingerprint() + &shapes })
}

/// Takes away the sidecars of `parts` that [`ensure`] of the same would not read. Computes nothing.
pub fn prune<B: Backend>(be: &B, model: &ModelDir, parts: &[Part<'_>], cache: Option<&Path>) -> Result<Pruned> {
    let mut all = Pruned::default();
    for &(data, slots) in parts {
        let one = sidecar::prune(data, cache, &key(be, model, slots)?)?;
        all = Pruned { removed: all.removed + one.removed, bytes: all.bytes + one.bytes, kept: all.kept + one.kept };
    }
    Ok(all)
}

pub(super) fn score_options(slots: usize) -> PlanOptions {
    PlanOptions { objective: Objective::Score, batch_size: 64, token_budget: Some(slots), seed: 0, shuffle: false }
}

fn fill<B: Backend>(
    engine: &mut Engine<'_, B>,
    planner: &Planner<'_>,
    (sidecars, report): (&mut Sidecars, &mut ReferenceReport),
    observe: &mut dyn Observe,
) -> Result<()> {
    let steps = planner.steps_in_epoch(0);
    let mut flow = observe.on(&Event::Begin { task: "reference", total: planner.units(), keeps: true })?;
    // One micro-batch is always under way while the host prepares the next.
    let mut before = None;
    let mut collect = |engine: &mut Engine<'_, B>, sidecars: &mut Sidecars, (mb, late): (MicroBatch, Late<B>)| {
        for (slot, logp) in mb.responses().iter().zip(engine.collect_score(late)?) {
            sidecars.set(slot.id, logp);
        }
        report.computed += mb.responses().len() as u64;
        report.tokens += mb.used() as u64;
        Ok::<(), Error>(())
    };
    let mut seen = 0;
    for step in 0..steps {
        for mb in planner.step(0, step)? {
            seen += mb.responses().len() as u64;
            let late = engine.start_score(&mb)?;
            if let Some(before) = before.replace((mb, late)) {
                collect(engine, sidecars, before)?;
            }
        }
        flow = flow.and(observe.on(&Event::Tick)?);
        let stop = flow != Flow::On;
        if let Some(last) = before.take_if(|_| stop || step + 1 == steps) {
            collect(engine, sidecars, last)?;
        }
        sidecars.flush_if_due(FLUSH_EVERY)?;
        if stop {
            sidecars.flush()?;
            let left = planner.units() - seen;
            return Err(Error::stopped(format!(
                "stopped: {left} responses still to do; the same command goes on from here"
            )));
        }
        flow = observe.on(&Event::Progress { done: seen, beside: format_args!("") })?;
    }
    observe.tell(&Event::End)?;
    sidecars.flush()
}
