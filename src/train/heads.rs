//! The reference pass over pairs, for LD-DPO: sums over the tokens that both responses of a pair have, in keyed sidecars.
//!
//! They come from the op that computes the policy's, so that where both are the same weights nothing differs in a bit. Whole
//! sums come from the same pass, and go where [`super::reference`] keeps them.

use super::engine::{Engine, Late};
use super::reference::{FLUSH_EVERY, Part, ReferenceReport, ensure_of, key, lap, not_used, open, scorer};
use crate::backend::{Backend, PAIR_STATS, RESPONSE_STATS};
use crate::batch::MicroBatch;
use crate::data::plan::{Objective, PlanOptions, Planner, ResponseSet, shared_lens};
use crate::data::shard::Dataset;
use crate::data::sidecar::{Kept, Keyed, Sidecars};
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::model::ModelDir;
use crate::observe::{Event, Flow, Observe};
use std::path::Path;
use std::time::Instant;

/// What a pass of one part fills.
struct Kinds {
    heads: Keyed,
    sums: Sidecars,
}

/// [`ensure_of`] for what `spec` reads: where it takes less of tokens that only one response of a pair has, also the sums over
/// the others, of the pairs whose responses are both needed. They are then found in the sidecars.
pub fn ensure_for<B: Backend>(
    be: &B,
    model: &ModelDir,
    (parts, spec): (&[(Part<'_>, ResponseSet)], &LossSpec),
    cache: Option<&Path>,
    observe: &mut dyn Observe,
) -> Result<Vec<(Sidecars, ReferenceReport)>> {
    if spec.ld_alpha.is_none() {
        return ensure_of(be, model, parts, cache, observe);
    }
    let begun = Instant::now();
    let heads = pass(be, model, parts, cache, observe)?;
    let mut done = ensure_of(be, model, parts, cache, observe)?;
    for ((sidecars, _), heads) in done.iter_mut().zip(heads) {
        sidecars.with_heads(heads);
    }
    let of_sums: f64 = done.iter().map(|(_, report)| report.seconds).sum();
    if let Some((_, report)) = done.first_mut() {
        report.seconds += begun.elapsed().as_secs_f64() - of_sums;
    }
    Ok(done)
}

fn pass<B: Backend>(
    be: &B,
    model: &ModelDir,
    parts: &[(Part<'_>, ResponseSet)],
    cache: Option<&Path>,
    observe: &mut dyn Observe,
) -> Result<Vec<Keyed>> {
    let (mut all, mut planners, mut positions) = (Vec::with_capacity(parts.len()), Vec::new(), 0);
    for ((data, slots), needed) in parts {
        let heads = Keyed::open(data, cache, &key(be, model, *slots)?, Kept::Heads)?;
        let sums = open(be, model, data, cache, *slots)?;
        let missing = missing(data, needed, &heads);
        if missing.is_empty() {
            planners.push(None);
        } else {
            let options = PlanOptions {
                objective: Objective::Preference,
                batch_size: 64,
                token_budget: Some(*slots),
                seed: 0,
                shuffle: false,
            };
            positions = positions.max(data.longest_row());
            planners.push(Some(Planner::only(data, &options, missing)?));
        }
        all.push(Kinds { heads, sums });
    }
    let used: Vec<&Planner<'_>> = planners.iter().flatten().collect();
    let mut engine = match used.is_empty() {
        true => None,
        false => Some(scorer(be, model, &used, positions)?),
    };
    for (planner, kinds) in planners.iter().zip(&mut all) {
        if let Some(note) = not_used(kinds.heads.notes()) {
            observe.tell(&Event::Note(&note))?;
        }
        if let (Some(engine), Some(planner)) = (&mut engine, planner) {
            let mut begun = Instant::now();
            fill(engine, planner, kinds, observe)?;
            let (pairs, seconds) = (planner.units(), lap(&mut begun));
            let line = format!(
                "reference log-probs of what both responses have, of {pairs} pairs, computed in {seconds:.1} s"
            );
            observe.tell(&Event::Note(&line))?;
        }
    }
    Ok(all.into_iter().map(|kinds| kinds.heads).collect())
}

/// Responses of the pairs that are needed and not known.
fn missing(data: &Dataset, needed: &ResponseSet, heads: &Keyed) -> ResponseSet {
    let mut all = ResponseSet::none(data.num_responses());
    for group in (0..data.num_groups()).map(|g| data.group(g)) {
        for (ends, shared) in shared_lens(&group) {
            let known = ends.iter().all(|id| heads.has(*id, shared));
            if !known && ends.iter().all(|id| needed.contains(*id)) {
                ends.into_iter().for_each(|id| all.insert(id));
            }
        }
    }
    all
}

/// No loss, and LD-DPO's sums.
fn statistics() -> LossSpec {
    let mut spec = LossSpec::STATISTICS;
    spec.ld_alpha = Some(1.0);
    spec
}

fn fill<B: Backend>(
    engine: &mut Engine<'_, B>,
    planner: &Planner<'_>,
    kinds: &mut Kinds,
    observe: &mut dyn Observe,
) -> Result<()> {
    let steps = planner.steps_in_epoch(0);
    let spec = statistics();
    let mut flow = observe.on(&Event::Begin { task: "reference", total: planner.units(), keeps: true })?;
    // One micro-batch is always under way while the host prepares the next.
    let mut before = None;
    let mut seen = 0;
    for step in 0..steps {
        for mb in planner.step(0, step)? {
            seen += mb.pairs().len() as u64;
            let late = engine.start_evaluation(&mb, &spec)?;
            if let Some(before) = before.replace((mb, late)) {
                collect(engine, kinds, before)?;
            }
        }
        flow = flow.and(observe.on(&Event::Tick)?);
        let stop = flow != Flow::On;
        if let Some(last) = before.take_if(|_| stop || step + 1 == steps) {
            collect(engine, kinds, last)?;
        }
        kinds.heads.flush_if_due(FLUSH_EVERY)?;
        kinds.sums.flush_if_due(FLUSH_EVERY)?;
        if stop {
            kinds.heads.flush()?;
            kinds.sums.flush()?;
            let left = planner.units() - seen;
            return Err(Error::stopped(format!(
                "stopped: {left} pairs still to do; the same command goes on from here"
            )));
        }
        flow = observe.on(&Event::Progress { done: seen, beside: format_args!("") })?;
    }
    observe.tell(&Event::End)?;
    kinds.heads.flush()?;
    kinds.sums.flush()
}

fn collect<B: Backend>(engine: &mut Engine<'_, B>, kinds: &mut Kinds, (mb, late): (MicroBatch, Late<B>)) -> Result<()> {
    let Kinds { heads, sums } = kinds;
    engine.read(late, |responses, pairs| {
        for (slot, stats) in mb.responses().iter().zip(responses.chunks_exact(RESPONSE_STATS)) {
            if !sums.has(slot.id) {
                sums.set(slot.id, stats[0]);
            }
        }
        for (pair, stats) in mb.pairs().iter().zip(pairs.chunks_exact(PAIR_STATS)) {
            let shared = mb.shared_len(pair) as u64;
            for (end, head) in [pair.chosen, pair.rejected].into_iter().zip(&stats[4..6]) {
                heads.set(mb.responses()[end as usize].id, shared, *head);
            }
        }
    })
}
