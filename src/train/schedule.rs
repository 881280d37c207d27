//! Learning-rate schedules, as Hugging Face's `get_scheduler`: `step` counts from 0.

use super::group::{finite_from_0, options};
use crate::choice;
use crate::error::{Error, Result};

choice! {
    /// Shape of the schedule after warm-up.
    pub enum SchedulerType: default Linear {
        /// Stays at the peak.
        Constant = "constant",
        /// Falls linearly to 0 at the last step.
        Linear = "linear",
        /// Falls to 0 along half a cosine.
        Cosine = "cosine",
    }
}

/// Peak learning rate of SFT where none is given, as TRL's: what a preference run starts from, [`ScheduleOptions::default`], hardly
/// moves a model that learns to write.
pub const SFT_LEARNING_RATE: f64 = 2e-5;

options! {
    /// Learning rates.
    pub struct ScheduleOptions {
        /// Peak learning rate. The default is DPO's; [`SFT_LEARNING_RATE`] is SFT's.
        learning_rate: f64 = 1e-6, in finite_from_0, "a finite number, 0 or more";
        /// Shape after warm-up.
        lr_scheduler_type: SchedulerType = SchedulerType::Linear;
        /// Steps of linear warm-up.
        warmup_steps: u64 = 0;
        /// Warm-up as a share of all steps.
        warmup_ratio: f64 = 0.0;
    }
}

/// A learning rate for every step of a run.
///
/// ```
/// use fusedpo::train::schedule::{Schedule, ScheduleOptions, SchedulerType};
///
/// let o = ScheduleOptions {
///     learning_rate: 2e-6, lr_scheduler_type: SchedulerType::Linear, warmup_steps: 2, warmup_ratio: 0.0,
/// };
/// let s = Schedule::new(&o, 4)?;
/// assert_eq!([0, 1, 2, 3].map(|step| s.at(step)), [0.0, 1e-6, 2e-6, 1e-6]);
/// # Ok::<(), fusedpo::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: SchedulerType,
    /// Peak learning rate.
    pub peak: f64,
    /// Steps of linear warm-up from 0.
    pub warmup: u64,
    /// Steps of the run.
    pub total: u64,
}

impl Schedule {
    /// For a run of `total` steps. `warmup_steps` and `warmup_ratio` exclude each other; the ratio is of `total`, rounded up.
    pub fn new(o: &ScheduleOptions, total: u64) -> Result<Self> {
        let &ScheduleOptions { learning_rate: peak, lr_scheduler_type: kind, warmup_steps, warmup_ratio } = o;
        if warmup_steps > 0 && warmup_ratio > 0.0 {
            return Err(Error::usage("`warmup_steps` and `warmup_ratio`: give one of them, not both"));
        }
        if !(0.0..=1.0).contains(&warmup_ratio) {
            return Err(Error::usage(format!("`warmup_ratio` {warmup_ratio}: must be in [0, 1]")));
        }
        let warmup = if warmup_steps > 0 { warmup_steps } else { (total as f64 * warmup_ratio).ceil() as u64 };
        Ok(Self { kind, peak, warmup, total })
    }

    /// Learning rate of step `step`, the first being 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let after = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / after).min(1.0);
        self.peak
            * match self.kind {
                SchedulerType::Constant => 1.0,
                SchedulerType::Linear => 1.0 - done,
                SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: SchedulerType, warmup_steps: u64, warmup_ratio: f64, total: u64) -> Result<Schedule> {
        let o = ScheduleOptions { learning_rate: 2.0, lr_scheduler_type: kind, warmup_steps, warmup_ratio };
        Schedule::new(&o, total)
    }

    #[test]
    fn values_of_transformers() {
        let s = |kind, warm, total| schedule(kind, warm, 0.0, total).unwrap();
        let rates = |s: Schedule| (0..s.total).map(|i| s.at(i)).collect::<Vec<_>>();
        assert_eq!(rates(s(SchedulerType::Linear, 0, 4)), [2.0, 1.5, 1.0, 0.5]);
        assert_eq!(rates(s(SchedulerType::Linear, 2, 4)), [0.0, 1.0, 2.0, 1.0]);
        assert_eq!(rates(s(SchedulerType::Constant, 2, 4)), [0.0, 1.0, 2.0, 2.0]);
        let c = rates(s(SchedulerType::Cosine, 0, 4));
        for (got, want) in c.iter().zip([2.0, 1.7071067811865475, 1.0, 0.2928932188134524]) {
            assert!((got - want).abs() <= 1e-12, "{got} {want}");
        }
        assert_eq!(schedule(SchedulerType::Linear, 0, 0.1, 25).unwrap().warmup, 3);
    }

    #[test]
    fn both_warmups_are_refused() {
        assert!(schedule(SchedulerType::Linear, 5, 0.1, 10).is_err());
    }

    #[test]
    fn a_share_is_from_0_to_1() {
        for (share, ok) in [(0.0, true), (1.0, true), (1.0 + 1e-9, false), (-1e-9, false), (f64::NAN, false)] {
            assert_eq!(schedule(SchedulerType::Linear, 0, share, 10).is_ok(), ok, "{share}");
        }
    }
}
