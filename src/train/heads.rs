//! The reference pass over pairs, for LD-DPO: sums over the tokens that both responses of a pair have, in keyed sidecars.
//!
//! They come from the op that computes the policy's, so that where both are the same weights nothing differs in a bit. Whole
//! sums come from the same pass, and go where [`super::reference`] keeps them.

use super::filling::{self, Fill, Work, fill};
use super::reference::{Keep, Part, ReferenceReport, ensure_of, key, lap, not_used, open, scorer};
use crate::backend::{Backend, PAIR_STATS, RESPONSE_STATS};
use crate::batch::Outline;
use crate::data::plan::{Objective, PlanOptions, Planner, ResponseSet, shared_lens};
use crate::data::shard::Dataset;
use crate::data::sidecar::{Kept, Keyed, Sidecars};
use crate::error::Result;
use crate::loss::LossSpec;
use crate::model::ModelDir;
use crate::observe::{Event, Observe};
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
    keep: Keep<'_>,
    observe: &mut dyn Observe,
) -> Result<Vec<(Sidecars, ReferenceReport)>> {
    if spec.ld_alpha.is_none() {
        return ensure_of(be, model, parts, keep, observe);
    }
    let begun = Instant::now();
    let heads = pass(be, model, parts, keep, observe)?;
    let mut done = ensure_of(be, model, parts, keep, observe)?;
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
    keep: Keep<'_>,
    observe: &mut dyn Observe,
) -> Result<Vec<Keyed>> {
    let (mut all, mut planners, mut positions) = (Vec::with_capacity(parts.len()), Vec::new(), 0);
    let open = |((data, slots), _): &(Part<'_>, _)| {
        let heads = Keyed::open(data, keep.cache, &key(be, model, *slots)?, Kept::Heads)?;
        Ok(Kinds { heads, sums: open(be, model, data, keep.cache, *slots)? })
    };
    let opened: Vec<Kinds> = keep.opened(|| parts.iter().map(open).collect())?;
    for (((data, slots), needed), kinds) in parts.iter().zip(opened) {
        let missing = missing(data, needed, &kinds.heads);
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
        all.push(kinds);
    }
    let used: Vec<&Planner<'_>> = planners.iter().flatten().collect();
    keep.same(planners.iter().map(|plan| plan.as_ref().map_or(0, Planner::units)))?;
    let mut engine = match used.is_empty() {
        true => None,
        false => Some(scorer(be, model, (&used, positions), keep.team)?),
    };
    for (planner, kinds) in planners.iter().zip(&mut all) {
        if let Some(note) = not_used(kinds.heads.notes()) {
            observe.tell(&Event::Note(&note))?;
        }
        if let (Some(engine), Some(planner)) = (&mut engine, planner) {
            let mut begun = Instant::now();
            let (steps, total, spec) = (planner.steps_in_epoch(0), planner.units(), statistics());
            let units = |of: &Outline| of.pairs().len() as u64;
            let step = |step| planner.outlines(0, step);
            let work = Work { plan: planner, steps, step: &step, units, total, called: "pairs", spec };
            fill(engine, &work, kinds, observe)?;
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

impl Fill for Kinds {
    fn take(&mut self, of: &Outline, responses: &[f64], pairs: &[f64]) {
        let Self { heads, sums } = self;
        for (slot, stats) in of.responses().iter().zip(responses.chunks_exact(RESPONSE_STATS)) {
            if !sums.has(slot.id) {
                sums.set(slot.id, stats[0]);
            }
        }
        for (pair, stats) in of.pairs().iter().zip(pairs.chunks_exact(PAIR_STATS)) {
            let shared = of.shared_len(pair) as u64;
            for (end, head) in [pair.chosen, pair.rejected].into_iter().zip(&stats[4..6]) {
                heads.set(of.responses()[end as usize].id, shared, *head);
            }
        }
    }

    fn keep(&mut self, if_due: bool) -> Result<()> {
        filling::keep_keyed(&mut self.heads, if_due)?;
        filling::keep_sums(&mut self.sums, if_due)
    }
}
