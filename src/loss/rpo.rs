//! DPO with an anchor on the chosen response.

use super::math::logistic;
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "rpo",
    about: "DPO and the chosen response's mean token loss, pair by pair",
    formula: "-ls(beta h) - rpo_alpha w/|w|",
    source: "Pang et al. 2024 (iterative RPO, arXiv 2404.19733) eq. 1, weight 1; as TRL's former rpo_alpha. The paper \
             weighs the other term and counts the chosen response's reasoning too",
    guidance: "Reasoning, and wherever sigmoid lowers the likelihood of correct answers. Every pair's chosen response \
               counts as its mean over tokens; `sigmoid,sft` takes one mean over all chosen tokens instead, so that \
               long responses count more.",
    options: &[(Param::Beta, 0.1), (Param::RpoAlpha, 1.0)],
    reference: true,
    scores: false,
    lengths: Lengths::Chosen,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let (beta, alpha) = (p[Param::Beta], p[Param::RpoAlpha]);
    let [loss, d] = logistic(beta * x.margin(), 0.0);
    PairLoss { loss: loss - alpha * x.mean_chosen(), d_chosen: beta * d - alpha / x.chosen_len, d_rejected: -beta * d }
}
