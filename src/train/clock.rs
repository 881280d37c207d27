//! Where a run stands.

use super::best::Watched;
use crate::loss::Running;
use serde::{Deserialize, Serialize};

/// Everything outside the tensors that can change a bit of what follows.
///
/// Where steps overlap, `step`, `epoch` and `place` are of the step that began last, the rest of the last whose numbers are
/// known. When nothing is under way they agree, and only then is a clock worth keeping.
///
/// Kept in checkpoints by its field's names. What is added to it begins at its default in a checkpoint that is older; a
/// field that this program does not know would change what follows, so it is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clock {
    /// Steps taken.
    pub step: u64,
    /// Epoch of the next step, from 0, unless the epoch is over.
    pub epoch: u64,
    /// Steps of that epoch that were taken.
    pub place: u64,
    /// Updates of the weights: steps that were not skipped.
    pub updates: u64,
    /// Tokens so far, as TRL counts them: each response with its prompt.
    pub tokens: u64,
    /// Steps in a row, up to the last, that were skipped for non-finite values.
    pub skipped: u64,
    /// What the loss remembers of the steps before.
    pub running: Running,
    /// What evaluations came to, where they are compared.
    #[serde(skip_serializing_if = "Watched::is_none")]
    pub watched: Watched,
}

impl Clock {
    /// Goes on by a step; gives its epoch and its place in it, both from 0. `steps_in_epoch` says how long an epoch is.
    pub fn advance(&mut self, steps_in_epoch: impl Fn(u64) -> u64) -> (u64, u64) {
        if self.place == steps_in_epoch(self.epoch) {
            (self.epoch, self.place) = (self.epoch + 1, 0);
        }
        let at = (self.epoch, self.place);
        self.place += 1;
        self.step += 1;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_of_different_lengths() {
        let mut clock = Clock::default();
        let taken: Vec<_> = (0..6).map(|_| clock.advance(|epoch| 2 + epoch)).collect();
        assert_eq!(taken, [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]);
        assert_eq!(clock, Clock { step: 6, epoch: 2, place: 1, ..Default::default() });
    }

    #[test]
    fn kept_and_taken_up_again() {
        let mut clock = Clock { step: 2, epoch: 0, place: 2, updates: 1, tokens: 77, skipped: 1, ..Default::default() };
        let mut again: Clock = serde_json::from_str(&serde_json::to_string(&clock).unwrap()).unwrap();
        assert_eq!(again, clock);
        assert_eq!(again.advance(|_| 2), clock.advance(|_| 2));
        assert_eq!(again, clock);
    }
}
