//! Chosen up, rejected down, each from the reference.

use super::math::sigmoid;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "apo_zero",
    about: "APO-zero: chosen up and rejected down, for data better than the model",
    formula: "1 - s(beta dw) + s(beta dl)",
    source: "D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266) eq. 7",
    guidance: "Where the chosen responses are better than what the model writes. Bounded: a pair far on either side \
               has no gradient, so wrong labels do little harm, and pairs that start far off are never mended.",
    options: &[(Param::Beta, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let beta = p[Param::Beta];
    let (w, l) = (beta * x.ratio_chosen(), beta * x.ratio_rejected());
    PairLoss {
        loss: sigmoid(-w) + sigmoid(l),
        d_chosen: -beta * sigmoid(w) * sigmoid(-w),
        d_rejected: beta * sigmoid(l) * sigmoid(-l),
    }
}
