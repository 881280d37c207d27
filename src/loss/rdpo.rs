//! DPO that takes length out of the preference.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "rdpo",
    about: "R-DPO: a longer chosen response needs less of a margin",
    formula: "-ls(beta h + rdpo_alpha (|w| - |l|))",
    source: "Park et al. 2024 (arXiv 2403.19159), the reward with alpha |y| taken off, put into the loss of DPO \
             (hence the plus); 0.05 is the smallest alpha that the SimPO authors searched (arXiv 2405.14734)",
    guidance: "Where the chosen responses are the longer ones and the policy gets wordy. What length explains of a \
               preference is not learned from it: at 0.05, 100 tokens are a margin of 5 nats of reward. Too large an \
               alpha teaches brevity.",
    options: &[(Param::Beta, 0.1), (Param::RdpoAlpha, 0.05)],
    reference: true,
    scores: false,
    lengths: Lengths::Both,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let beta = p[Param::Beta];
    let [loss, d] = logistic(beta * x.margin() + p[Param::RdpoAlpha] * (x.chosen_len - x.rejected_len), 0.0);
    PairLoss::of_margin(loss, beta * d)
}
