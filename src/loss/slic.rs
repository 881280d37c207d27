//! A margin between likelihoods, and an anchor.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "slic",
    about: "SLiC-HF: a hinge between likelihoods, without a reference",
    formula: "max(0, slic_delta - w + l) - slic_lambda w",
    source: "Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), the chosen response as the target of the second term; \
             delta 1 and lambda 0.1 as in HALOs",
    guidance: "A baseline without a reference, for pairs of like lengths: sums of log-probs favour short responses. \
               Pairs with a margin of delta nats leave only the likelihood of the chosen response to learn.",
    options: &[(Param::SlicDelta, 1.0), (Param::SlicLambda, 0.1)],
    reference: false,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let lambda = p[Param::SlicLambda];
    let slack = p[Param::SlicDelta] - x.chosen + x.rejected;
    // At the kink the derivative from the right, 0, as torch.relu. NaN stays NaN.
    let (loss, by) = if slack <= 0.0 { (0.0, 0.0) } else { (slack, 1.0) };
    PairLoss { loss: loss - lambda * x.chosen, d_chosen: -by - lambda, d_rejected: by }
}
