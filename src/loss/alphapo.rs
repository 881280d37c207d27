//! SimPO with a reward that bends.

use super::math::{capped_exp_m1, logistic};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "alphapo",
    about: "AlphaPO: SimPO with a reward that is a power of the probability",
    formula: "-(1-e) ls(m) - e ls(-m), m = beta (r(w/|w|) - r(l/|l|)) - simpo_gamma, r(x) = (1 - exp(-alphapo_alpha \
              x)) / alphapo_alpha",
    source: "Gupta et al. 2025 (AlphaPO, arXiv 2501.03884), its reward in the loss of SimPO, which is the limit of \
             alpha 0; beta and gamma as in TRL, where it is CPO's loss_type alphapo",
    guidance: "Where simpo lowers the likelihood of chosen responses. Above 0 unlikely responses count more, below 0 \
               likely ones; small values such as 0.25 are enough. Exponents end at 80: a mean of -80/alpha nats a \
               token is as bad as it gets.",
    options: &[(Param::Beta, 0.1), (Param::SimpoGamma, 0.5), (Param::AlphapoAlpha, 0.25), (Param::LabelSmoothing, 0.0)],
    reference: false,
    scores: false,
    lengths: Lengths::Both,
    divergence: false,
    mean_reward: true,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (beta, alpha) = (p[Param::Beta], p[Param::AlphapoAlpha]);
    let [[w, by_w], [l, by_l]] = [x.mean_chosen(), x.mean_rejected()].map(|mean| reward(alpha, mean));
    let [loss, d] = logistic(beta * (w - l) - p[Param::SimpoGamma], p[Param::LabelSmoothing]);
    PairLoss { loss, d_chosen: beta * d * by_w / x.chosen_len, d_rejected: -beta * d * by_l / x.rejected_len }
}

/// What a mean log-prob is worth, and the derivative by it. Nothing cancels where alpha is small.
fn reward(alpha: f64, mean: f64) -> [f64; 2] {
    let [power, slope] = capped_exp_m1(-alpha * mean);
    [-power / alpha, slope]
}
