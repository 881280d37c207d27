//! What a run came to.

use super::metrics::Totals;
use serde_json::{Map, Value};

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Steps taken.
    pub steps: u64,
    /// Last training metrics.
    pub last: Map<String, Value>,
    /// First and last evaluation.
    pub eval: Option<(Totals, Totals)>,
    /// Seconds of the reference pass.
    pub reference_seconds: f64,
    /// Seconds of the steps.
    pub train_seconds: f64,
    /// Share of weights that the saved files change.
    pub changed_share: f64,
}
