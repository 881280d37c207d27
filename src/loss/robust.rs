//! DPO made unbiased under labels that are flipped at a known rate.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "robust",
    about: "Robust DPO: what the loss would be without flipped labels, on average",
    formula: "(-(1-e) ls(beta h) + e ls(-beta h)) / (1-2e)",
    source: "Chowdhury et al. 2024 (arXiv 2403.00409), its unbiased loss; e: the rate of flipped labels, 0.1 in its \
             experiments. TRL leaves e at 0, where it is sigmoid",
    guidance: "Where labels are wrong at a rate that is known: unlike label smoothing of sigmoid it does not flatten \
               the preference. A pair won by far still pulls with slope e/(1-2e), without end: keep e at or below the \
               true rate and watch the rewards.",
    options: &[(Param::Beta, 0.1), (Param::LabelSmoothing, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (m, e) = (p[Param::Beta] * x.margin(), p[Param::LabelSmoothing]);
    let loss = (-(1.0 - e) * log_sigmoid(m) + e * log_sigmoid(-m)) / (1.0 - 2.0 * e);
    let d = (-(1.0 - e) * sigmoid(-m) - e * sigmoid(m)) / (1.0 - 2.0 * e);
    PairLoss::of_margin(loss, p[Param::Beta] * d)
}
