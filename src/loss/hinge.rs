//! A margin, and nothing beyond it.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "hinge",
    about: "RSO's hinge: no gradient once the margin is there",
    formula: "max(0, 1 - beta h)",
    source: "Liu et al. 2023 (RSO, arXiv 2309.06657) section 3.3; SLiC (arXiv 2305.10425) as a loss of log-ratios",
    guidance: "Where pairs that are already right should be left alone. 1/beta is the margin in nats that is asked for: at 0.1 a \
               pair is done at 10.",
    options: &[(Param::Beta, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let slack = 1.0 - p[Param::Beta] * x.margin();
    // At the kink the derivative from the right, 0, as torch.relu. NaN stays NaN.
    let (loss, d) = if slack <= 0.0 { (0.0, 0.0) } else { (slack, -p[Param::Beta]) };
    PairLoss::of_margin(loss, d)
}
