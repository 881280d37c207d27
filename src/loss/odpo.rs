//! DPO with a margin that the scores set.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "odpo",
    about: "DPO with an offset: a margin that grows with the difference of scores",
    formula: "-ls(beta h - odpo_alpha log(sw - sl)), sw, sl: scores",
    source: "Amini et al. 2024 (ODPO, arXiv 2402.10571): offset alpha log(score difference), alpha 1 as in the \
             authors' code",
    guidance: "Pairs with scores, of which some are clearly better and some hardly. A difference of 1 asks for no \
               margin, less than 1 for a negative one: the scale of the scores matters, and alpha with it. A pair \
               whose scores are equal, or say the opposite, teaches nothing (unless alpha is 0).",
    options: &[(Param::Beta, 0.1), (Param::OdpoAlpha, 1.0)],
    reference: true,
    scores: true,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (beta, alpha) = (p[Param::Beta], p[Param::OdpoAlpha]);
    let by = x.chosen_score - x.rejected_score;
    // The offset of no difference is the limit, minus infinity: loss 0. A missing score stays NaN.
    let offset = if alpha == 0.0 {
        0.0
    } else if by <= 0.0 {
        f64::NEG_INFINITY
    } else {
        alpha * by.ln()
    };
    let m = beta * x.margin() - offset;
    PairLoss::of_margin(-log_sigmoid(m), -beta * sigmoid(-m))
}
