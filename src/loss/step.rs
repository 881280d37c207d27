//! What losses of a whole step see, and what they remember from step to step.

use super::pair::Pair;
use super::params::Params;
use serde::{Deserialize, Serialize};

/// The pairs of a step, in the order of its micro-batches.
#[derive(Clone, Copy, Debug)]
pub struct StepPairs<'a> {
    /// The loss's hyper-parameters.
    pub params: &'a Params,
    /// Log-probs, lengths and scores.
    pub pairs: &'a [Pair],
    /// Weight of each in the mean.
    pub weights: &'a [f64],
    /// Which pair of the data each is: what is drawn for it does not depend on its place among the others.
    pub ids: &'a [u64],
    /// What a draw is made from, so that it is the same whenever the step is taken: the run's seed, and the step.
    pub seed: [u64; 2],
    /// Whether the step trains: else nothing is remembered, and nothing drawn.
    pub trains: bool,
}

/// A response that somebody judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Whether it is one to have more of.
    pub desirable: bool,
    /// Policy log-probability, a sum over completion tokens.
    pub policy: f64,
    /// Reference log-probability.
    pub reference: f64,
}

/// What losses remember from step to step: part of a run's clock, so that it goes on from a checkpoint with the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Running {
    /// Steps that it knows.
    pub steps: u64,
    /// Running mean of the reward margins.
    pub margin_mean: f64,
    /// Running standard deviation of the reward margins.
    pub margin_deviation: f64,
}

/// Places of `values` in ascending order; of equal ones the first first.
pub(super) fn ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Stable, and -0 is no less than 0.
    order.sort_by(|a, b| values[*a].partial_cmp(&values[*b]).unwrap_or_else(|| values[*a].total_cmp(&values[*b])));
    order
}

/// Number `counter` of the stream `seed`, in (0, 1): SplitMix64's finaliser over both (Steele, Lea and Flood 2014), so that any
/// of them can be had alone.
pub(super) fn uniform(seed: [u64; 2], counter: u64) -> f64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let key = mix(mix(seed[0].wrapping_add(GAMMA)).wrapping_add(seed[1].wrapping_mul(GAMMA)));
    let bits = mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GAMMA)));
    // 53 bits, and half a step: neither end is reached.
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}
