//! A margin that is aimed at, not passed.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "ipo",
    about: "IPO on per-token means: a margin to aim at",
    formula: "(dw/|w| - dl/|l| - 1/(2 beta))^2",
    source: "Azar et al. 2023 (arXiv 2310.12036) eq. 17, on per-token means as in TRL",
    guidance: "Where pairs are few or nearly noiseless and sigmoid would go on without end. beta is the paper's tau: the margin \
               aimed at is 1/(2 beta) nats a token.",
    options: &[(Param::Beta, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Both,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let gap = x.ratio_chosen() / x.chosen_len - x.ratio_rejected() / x.rejected_len - 1.0 / (2.0 * p[Param::Beta]);
    PairLoss { loss: gap * gap, d_chosen: 2.0 * gap / x.chosen_len, d_rejected: -2.0 * gap / x.rejected_len }
}
