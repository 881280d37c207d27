//! The loss that a language model found.

use super::math::{capped_exp, log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "discopop",
    about: "DiscoPOP: logistic and exponential loss, blended by the margin",
    formula: "(1-q) (-ls(beta h)) + q exp(-beta h), q = s(beta h / tau)",
    source: "Lu et al. 2024 (DiscoPOP, arXiv 2406.08414) eq. 5; tau 0.05 as there",
    guidance: "As sigmoid on pairs that are lost, and an exponential with a stronger pull on those that are won. Not \
               convex: just below a margin of 0 is a shallow valley where pairs may rest (at tau 0.05, beta h = \
               -0.12). q exp(-beta h) is one exponential here, so that lost pairs overflow nothing; its exponent ends \
               at 80.",
    options: &[(Param::Beta, 0.1), (Param::DiscopopTau, 0.05)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (m, tau) = (p[Param::Beta] * x.margin(), p[Param::DiscopopTau]);
    let (q, rest) = (sigmoid(m / tau), sigmoid(-m / tau));
    // q exp(-m): the two together are small where exp(-m) alone is not.
    let [both, slope] = capped_exp(log_sigmoid(m / tau) - m);
    let logistic = rest * (q / tau * log_sigmoid(m) - sigmoid(-m));
    PairLoss::of_margin(both - rest * log_sigmoid(m), p[Param::Beta] * (logistic + slope * (rest / tau - 1.0)))
}
