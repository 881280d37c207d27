//! DPO towards a probability that the scores give.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "soft_label",
    about: "DPO towards the probability that two scores give the label",
    formula: "-q ls(beta h) - (1-q) ls(-beta h), q = s(soft_label_scale (sw - sl)), sw, sl: scores",
    source: "cDPO (Mitchell 2023) with a label of its own for each pair, as in Furuta et al. 2024 (arXiv 2409.06691); \
             the label of two scores: Bradley and Terry 1952",
    guidance: "Pairs with scores that are log-odds of being preferred (a Bradley-Terry reward model: scale 1). Each \
               pair has a margin where it rests, scale (sw - sl) / beta, so close calls are not driven apart. Scores \
               from 1 to 5 or 10 are not log-odds: choose the scale so that q is what raters would agree on.",
    options: &[(Param::Beta, 0.1), (Param::SoftLabelScale, 1.0)],
    reference: true,
    scores: true,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let m = p[Param::Beta] * x.margin();
    let log_odds = p[Param::SoftLabelScale] * (x.chosen_score - x.rejected_score);
    let (q, rest) = (sigmoid(log_odds), sigmoid(-log_odds));
    let loss = -q * log_sigmoid(m) - rest * log_sigmoid(-m);
    PairLoss::of_margin(loss, p[Param::Beta] * (rest * sigmoid(m) - q * sigmoid(-m)))
}
