//! Who is told of a run, beside `metrics.jsonl`.

use super::group::options;
use crate::choice;

choice! {
    /// Who else gets a run's metrics.
    pub enum ReportTo: default Tensorboard {
        /// An event file in the run's folder, events.out.tfevents.fusedpo.
        Tensorboard = "tensorboard",
        /// Nobody.
        None = "none",
    }
}

impl ReportTo {
    /// What to do where `other` was asked for.
    pub fn elsewhere(other: &str) -> String {
        format!(
            "{other}: event files for TensorBoard are all that a run writes; scripts/log_to.py gives its metrics to wandb, mlflow and \
             trackio while it goes on or later: write tensorboard or none"
        )
    }

    /// As serde asks.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

options! {
    /// Who is told.
    pub struct ReportOptions {
        /// Who gets the metrics, beside `metrics.jsonl`.
        #[serde(skip_serializing_if = "ReportTo::is_default")]
        report_to: ReportTo = ReportTo::Tensorboard;
    }
}
