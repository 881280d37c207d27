//! The reference pass over mismatched rows: what a loss of judgements compares the policy's with.

use super::engine::{Engine, Late};
use super::reference::{FLUSH_EVERY, key, not_used, scorer};
use crate::backend::Backend;
use crate::batch::{MicroBatch, ResponseSlot, Role};
use crate::data::plan::{Mismatch, Planner};
use crate::data::sidecar::{Kept, Keyed, Sidecars};
use crate::error::{Error, Result};
use crate::model::ModelDir;
use crate::observe::{Event, Flow, Observe};
use std::path::Path;

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
    cache: Option<&Path>,
    sidecars: &mut Sidecars,
    observe: &mut dyn Observe,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut known = Keyed::open(planner.data(), cache, &key(be, model, planner.token_budget())?, Kept::Mismatched)?;
    let missing: Vec<Mismatch> = rows.iter().copied().filter(|&(g, r)| !known.has(g, r)).collect();
    if let Some(note) = not_used(known.notes()) {
        observe.tell(&Event::Note(&note))?;
    }
    let what = if missing.is_empty() { "found" } else { "computed" };
    if !missing.is_empty() {
        let mut engine = scorer(be, model, &[planner], planner.longest_row())?;
        fill(&mut engine, planner, &missing, &mut known, observe)?;
    }
    let n = rows.len();
    let line = format!("reference log-probs of {n} mismatched rows (a prompt with a response to another) {what}");
    observe.tell(&Event::Note(&line))?;
    sidecars.with_mismatched(known);
    Ok(())
}

fn fill<B: Backend>(
    engine: &mut Engine<'_, B>,
    planner: &Planner<'_>,
    missing: &[Mismatch],
    known: &mut Keyed,
    observe: &mut dyn Observe,
) -> Result<()> {
    let total = missing.len() as u64;
    let mut flow = observe.on(&Event::Begin { task: "reference", total, keeps: true })?;
    let collect = |engine: &mut Engine<'_, B>, known: &mut Keyed, (mb, late): (MicroBatch, Late<B>)| {
        for (slot, logp) in mb.responses().iter().zip(engine.collect_score(late)?) {
            if let Role::Mismatched { group, .. } = slot.role {
                known.set(group, slot.id, logp);
            }
        }
        Ok::<(), Error>(())
    };
    // One micro-batch is always under way while the host prepares the next.
    let (mut before, mut seen) = (None, 0);
    for rows in missing.chunks(planner.mismatched_at_once()) {
        for mb in planner.mismatched_rows(rows)? {
            let late = engine.start_score(&mb)?;
            if let Some(before) = before.replace((mb, late)) {
                collect(engine, known, before)?;
            }
        }
        seen += rows.len() as u64;
        flow = flow.and(observe.on(&Event::Tick)?);
        if let Some(last) = before.take_if(|_| flow != Flow::On || seen == total) {
            collect(engine, known, last)?;
        }
        known.flush_if_due(FLUSH_EVERY)?;
        if flow != Flow::On {
            known.flush()?;
            let left = total - seen;
            let why = format!("stopped: {left} mismatched rows still to do; the same command goes on from here");
            return Err(Error::stopped(why));
        }
        flow = observe.on(&Event::Progress { done: seen, beside: format_args!("") })?;
    }
    observe.tell(&Event::End)?;
    known.flush()
}
