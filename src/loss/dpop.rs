//! DPO that pays for chosen responses below the reference.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "dpop",
    about: "DPO-Positive: chosen responses may not fall below the reference",
    formula: "-ls(beta (h - dpop_lambda max(0, rw - w)))",
    source: "Pal et al. 2024 (Smaug, arXiv 2402.13228), beta 0.3 and lambda 50 as there. At w = rw the derivative \
             from above",
    guidance: "Pairs that differ in a few tokens (corrected arithmetic, edited text), where sigmoid buys its margin \
               by lowering both responses. The larger lambda, the nearer to fine-tuning on the chosen response until \
               it is above the reference.",
    options: &[(Param::Beta, 0.3), (Param::DpopLambda, 50.0)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (beta, lambda) = (p[Param::Beta], p[Param::DpopLambda]);
    let below = -x.ratio_chosen();
    // 0 at the kink, where every run begins. NaN stays NaN.
    let (penalty, by) = if below <= 0.0 { (0.0, 0.0) } else { (lambda * below, lambda) };
    let [loss, d] = logistic(beta * (x.margin() - penalty), 0.0);
    PairLoss { loss, d_chosen: beta * d * (1.0 + by), d_rejected: -beta * d }
}
