//! Fine-tuning and preference in one.

use super::math::{log_sigmoid, sigmoid};
use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "orpo",
    about: "ORPO: fine-tuning with a penalty on the odds of the rejected response",
    formula: "-w/|w| - beta ls(o(w/|w|) - o(l/|l|)), o(x) = x - log(1 - exp(x))",
    source: "Hong et al. 2024 (ORPO, arXiv 2403.07691) eq. 6 and 7; beta is the paper's lambda, 0.1. TRL counts the \
             prompt's tokens in the first term too",
    guidance: "From a base model straight to a chat model: no fine-tuning before, no reference. The first term does \
               most of the work; a beta of 0.1 to 0.3 only tips it. 1 - exp(x) is never taken as less than 1e-12, so \
               that a response of certainty has finite odds.",
    options: &[(Param::Beta, 0.1)],
    reference: false,
    scores: false,
    lengths: Lengths::Both,
    divergence: false,
    mean_reward: true,
    rule: Rule::Pair(loss),
};

/// Least probability of not writing a response's next token: where a mean log-prob rounds to 0.
const LEAST: f64 = 1e-12;

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let beta = p[Param::Beta];
    let ((w, by_w), (l, by_l)) = (log_odds(x.mean_chosen()), log_odds(x.mean_rejected()));
    let d = beta * sigmoid(l - w);
    PairLoss {
        loss: -x.mean_chosen() - beta * log_sigmoid(w - l),
        d_chosen: (-1.0 - d * by_w) / x.chosen_len,
        d_rejected: d * by_l / x.rejected_len,
    }
}

/// Log odds of a probability's logarithm, and the derivative by it.
fn log_odds(x: f64) -> (f64, f64) {
    let rest = -x.exp_m1();
    if rest < LEAST { (x - LEAST.ln(), 1.0) } else { (x - rest.ln(), 1.0 / rest) }
}
