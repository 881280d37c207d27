//! Mean log-probs with a margin, without a reference.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "simpo",
    about: "SimPO: mean log-probs as the reward, with a margin, no reference",
    formula: "-(1-e) ls(m) - e ls(-m), m = beta (w/|w| - l/|l|) - simpo_gamma",
    source: "Meng et al. 2024 (SimPO, arXiv 2405.14734) eq. 6; e: label smoothing; defaults of TRL",
    guidance: "Pairs written by the policy itself, a good starting point, and no memory for a reference. Its authors \
               use beta 2 to 10 with gamma/beta 0.1 to 0.8 and a learning rate of 3e-7 to 1e-6: the defaults are \
               tame. Nothing holds the policy, so a learning rate too high ends in repetition.",
    options: &[(Param::Beta, 0.1), (Param::SimpoGamma, 0.5), (Param::LabelSmoothing, 0.0)],
    reference: false,
    scores: false,
    lengths: Lengths::Both,
    divergence: false,
    mean_reward: true,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let beta = p[Param::Beta];
    let m = beta * (x.mean_chosen() - x.mean_rejected()) - p[Param::SimpoGamma];
    let [loss, d] = logistic(m, p[Param::LabelSmoothing]);
    PairLoss { loss, d_chosen: beta * d / x.chosen_len, d_rejected: -beta * d / x.rejected_len }
}
