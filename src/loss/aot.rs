//! AOT: the distribution of the policy's margins against that of the reference's.

use super::math::logistic;
use super::step::{Running, StepPairs, ranks};
use super::{Lengths, LossDef, PairLoss, Param, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "aot",
    about: "Distributional preference: sorted margins of the policy against sorted margins of the reference",
    formula: "d_k = k-th smallest (w - l) - k-th smallest (rw - rl) of the step; -(1-e) ls(beta d_k) - e ls(-beta d_k)",
    source: "Melnyk et al. 2024 (arXiv 2406.05882), paired variant",
    guidance: "For pairs whose labels are right on the whole rather than one by one: it asks the distribution of margins to \
               dominate the reference's. It compares the pairs of a step with one another, so batch_size is part of the loss: \
               use 32 or more. Twice through the model a step.",
    options: &[(Param::Beta, 0.1), (Param::LabelSmoothing, 0.0)],
    reference: true,
    scores: false,
    divergence: false,
    lengths: Lengths::Unread,
    mean_reward: false,
    rule: Rule::Step(loss),
};

/// The value and the weight at a rank are those of the pair whose policy margin has it: the gradient goes back to that pair.
fn loss(step: &StepPairs<'_>, _: &mut Running) -> Vec<PairLoss> {
    let policy: Vec<f64> = step.pairs.iter().map(|p| p.chosen - p.rejected).collect();
    let reference: Vec<f64> = step.pairs.iter().map(|p| p.ref_chosen - p.ref_rejected).collect();
    let (beta, smoothing) = (step.params[Param::Beta], step.params[Param::LabelSmoothing]);
    let mut all = vec![PairLoss::default(); step.pairs.len()];
    for (i, j) in ranks(&policy).into_iter().zip(ranks(&reference)) {
        let [loss, d] = logistic(beta * (policy[i] - reference[j]), smoothing);
        all[i] = PairLoss::of_margin(loss, beta * d);
    }
    all
}
