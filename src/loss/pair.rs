//! What a formula sees of a pair, and what it says.

/// One pair: sums over completion tokens (nats), lengths in scored tokens, and scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Policy log-probability of the chosen response.
    pub chosen: f64,
    /// Policy log-probability of the rejected response.
    pub rejected: f64,
    /// Reference log-probability of the chosen response; 0 where the loss has no reference.
    pub ref_chosen: f64,
    /// Reference log-probability of the rejected response; 0 where the loss has no reference.
    pub ref_rejected: f64,
    /// Scored tokens of the chosen response.
    pub chosen_len: f64,
    /// Scored tokens of the rejected response.
    pub rejected_len: f64,
    /// Score that the data give the chosen response; NaN where they give none.
    pub chosen_score: f64,
    /// Score of the rejected response; NaN where there is none.
    pub rejected_score: f64,
}

/// A loss and its derivatives by the policy's two log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLoss {
    /// The loss of the pair.
    pub loss: f64,
    /// `dL / d chosen`.
    pub d_chosen: f64,
    /// `dL / d rejected`.
    pub d_rejected: f64,
}

impl Pair {
    /// All log-probs 0, lengths 1, no scores.
    pub const ZERO: Pair = Pair {
        chosen: 0.0,
        rejected: 0.0,
        ref_chosen: 0.0,
        ref_rejected: 0.0,
        chosen_len: 1.0,
        rejected_len: 1.0,
        chosen_score: f64::NAN,
        rejected_score: f64::NAN,
    };

    /// `chosen - ref_chosen`.
    pub fn ratio_chosen(&self) -> f64 {
        self.chosen - self.ref_chosen
    }

    /// `rejected - ref_rejected`.
    pub fn ratio_rejected(&self) -> f64 {
        self.rejected - self.ref_rejected
    }

    /// `h = (chosen - ref_chosen) - (rejected - ref_rejected)`.
    pub fn margin(&self) -> f64 {
        self.ratio_chosen() - self.ratio_rejected()
    }

    /// Mean token log-prob of the chosen response.
    pub fn mean_chosen(&self) -> f64 {
        self.chosen / self.chosen_len
    }

    /// Mean token log-prob of the rejected response.
    pub fn mean_rejected(&self) -> f64 {
        self.rejected / self.rejected_len
    }
}

impl PairLoss {
    /// A loss of the margin alone: `d` is its derivative by `chosen`, and `-d` that by `rejected`.
    pub fn of_margin(loss: f64, d: f64) -> Self {
        Self { loss, d_chosen: d, d_rejected: -d }
    }
}
