//! The step-0 proof.

use super::metrics::Totals;
use crate::error::{Error, Result};
use crate::loss::LossSpec;

/// Policy and reference are the same model, so that every margin is exactly 0 and the loss is exactly its value there.
/// Anything else means that the numbers cannot be trusted: [`Error::Training`], and the run ends.
pub fn prove_step_0(totals: &Totals, spec: &LossSpec) -> Result<()> {
    let want = spec.at_reference().expect("a loss with a reference is a loss of pairs");
    let loss = totals.mean_loss();
    if totals.off_reference == 0 && loss as f32 == want as f32 {
        return Ok(());
    }
    Err(Error::Training(format!(
        "step-0 proof failed: policy and reference are the same weights, yet {} of {} pairs differ and the loss is {loss} instead of {want}; \
         delete the reference sidecars and try again, and report this if it stays",
        totals.off_reference, totals.pairs
    )))
}
