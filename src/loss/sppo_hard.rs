//! Both log-ratios drawn to fixed places.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "sppo_hard",
    about: "SPPO with certain labels: both log-ratios have a place to go to",
    formula: "(dw - 1/(2 beta))^2 + (dl + 1/(2 beta))^2",
    source: "Wu et al. 2024 (SPPO, arXiv 2405.00675) eq. 4.7 with a probability of 1 for the winner and 0 for the \
             loser; beta is the paper's 1/eta",
    guidance: "Self-play: responses of the policy itself, judged anew each round. The two places are 1/(2 beta) nats \
               above and below the reference: at 0.1 that is 5, at the paper's 0.001 it is 500 and never reached. \
               Long responses with large log-ratios outweigh the others.",
    options: &[(Param::Beta, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let to = 0.5 / p[Param::Beta];
    let (w, l) = (x.ratio_chosen() - to, x.ratio_rejected() + to);
    PairLoss { loss: w * w + l * l, d_chosen: 2.0 * w, d_rejected: 2.0 * l }
}
