//! The reverse KL of the policy's preferences against the labels'.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "exo_pair",
    about: "EXO of two: the reverse KL to smoothed labels",
    formula: "s(beta h) (ls(beta h) - log(1-e)) + s(-beta h) (ls(-beta h) - log e)",
    source: "Ji et al. 2024 (EXO, arXiv 2402.00856) eq. 16",
    guidance: "Seeks the mode of the preferences where sigmoid covers all of them. e must be above 0; at its default the margin \
               aimed at is log((1-e)/e) = 6.9 of reward.",
    options: &[(Param::Beta, 0.1), (Param::LabelSmoothing, 1e-3)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: true,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (m, e) = (p[Param::Beta] * x.margin(), p[Param::LabelSmoothing]);
    let (q, to_chosen, to_rejected) = (sigmoid(m), log_sigmoid(m) - (-e).ln_1p(), log_sigmoid(-m) - e.ln());
    // The derivatives of q log q + (1-q) log (1-q) cancel.
    let d = q * sigmoid(-m) * (to_chosen - to_rejected);
    PairLoss::of_margin(q * to_chosen + sigmoid(-m) * to_rejected, p[Param::Beta] * d)
}
