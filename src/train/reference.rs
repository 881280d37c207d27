//! The reference pass: log-probs of every response under the reference, kept in sidecars beside the shards.
//!
//! A sidecar belongs to one shard, one set of weights and one way of computing; nothing else may read it. The pass
//! writes as it goes, so an interrupted one goes on where it stopped.

use super::engine::{Engine, Late, Purpose};
use super::memory::{Budgets, MemoryPlan};
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::data::sidecar::{RefKey, Sidecars};
use crate::error::{Error, Result};
use crate::model::{Model, ModelDir};
use crate::observe::{Event, Flow, Observe};
use std::path::Path;
use std::time::{Duration, Instant};

/// How much work an interruption may lose.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

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
    let mut begun = Instant::now();
    let mut all = Vec::with_capacity(parts.len());
    for &(data, slots) in parts {
        let sidecars = open(be, model, data, cache, slots)?;
        let responses = data.num_responses();
        all.push((sidecars, ReferenceReport { responses, seconds: lap(&mut begun), ..Default::default() }));
    }
    let missing: Vec<_> = parts.iter().zip(&all).filter(|(_, (sidecars, _))| sidecars.missing() > 0).collect();
    let planners = missing.iter().map(|((data, slots), _)| Planner::new(data, &score_options(*slots)));
    let planners = planners.collect::<Result<Vec<_>>>()?;
    let positions = missing.iter().map(|((data, _), _)| data.longest_row()).max().unwrap_or(0);
    let mut engine = match planners.is_empty() {
        true => None,
        false => Some(scorer(be, model, &planners, positions)?),
    };
    let mut planners = planners.iter();
    for (sidecars, report) in &mut all {
        for note in sidecars.notes() {
            observe.tell(&Event::Note(note))?;
        }
        if let (Some(engine), true) = (&mut engine, sidecars.missing() > 0) {
            let planner = planners.next().expect("one for each with anything missing");
            fill(engine, planner, (sidecars, report), observe)?;
            report.seconds += lap(&mut begun);
        }
        let &mut ReferenceReport { responses, computed, seconds, .. } = report;
        observe.tell(&Event::Referenced { responses, computed, seconds })?;
    }
    Ok(all)
}

/// The reference, loaded for what `planners` will ask of it.
fn scorer<'b, B: Backend>(
    be: &'b B,
    model: &ModelDir,
    planners: &[Planner<'_>],
    positions: usize,
) -> Result<Engine<'b, B>> {
    let budgets = Budgets::of(planners);
    let plan = budgets.fitting(be, |capacity| MemoryPlan::scoring(be, model.config(), positions, capacity))?;
    be.reserve(&plan.table)?;
    Engine::new(be, Model::load(be, model, positions)?, budgets.capacity(), Purpose::Score)
}

/// Seconds since the last lap.
fn lap(since: &mut Instant) -> f64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(since, now)).as_secs_f64()
}

fn open<B: Backend>(be: &B, model: &ModelDir, data: &Dataset, cache: Option<&Path>, slots: usize) -> Result<Sidecars> {
    let shapes = if B::SHAPES_BY_CAPACITY { format!(" T={slots}") } else { String::new() };
    let key = RefKey { model_sha256: model.identity()?, fingerprint: be.fingerprint() + &shapes };
    Sidecars::open(data, cache, &key)
}

fn score_options(slots: usize) -> PlanOptions {
    PlanOptions { objective: Objective::Score, batch_size: 64, token_budget: Some(slots), seed: 0, shuffle: false }
}

fn fill<B: Backend>(
    engine: &mut Engine<'_, B>,
    planner: &Planner<'_>,
    (sidecars, report): (&mut Sidecars, &mut ReferenceReport),
    observe: &mut dyn Observe,
) -> Result<()> {
    let steps = planner.steps_in_epoch(0);
    let mut flow = observe.on(&Event::Begin { task: "reference", total: report.responses, keeps: true })?;
    let mut seen = 0;
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
    for step in 0..steps {
        for mb in planner.step(0, step)? {
            seen += mb.responses().len() as u64;
            if mb.responses().iter().all(|r| sidecars.get(r.id).is_some()) {
                continue;
            }
            let late = engine.start_score(&mb)?;
            if let Some(before) = before.replace((mb, late)) {
                collect(engine, sidecars, before)?;
            }
        }
        flow = flow.and(observe.on(&Event::Tick)?);
        let stop = flow == Flow::Stop;
        if let Some(last) = before.take_if(|_| stop || step + 1 == steps) {
            collect(engine, sidecars, last)?;
        }
        sidecars.flush_if_due(FLUSH_EVERY)?;
        if stop {
            sidecars.flush()?;
            return Err(Error::Training(format!(
                "stopped: {} responses still to do; the same command goes on from here",
                sidecars.missing()
            )));
        }
        flow = observe.on(&Event::Progress { done: seen, beside: format_args!("") })?;
    }
    observe.tell(&Event::End)?;
    sidecars.flush()
}
