//! Maximum likelihood.

use super::{Lengths, LossDef, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "sft",
    about: "Mean token negative log-likelihood of the chosen responses",
    formula: "-(sum of chosen log-probs) / (their tokens in the batch)",
    source: "maximum likelihood",
    guidance: "The stage before any preference loss; in a sum, an anchor that keeps the chosen responses likely.",
    options: &[],
    reference: false,
    scores: false,
    lengths: Lengths::Chosen,
    divergence: true,
    mean_reward: false,
    rule: Rule::Tokens,
};
