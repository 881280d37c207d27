//! Both down, the rejected one further.

use super::math::sigmoid;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "apo_down",
    about: "APO-down: both down, rejected further, for data worse than the model",
    formula: "s(beta dw) + 1 - s(beta h)",
    source: "D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266) eq. 8",
    guidance: "Where the model is already better than the chosen responses, and they are still better than the \
               rejected ones. It lowers the likelihood of chosen responses on purpose.",
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
    let (w, m) = (beta * x.ratio_chosen(), beta * x.margin());
    let (by_chosen, by_margin) = (beta * sigmoid(w) * sigmoid(-w), beta * sigmoid(m) * sigmoid(-m));
    PairLoss { loss: sigmoid(w) + sigmoid(-m), d_chosen: by_chosen - by_margin, d_rejected: by_margin }
}
