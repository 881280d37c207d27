//! How large a micro-batch may be.

/// Largest micro-batch that something must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Token slots.
    pub slots: usize,
    /// Predictions; a prediction is of a token with a row of its own, or of the one after a prompt: at most `slots`.
    pub predictions: usize,
    /// Responses.
    pub responses: usize,
    /// Pairs.
    pub pairs: usize,
}

impl Capacity {
    /// What both need.
    pub fn or_larger(self, o: Capacity) -> Capacity {
        Capacity {
            slots: self.slots.max(o.slots),
            predictions: self.predictions.max(o.predictions),
            responses: self.responses.max(o.responses),
            pairs: self.pairs.max(o.pairs),
        }
    }
}
