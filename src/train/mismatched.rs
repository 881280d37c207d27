//! The reference pass over mismatched rows: what a loss of judgements compares the policy's with.

use super::filling::{self, Fill, Work, fill};
use super::reference::{Keep, key, not_used, scorer};
use crate::backend::{Backend, RESPONSE_STATS};
use crate::batch::{Outline, ResponseSlot, Role};
use crate::data::plan::{Mismatch, Planner};
use crate::data::sidecar::{Kept, Keyed, Sidecars};
use crate::error::Result;
use crate::loss::LossSpec;
use crate::model::ModelDir;
use crate::observe::{Event, Observe};

/// The reference's log-prob of `slot`, be it of its own prompt or of another's.
pub fn reference_of(slot: &ResponseSlot, sidecars: &Sidecars) -> Option<f64> {
    match slot.role {
        Role::Own { .. } => sidecars.get(slot.id),
        Role::Mismatched { group, .. } => sidecars.mismatched(group, slot.id),
    }
}

/// Adds to `sidecars` the log-probs of `rows`, the mismatched rows that a run by `planner` reads: those that a file has, and
/// those that `model` computes now and leaves in it. Where `observe` ends it, what was computed is kept.
pub fn ensure<B: Backend>(
    be: &B,
    model: &ModelDir,
    (planner, rows): (&Planner<'_>, &[Mismatch]),
    keep: Keep<'_>,
    sidecars: &mut Sidecars,
    observe: &mut dyn Observe,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let key = key(be, model, planner.token_budget())?;
    let mut known = keep.opened(|| Keyed::open(planner.data(), keep.cache, &key, Kept::Mismatched))?;
    let missing: Vec<Mismatch> = rows.iter().copied().filter(|&(g, r)| !known.has(g, r)).collect();
    if let Some(note) = not_used(known.notes()) {
        observe.tell(&Event::Note(&note))?;
    }
    let what = if missing.is_empty() { "found" } else { "computed" };
    keep.same(std::iter::once(missing.len() as u64))?;
    if !missing.is_empty() {
        let mut engine = scorer(be, model, (&[planner], planner.longest_row()), keep.team)?;
        let steps: Vec<&[Mismatch]> = missing.chunks(planner.mismatched_at_once()).collect();
        let work = Work {
            plan: planner,
            steps: steps.len() as u64,
            step: &|step| planner.mismatched_rows(steps[step as usize]),
            units: |of| of.responses().iter().filter(|slot| slot.role.is_mismatched()).count() as u64,
            total: missing.len() as u64,
            called: "mismatched rows",
            spec: LossSpec::STATISTICS,
        };
        fill(&mut engine, &work, &mut Rows(&mut known), observe)?;
    }
    let n = rows.len();
    let line = format!("reference log-probs of {n} mismatched rows (a prompt with a response to another) {what}");
    observe.tell(&Event::Note(&line))?;
    sidecars.with_mismatched(known);
    Ok(())
}

/// Sums of responses beside other prompts.
struct Rows<'r>(&'r mut Keyed);

impl Fill for Rows<'_> {
    fn take(&mut self, of: &Outline, responses: &[f64], _: &[f64]) {
        for (slot, stats) in of.responses().iter().zip(responses.chunks_exact(RESPONSE_STATS)) {
            if let Role::Mismatched { group, .. } = slot.role {
                self.0.set(group, slot.id, stats[0]);
            }
        }
    }

    fn keep(&mut self, if_due: bool) -> Result<()> {
        filling::keep_keyed(self.0, if_due)
    }
}
