//! How long a device takes for what it is asked for.

use super::calibrate::{Calibrated, calibrate};
use super::run::{Cut, Run};
use crate::backend::Backend;
use crate::backend::metered::{Assumed, Work};
use crate::error::Result;

/// The device of a plan: what it has taken before, and what its time is known by.
pub struct On<B> {
    /// What the device has taken before the run allocates anything.
    pub beside: Vec<(String, usize)>,
    /// The device itself, where it is here and can be measured.
    pub here: Option<B>,
    /// What it is assumed to reach, where it is a known one that is not measured.
    pub assumed: Option<Assumed>,
}

/// On what a time rests.
#[derive(Clone, Debug, PartialEq)]
pub enum Basis {
    /// Measured on this device, a moment ago.
    Measured(Calibrated),
    /// A maker's sheet, and shares of it that are assumed.
    Assumed(Assumed),
}

/// Seconds of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// On what they rest.
    pub basis: Basis,
}

impl Rates {
    /// Of the device that `on` is, for the run of `run`; `None` where nothing is known of it.
    pub(super) fn of<B: Backend>(
        run: &Run<'_, B>,
        cut: &Cut<'_>,
        (here, assumed): (Option<B>, Option<Assumed>),
    ) -> Result<Option<Self>> {
        if let Some(be) = here {
            return Ok(calibrate(be, run, cut)?.map(|measured| Self { basis: Basis::Measured(measured) }));
        }
        Ok(assumed.map(|assumed| Self { basis: Basis::Assumed(assumed) }))
    }

    /// Seconds of one call of an op.
    pub fn seconds(&self, work: &Work) -> f64 {
        match &self.basis {
            Basis::Measured(measured) => measured.seconds(work),
            Basis::Assumed(assumed) => assumed.ceilings.seconds(work),
        }
    }
}
