//! The reference pass: log-probs of every response under the reference, kept in sidecars beside the shards.
//!
//! A sidecar belongs to one shard, one set of weights and one way of computing; nothing else may read it. The pass
//! writes as it goes, so an interrupted one goes on where it stopped.

use super::engine::{Engine, Purpose};
use super::filling::{self, Fill, Work, fill};
use super::memory::{Budgets, MemoryPlan};
use super::team::Team;
use crate::backend::{Backend, RESPONSE_STATS};
use crate::batch::Outline;
use crate::data::plan::{Objective, PlanOptions, Planner, ResponseSet};
use crate::data::shard::Dataset;
use crate::data::sidecar::{self, Pruned, RefKey, Sidecars};
use crate::error::Result;
use crate::loss::LossSpec;
use crate::model::{Model, ModelDir};
use crate::observe::{Event, Observe};
use std::path::Path;
use std::time::Instant;

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

/// Where log-probs are kept, and who computes them.
#[derive(Clone, Copy)]
pub struct Keep<'a> {
    /// The folder of the sidecars; `None`: beside the shards.
    pub cache: Option<&'a Path>,
    /// The ranks that share the work. All know the numbers, and the first alone writes them.
    pub team: Team<'a>,
}

impl<'a> Keep<'a> {
    /// In `cache`, by one process.
    pub fn alone(cache: Option<&'a Path>) -> Self {
        Self { cache, team: Team::ALONE }
    }
}

impl Keep<'_> {
    /// What `open` finds: the first rank makes what is not there, then the others open it.
    pub(super) fn opened<T>(&self, open: impl FnOnce() -> Result<T>) -> Result<T> {
        self.team.first_then_all("wait for what rank 0 opens", open)
    }

    /// Refuses ranks that find another number of log-probs than rank 0, so that they would compute others.
    pub(super) fn same(&self, missing: impl Iterator<Item = u64>) -> Result<()> {
        let missing: Vec<String> = missing.map(|n| n.to_string()).collect();
        self.team.same(&[("number of log-probs still to compute", missing.join(", "))])
    }
}

/// The reference's log-probs for all of `parts`, computed where they are missing, and what that took: an answer a part.
/// Where `observe` ends it, what was computed is kept.
/// The weights are hashed once, and loaded once where anything is missing. Every rank of `keep` calls this.
pub fn ensure<B: Backend>(
    be: &B,
    model: &ModelDir,
    parts: &[Part<'_>],
    keep: Keep<'_>,
    observe: &mut dyn Observe,
) -> Result<Vec<(Sidecars, ReferenceReport)>> {
    let all = |data: &Dataset| ResponseSet::of(data.num_responses(), |_| true);
    let parts: Vec<_> = parts.iter().map(|&(data, slots)| ((data, slots), all(data))).collect();
    ensure_of(be, model, &parts, keep, observe)
}

/// [`ensure`] for some responses of each part; what else a sidecar has stays in it, and a later pass adds to it.
pub fn ensure_of<B: Backend>(
    be: &B,
    model: &ModelDir,
    parts: &[(Part<'_>, ResponseSet)],
    keep: Keep<'_>,
    observe: &mut dyn Observe,
) -> Result<Vec<(Sidecars, ReferenceReport)>> {
    let mut begun = Instant::now();
    let (mut all, mut planners, mut positions) = (Vec::with_capacity(parts.len()), Vec::new(), 0);
    let open_all = || parts.iter().map(|((data, slots), _)| open(be, model, data, keep.cache, *slots)).collect();
    let opened: Vec<Sidecars> = keep.opened(open_all)?;
    for (((data, slots), needed), sidecars) in parts.iter().zip(opened) {
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
    keep.same(planners.iter().map(|plan| plan.as_ref().map_or(0, Planner::units)))?;
    let mut engine = match used.is_empty() {
        true => None,
        false => Some(scorer(be, model, (&used, positions), keep.team)?),
    };
    for (planner, (sidecars, report)) in planners.iter().zip(&mut all) {
        if let Some(note) = not_used(sidecars.notes()) {
            observe.tell(&Event::Note(&note))?;
        }
        if let (Some(engine), Some(planner)) = (&mut engine, planner) {
            let step = |step| planner.outlines(0, step);
            let (steps, total, spec) = (planner.steps_in_epoch(0), planner.units(), LossSpec::STATISTICS);
            let units = |of: &Outline| of.responses().len() as u64;
            let work = Work { plan: planner, steps, step: &step, units, total, called: "responses", spec };
            fill(engine, &work, &mut Sums { sidecars, report }, observe)?;
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

/// The reference, loaded for what `planners` will ask of it and of `team`.
pub(super) fn scorer<'b, B: Backend>(
    be: &'b B,
    model: &ModelDir,
    (planners, positions): (&[&Planner<'_>], usize),
    team: Team<'b>,
) -> Result<Engine<'b, B>> {
    let budgets = Budgets::of(planners.iter().copied());
    let plan = budgets.fitting(be, |capacity| MemoryPlan::scoring(be, model.config(), positions, capacity))?;
    be.reserve(&plan.table)?;
    let mut engine = Engine::new(be, Model::load(be, model, positions)?, budgets.capacity(), Purpose::Score)?;
    engine.team = team;
    Ok(engine)
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

/// Sums of whole responses.
struct Sums<'s> {
    sidecars: &'s mut Sidecars,
    report: &'s mut ReferenceReport,
}

impl Fill for Sums<'_> {
    fn take(&mut self, of: &Outline, responses: &[f64], _: &[f64]) {
        let sums = responses.chunks_exact(RESPONSE_STATS).map(|stats| stats[0]);
        of.responses().iter().zip(sums).for_each(|(slot, logp)| self.sidecars.set(slot.id, logp));
        self.report.computed += of.responses().len() as u64;
        self.report.tokens += of.used() as u64;
    }

    fn keep(&mut self, if_due: bool) -> Result<()> {
        filling::keep_sums(self.sidecars, if_due)
    }
}
