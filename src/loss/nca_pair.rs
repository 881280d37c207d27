//! Noise-contrastive estimation on each response by itself.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "nca_pair",
    about: "NCA of two: keeps the chosen response likely",
    formula: "-ls(beta dw) - ls(-beta dw)/2 - ls(-beta dl)/2",
    source: "Chen et al. 2024 (NCA, arXiv 2402.05369) section 4, for one chosen of two responses",
    guidance: "Where sigmoid lowers the likelihood of chosen responses too, as in mathematics and code: it rewards dw \
               by itself, up to about log(2)/beta, and punishes dl by itself. Needs a reference near the data, as \
               each log-ratio counts alone.",
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
        loss: -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l),
        d_chosen: beta * (0.5 * sigmoid(w) - sigmoid(-w)),
        d_rejected: beta * (0.5 * sigmoid(l)),
    }
}
