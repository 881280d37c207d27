//! KTO.

use super::math::sigmoid;
use super::{Judged, Lengths, LossDef, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "kto",
    about: "Judgements of single responses, desirable or not, against how far the policy went from the reference",
    formula: "desirable: desirable_weight (1 - s(beta (dw - z))); undesirable: undesirable_weight (1 - s(beta (z - dl))); z = max(0, \
              mean of policy - reference over the step's mismatched rows, each a prompt with a response to another)",
    source: "Ethayarajh et al. 2024 (arXiv 2402.01306)",
    guidance: "For thumbs up and down without pairs; pairs count as a desirable and an undesirable response. Set the weights so \
               that desirable_weight times the desirable responses is 1 to 4/3 of undesirable_weight times the undesirable ones. z is estimated from the step: \
               batch_size 2 at least, 16 or more to be useful. Twice through the model a step.",
    options: &[(Param::Beta, 0.1), (Param::DesirableWeight, 1.0), (Param::UndesirableWeight, 1.0)],
    reference: true,
    scores: false,
    divergence: false,
    lengths: Lengths::Unread,
    mean_reward: false,
    rule: Rule::Judged(loss),
};

/// `1 - s(x) = s(-x)`, whose derivative by `x` is `-s(x) s(-x)`; `z` is a constant to the gradient.
fn loss(p: &Params, all: &[Judged], z: f64) -> Vec<[f64; 2]> {
    let one = |j: &Judged| {
        let (sign, weight) = match j.desirable {
            true => (1.0, p[Param::DesirableWeight]),
            false => (-1.0, p[Param::UndesirableWeight]),
        };
        let x = sign * p[Param::Beta] * (j.policy - j.reference - z);
        let [there, not] = [sigmoid(x), sigmoid(-x)];
        [weight * not, -weight * sign * p[Param::Beta] * there * not]
    };
    all.iter().map(one).collect()
}
