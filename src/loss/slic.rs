//! A margin between likelihoods, and an anchor.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "slic",
    about: "SLiC-HF: a hinge between likelihoods, without a reference",
    formula: "max(0, beta - w + l) - slic_lambda w",
    source: "Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), the chosen response as the target of the second term; \
             beta is the paper's delta, named, and 1, as in HALOs, and so is lambda 0.1",
    guidance: "A baseline without a reference, for pairs of like lengths: sums of log-probs favour short responses. \
               Pairs with a margin of beta nats leave only the likelihood of the chosen response to learn.",
    options: &[(Param::Beta, 1.0), (Param::SlicLambda, 0.1)],
    reference: false,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let lambda = p[Param::SlicLambda];
    let slack = p[Param::Beta] - x.chosen + x.rejected;
    // At the kink the derivative from the right, 0, as torch.relu. NaN stays NaN.
    let (loss, by) = if slack <= 0.0 { (0.0, 0.0) } else { (slack, 1.0) };
    PairLoss { loss: loss - lambda * x.chosen, d_chosen: -by - lambda, d_rejected: by }
}
