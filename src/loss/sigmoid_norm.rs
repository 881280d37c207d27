//! DPO on per-token means.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "sigmoid_norm",
    about: "Length-normalised DPO: sigmoid on per-token means",
    formula: "-ls(beta (dw/|w| - dl/|l|))",
    source: "Lambert et al. 2024 (Tulu 3, arXiv 2411.15124), its length-normalised DPO; beta 5 as there. TRL's \
             default is 0.1",
    guidance: "Where responses differ much in length and sigmoid would learn it. Means are some hundred times smaller \
               than sums, so beta is larger: 5 to 10, with a learning rate of 5e-7.",
    options: &[(Param::Beta, 5.0)],
    reference: true,
    scores: false,
    lengths: Lengths::Both,
    divergence: true,
    mean_reward: true,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let beta = p[Param::Beta];
    let gap = x.ratio_chosen() / x.chosen_len - x.ratio_rejected() / x.rejected_len;
    let [loss, d] = logistic(beta * gap, 0.0);
    PairLoss { loss, d_chosen: beta * d / x.chosen_len, d_rejected: -beta * d / x.rejected_len }
}
