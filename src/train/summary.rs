//! What a run came to.

use super::metrics::Totals;
use serde_json::{Map, Value};

/// How the steps of a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// All were taken.
    #[default]
    Finished,
    /// An observer had seen enough.
    Stopped,
    /// An observer paused it: [`Flow::Pause`](crate::observe::Flow::Pause).
    Paused,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Steps taken.
    pub steps: u64,
    /// How they ended.
    pub ended: Ended,
    /// Steps that were asked for.
    pub steps_asked: u64,
    /// The step of the last checkpoint, where there is one.
    pub checkpoint: Option<u64>,
    /// Last training metrics.
    pub last: Map<String, Value>,
    /// Held-out numbers of the model that the run started from, and of the result: where both were measured.
    pub eval: Option<(Totals, Totals)>,
    /// Seconds of the reference pass.
    pub reference_seconds: f64,
    /// Seconds of the steps.
    pub train_seconds: f64,
    /// Seconds of the evaluations.
    pub eval_seconds: f64,
    /// The evaluation that the model is of, where it is the best one's: its step, what it was compared by, and its value.
    pub best: Option<(u64, String, f64)>,
    /// Held-out numbers of the result on other sets, by name, where they were measured in this call.
    pub sets: Vec<(String, Totals)>,
    /// Share of weights that the saved files change.
    pub changed_share: f64,
}
