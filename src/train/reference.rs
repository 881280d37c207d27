//! The reference pass: log-probs of every response under the reference, kept in sidecars beside the shards.
//!
//! A sidecar belongs to one shard, one set of weights and one way of computing; nothing else may read it. The pass
//! writes as it goes, so an interrupted one goes on where it stopped.

use super::check::longest_row;
use super::engine::{Engine, Late, Purpose};
use super::memory::{Budgets, MemoryPlan};
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::dataset::Dataset;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::sidecar::{RefKey, Sidecars};
use crate::error::{Error, Result};
use crate::model::{self, Model, ModelConfig};
use crate::note;
use crate::progress::Progress;
use crate::signal;
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

/// The reference's log-probs for all of `data`, computed where they are missing. `slots` is the token budget of the
/// run that will read them: it is part of the key where results depend on it.
pub fn ensure<B: Backend>(
    be: &B,
    model_dir: &Path,
    data: &Dataset,
    cache: Option<&Path>,
    slots: usize,
) -> Result<(Sidecars, ReferenceReport)> {
    let begun = Instant::now();
    let shapes = if B::FIXED_SHAPES { format!(" T={slots}") } else { String::new() };
    let key = RefKey { model_sha256: model::identity(model_dir)?, fingerprint: be.fingerprint() + &shapes };
    let mut sidecars = Sidecars::open(data, cache, &key)?;
    for note in sidecars.notes() {
        note!("{note}");
    }
    let mut report = ReferenceReport { responses: data.num_responses(), ..Default::default() };
    if sidecars.missing() > 0 {
        let (config, positions) = (ModelConfig::load(model_dir)?, longest_row(data));
        let options = PlanOptions {
            objective: Objective::Score,
            batch_size: 64,
            token_budget: Some(slots),
            seed: 0,
            shuffle: false,
        };
        let planner = Planner::new(data, &options)?;
        let budgets = Budgets::of([&planner]);
        let plan = budgets.fitting(be, |capacity| MemoryPlan::scoring(be, &config, positions, capacity))?;
        be.reserve(&plan.table)?;
        let model = Model::load(be, model_dir, positions)?;
        let mut engine = Engine::new(be, model, planner.capacity(), Purpose::Score)?;
        fill(&mut engine, data, &planner, &mut sidecars, &mut report)?;
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok((sidecars, report))
}

fn fill<B: Backend>(
    engine: &mut Engine<'_, B>,
    data: &Dataset,
    planner: &Planner<'_>,
    sidecars: &mut Sidecars,
    report: &mut ReferenceReport,
) -> Result<()> {
    signal::saves();
    let steps = planner.steps_in_epoch(0);
    let mut progress = Progress::new("reference", report.responses);
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
        data.check_unchanged()?;
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
        let stop = signal::stop_requested();
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
        progress.set(seen, String::new);
    }
    progress.finish();
    sidecars.flush()
}
