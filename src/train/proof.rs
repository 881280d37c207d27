//! The step-0 proof, and the sample of what it does not reach.

use super::engine::Engine;
use super::means;
use super::metrics::Totals;
use super::mismatched::reference_of;
use super::whole_step::{self, Taking};
use crate::backend::{Backend, PAIR_STATS, RESPONSE_STATS};
use crate::batch::Batches;
use crate::data::plan::Planner;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::loss::{LossSpec, Scope};
use std::hash::{BuildHasher, Hasher, RandomState};

/// Computes the responses of one micro-batch of a step again, where their log-probs were found in files: a file's checksums
/// say that it is whole, not that anybody computed it. Which step is drawn anew each time, so that nobody can leave it right.
/// The engine's model is the reference.
///
/// Errors: [`Error::Training`] where a bit differs; what scoring meets.
pub fn spot_check<B: Backend>(
    engine: &mut Engine<'_, B>,
    (plan, spec): (&Planner<'_>, &LossSpec),
    sidecars: &Sidecars,
) -> Result<()> {
    let steps = plan.steps_in_epoch(0);
    if sidecars.found() == 0 || steps == 0 {
        return Ok(());
    }
    let step = RandomState::new().build_hasher().finish() % steps;
    let Some(outline) = plan.first_outlines(0, step)?.pop() else { return Ok(()) };
    let mb = plan.with_tokens(outline)?;
    let mut sums = LossSpec::STATISTICS;
    sums.ld_alpha = spec.ld_alpha;
    let late = engine.start_evaluation(&mb, &sums)?;
    let differs = |id: u64, what: &str, kept: Option<f64>, now: f64| match kept {
        Some(kept) if kept.to_bits() != now.to_bits() => Err(Error::Training(format!(
            "response {id} of the data: the reference sidecars say {kept}{what}, the reference itself {now}; delete the \
             sidecars, and the reference pass makes them again"
        ))),
        _ => Ok(()),
    };
    engine.read(late, |responses, pairs| {
        for (slot, stats) in mb.responses().iter().zip(responses.chunks_exact(RESPONSE_STATS)) {
            differs(slot.id, "", reference_of(slot, sidecars), stats[0])?;
        }
        for (pair, stats) in mb.pairs().iter().zip(pairs.chunks_exact(PAIR_STATS)) {
            let shared = mb.shared_len(pair) as u64;
            for (end, head) in [pair.chosen, pair.rejected].into_iter().zip(&stats[4..6]) {
                let id = mb.responses()[end as usize].id;
                differs(id, &format!(" of its first {shared} tokens"), sidecars.head(id, shared), *head)?;
            }
        }
        Ok(())
    })?
}

/// How far rounding may take a mean of f64 losses from the same mean in another order, relative to it.
const ROUNDING: f64 = 1e-9;

/// Policy and reference are the same model, so that every log-ratio is exactly 0 and the loss is what its formula gives there.
/// Anything else means that the numbers cannot be trusted: [`Error::Training`], and the run ends.
pub fn prove_step_0(totals: &Totals) -> Result<()> {
    let (loss, want) = (totals.mean_loss(), totals.mean_at_reference());
    if totals.off_reference == 0 && (loss - want).abs() <= ROUNDING * want.abs().max(1.0) {
        return Ok(());
    }
    let what = if totals.pairs > 0 { "pairs" } else { "responses" };
    Err(Error::Training(format!(
        "step-0 proof failed: policy and reference are the same weights, yet {} of {} {what} differ and the loss is {loss} instead of {want}; \
         delete the reference sidecars and try again, and report this if it stays",
        totals.off_reference,
        if totals.pairs > 0 { totals.pairs } else { totals.responses }
    )))
}

/// [`prove_step_0`] of a policy that training takes away from the reference, by dropout: of an evaluation of the first step.
pub fn prove_evaluated<B: Backend>(
    engine: &mut Engine<'_, B>,
    mut batches: Batches,
    spec: &LossSpec,
    seed: u64,
) -> Result<()> {
    let mut totals = Totals::proving();
    if spec.scope() == Scope::Step {
        let scales = means::scales(batches.all(), spec);
        let how = Taking { spec, scales, seed: [seed, 1], trains: false, proves: true };
        let mut running = engine.state.clock.running;
        totals = whole_step::first(engine, &mut batches, how, &mut running)?;
    } else {
        let numbers = engine.evaluated(&batches, spec)?;
        let all = batches.all().zip(&numbers);
        all.for_each(|(of, (responses, pairs))| totals.add(of, spec, responses, pairs));
    }
    prove_step_0(&totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_and_the_loss_must_be_at_the_reference() {
        let right = 2.0 * std::f64::consts::LN_2;
        let two = |loss: f64, off_reference: u64| Totals {
            pairs: 2,
            weight: 2.0,
            loss,
            off_reference,
            at_reference: Some([right, 0.0, 0.0]),
            ..Totals::default()
        };
        prove_step_0(&two(right, 0)).unwrap();
        for bad in [two(right, 1), two(right * (1.0 + 1e-6), 0), two(f64::NAN, 0), two(right, 2)] {
            assert!(prove_step_0(&bad).is_err(), "{bad:?}");
        }
    }
}
