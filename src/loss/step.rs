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
