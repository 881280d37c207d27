//! AOT without pairs: the distribution of chosen log-ratios against that of rejected ones.

use super::math::logistic;
use super::step::{Running, StepPairs, ranks};
use super::{Lengths, LossDef, PairLoss, Param, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "aot_unpaired",
    about: "Distributional preference: sorted rewards of chosen responses against sorted rewards of rejected ones",
    formula: "d_k = k-th smallest dw - k-th smallest dl of the step; -(1-e) ls(beta d_k) - e ls(-beta d_k)",
    source: "Melnyk et al. 2024 (arXiv 2406.05882), unpaired variant",
    guidance: "As aot, where it does not matter which rejected response a chosen one was compared with. It compares the \
               responses of a step with one another, so batch_size is part of the loss: use 32 or more. Twice through the \
               model a step.",
    options: &[(Param::Beta, 0.1), (Param::LabelSmoothing, 0.0)],
    reference: true,
    scores: false,
    divergence: false,
    lengths: Lengths::Unread,
    mean_reward: false,
    rule: Rule::Step(loss),
};

/// The value and the weight at a rank are those of the pair whose chosen response has it. The rejected response of that rank
/// is mostly another pair's, whose weight its derivative will be multiplied by: so it is divided by that weight first.
fn loss(step: &StepPairs<'_>, _: &mut Running) -> Vec<PairLoss> {
    let chosen: Vec<f64> = step.pairs.iter().map(super::Pair::ratio_chosen).collect();
    let rejected: Vec<f64> = step.pairs.iter().map(super::Pair::ratio_rejected).collect();
    let (beta, smoothing) = (step.params[Param::Beta], step.params[Param::LabelSmoothing]);
    let mut all = vec![PairLoss::default(); step.pairs.len()];
    for (i, j) in ranks(&chosen).into_iter().zip(ranks(&rejected)) {
        let [loss, d] = logistic(beta * (chosen[i] - rejected[j]), smoothing);
        (all[i].loss, all[i].d_chosen) = (loss, beta * d);
        all[j].d_rejected = -beta * d * (step.weights[i] / step.weights[j]);
    }
    all
}
