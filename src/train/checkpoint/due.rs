//! When a checkpoint is saved.

use crate::model::SaveDtype;
use crate::train::group::options;
use std::time::Duration;

options! {
    /// How the result is saved, and what a run can go on from.
    pub struct SaveOptions {
        /// Precision of the saved weights.
        save_dtype: SaveDtype = SaveDtype::Source;
        /// Steps between checkpoints; 0: only where the run is stopped. `None`: a tenth of the run, and at least ten minutes.
        save_steps: Option<u64> = None;
        /// Checkpoints that are kept, the last ones; 0: all.
        save_total_limit: usize = 2;
    }
}

/// Shortest time between two checkpoints that nobody asked for.
const APART: Duration = Duration::from_secs(600);
/// And how many times as long as the last one took: two in a hundred at most.
const COST: u32 = 50;

/// When a checkpoint is due.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    every: Option<u64>,
    total: u64,
}

impl Due {
    /// For a run of `total` steps.
    pub fn new(o: &SaveOptions, total: u64) -> Self {
        Self { every: o.save_steps, total }
    }

    /// After `step` steps, `since` after the last checkpoint or the first step, the last one having taken `took`.
    ///
    /// Where nobody said how often: at every tenth of the run but the end, whose result is the model.
    pub fn at(&self, step: u64, since: Duration, took: Duration) -> bool {
        match self.every {
            Some(0) => false,
            Some(every) => step.is_multiple_of(every),
            None => self.is_tenth(step) && since >= APART.max(COST * took),
        }
    }

    fn is_tenth(&self, step: u64) -> bool {
        let tenths = |step: u64| u128::from(step) * 10 / u128::from(self.total.max(1));
        0 < step && step < self.total && tenths(step) > tenths(step - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(every: Option<u64>, total: u64, since: Duration, took: Duration) -> Vec<u64> {
        let due = Due::new(&SaveOptions { save_steps: every, ..Default::default() }, total);
        (1..=total).filter(|step| due.at(*step, since, took)).collect()
    }

    #[test]
    fn by_tenths_ten_minutes_apart_unless_asked() {
        let (long, none) = (Duration::from_secs(600), Duration::ZERO);
        assert_eq!(due(None, 25, long, none), [3, 5, 8, 10, 13, 15, 18, 20, 23]);
        assert_eq!(due(None, 100, long, none), [10, 20, 30, 40, 50, 60, 70, 80, 90]);
        assert_eq!(due(None, 5, long, none), [1, 2, 3, 4]);
        assert!(due(None, 1, long, none).is_empty());
        assert!(due(None, 25, long - Duration::from_millis(1), none).is_empty());
        // Two in a hundred of the time at most: 13 seconds are too much after ten minutes, and not after eleven.
        assert!(due(None, 25, long, Duration::from_secs(13)).is_empty());
        assert!(!due(None, 25, Duration::from_secs(660), Duration::from_secs(13)).is_empty());
        // As asked, whatever it takes, the last step too.
        assert_eq!(due(Some(10), 30, none, long), [10, 20, 30]);
        assert!(due(Some(0), 30, long, none).is_empty());
    }
}
