//! DPO's own loss; with label smoothing, cDPO.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "sigmoid",
    about: "DPO, with label smoothing cDPO",
    formula: "-(1-e) ls(beta h) - e ls(-beta h)",
    source: "Rafailov et al. 2023 (arXiv 2305.18290) eq. 7; e: label smoothing, Mitchell 2023 (cDPO)",
    guidance: "The first to try, on any pairs. The smaller beta, the further the policy may go from the reference; where labels \
               are known to be wrong at some rate, give that as label smoothing. Long runs at a small beta push both \
               responses down: watch logps/chosen.",
    options: &[(Param::Beta, 0.1), (Param::LabelSmoothing, 0.0)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let [loss, d] = logistic(p[Param::Beta] * x.margin(), p[Param::LabelSmoothing]);
    PairLoss::of_margin(loss, p[Param::Beta] * d)
}
