//! A classifier of single responses, on pairs.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "bco_pair",
    about: "BCO on pairs: a classifier of good and bad responses",
    formula: "-ls(beta dw) - ls(-beta dl)",
    source: "Jung et al. 2024 (BCO, arXiv 2404.04656), its binary cross-entropy on pairs, without the reward shift \
             delta, as in TRL",
    guidance: "Where chosen responses are good and rejected ones bad by themselves, not only compared (thumbs up and \
               down). Where both are good, sigmoid teaches what this one cannot.",
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
    PairLoss { loss: -log_sigmoid(w) - log_sigmoid(-l), d_chosen: -beta * sigmoid(-w), d_rejected: beta * sigmoid(l) }
}
