//! IPO as its paper writes it: a margin of sums.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "ipo_sum",
    about: "IPO on sums, as the paper writes it",
    formula: "(h - 1/(2 beta))^2",
    source: "Azar et al. 2023 (arXiv 2310.12036) eq. 17, on sums of token log-probs",
    guidance: "To compare with code that sums (the DPO authors', OpenRLHF). The margin aimed at, 1/(2 beta) nats, is \
               the same for one token and for a thousand, so long responses weigh more than in ipo: prefer ipo unless \
               lengths are alike.",
    options: &[(Param::Beta, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let gap = x.margin() - 1.0 / (2.0 * p[Param::Beta]);
    PairLoss::of_margin(gap * gap, 2.0 * gap)
}
