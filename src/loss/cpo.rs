//! DPO with a uniform reference, and an anchor.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "cpo",
    about: "CPO: DPO without a reference, and the chosen response's mean token loss",
    formula: "-(1-e) ls(beta (w - l)) - e ls(-beta (w - l)) - cpo_alpha w/|w|",
    source: "Xu et al. 2024 (CPO, arXiv 2401.08417), which adds the whole log-likelihood; the mean over tokens, beta \
             0.1 and alpha 1 as in TRL, which takes it over the batch's tokens",
    guidance: "Translation, and other tasks with a near-perfect chosen response of like length. Sums of log-probs \
               favour the shorter response; nothing but the second term holds the policy.",
    options: &[(Param::Beta, 0.1), (Param::LabelSmoothing, 0.0), (Param::CpoAlpha, 1.0)],
    reference: false,
    scores: false,
    lengths: Lengths::Chosen,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (beta, alpha) = (p[Param::Beta], p[Param::CpoAlpha]);
    let [loss, d] = logistic(beta * (x.chosen - x.rejected), p[Param::LabelSmoothing]);
    PairLoss { loss: loss - alpha * x.mean_chosen(), d_chosen: beta * d - alpha / x.chosen_len, d_rejected: -beta * d }
}
