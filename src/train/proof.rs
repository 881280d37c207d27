//! The step-0 proof, and the sample of what it does not reach.

use super::engine::Engine;
use super::metrics::Totals;
use crate::backend::Backend;
use crate::data::plan::Planner;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use std::hash::{BuildHasher, Hasher, RandomState};

/// Computes the responses of one micro-batch of a step again, where their log-probs were found in files: a file's checksums
/// say that it is whole, not that anybody computed it. Which step is drawn anew each time, so that nobody can leave it right.
/// The engine's model is the reference.
///
/// Errors: [`Error::Training`] where a bit differs; what scoring meets.
pub fn spot_check<B: Backend>(engine: &mut Engine<'_, B>, plan: &Planner<'_>, sidecars: &Sidecars) -> Result<()> {
    let steps = plan.steps_in_epoch(0);
    if sidecars.found() == 0 || steps == 0 {
        return Ok(());
    }
    let step = RandomState::new().build_hasher().finish() % steps;
    let Some(mb) = plan.step(0, step)?.pop() else { return Ok(()) };
    for (slot, logp) in mb.responses().iter().zip(engine.score(&mb)?) {
        if let Some(kept) = sidecars.get(slot.id).filter(|kept| kept.to_bits() != logp.to_bits()) {
            return Err(Error::Training(format!(
                "response {} of the data: the reference sidecars say {kept}, the reference itself {logp}; delete the \
                 sidecars, and the reference pass makes them again",
                slot.id
            )));
        }
    }
    Ok(())
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
    Err(Error::Training(format!(
        "step-0 proof failed: policy and reference are the same weights, yet {} of {} pairs differ and the loss is {loss} instead of {want}; \
         delete the reference sidecars and try again, and report this if it stays",
        totals.off_reference, totals.pairs
    )))
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
            at_reference: [right, 0.0, 0.0],
            ..Totals::default()
        };
        prove_step_0(&two(right, 0)).unwrap();
        for bad in [two(right, 1), two(right * (1.0 + 1e-6), 0), two(f64::NAN, 0), two(right, 2)] {
            assert!(prove_step_0(&bad).is_err(), "{bad:?}");
        }
    }
}
