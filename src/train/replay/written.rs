//! What the run has written down of its steps, and how what is taken again compares.

use super::report::Agreement;
use crate::batch::MicroBatch;
use crate::error::Result;
use crate::files::RunDir;
use crate::train::kept_batch::{self, StepBatch};
use crate::train::metrics::Totals;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What the run has written down of its steps: loss and gradient norm, `null` where they are no numbers; and how what is taken again
/// compares.
pub(super) struct Written {
    rows: HashMap<u64, [Value; 2]>,
    compared: u64,
    difference: Option<String>,
    /// The step's batch, where the run kept it.
    kept: Option<(PathBuf, StepBatch)>,
}

impl Written {
    /// Of the steps up to `step`. Errors: a batch that was kept is damaged.
    pub fn of(run: &Path, step: u64) -> Result<Self> {
        let mut rows = HashMap::new();
        RunDir::each_row_of(run, |row| {
            let at = row.get("step").and_then(Value::as_u64).filter(|at| *at <= step);
            if let (Some(at), Some(loss), Some(norm)) = (at, row.get("loss"), row.get("grad_norm")) {
                rows.insert(at, [loss.clone(), norm.clone()]);
            }
        })?;
        let kept = RunDir::kept_batches(run).into_iter().find(|(of, _)| *of == step);
        let kept = kept.map(|(_, path)| StepBatch::read(&path).map(|of| (path, of))).transpose()?;
        Ok(Self { rows, compared: 0, difference: None, kept })
    }

    /// Compares what a step `is` now.
    pub fn compare(&mut self, step: u64, is: [Value; 2]) {
        let Some(was) = self.rows.get(&step) else { return };
        self.compared += 1;
        if *was != is && self.difference.is_none() {
            let said = |[loss, norm]: &[Value; 2]| format!("loss {loss} and gradient norm {norm}");
            let why = format!("step {step} had {}, and has {} now", said(was), said(&is));
            self.difference = Some(why);
        }
    }

    /// [`Written::compare`] of the step itself; its batch too, where the run kept it.
    pub fn agreement(mut self, this: (&[MicroBatch], u64), is: [Value; 2]) -> Agreement {
        let (batches, step) = this;
        let taken = self.rows.contains_key(&step) || self.kept.is_some();
        self.compare(step, is.clone());
        if let Some((path, of)) = &self.kept {
            // A run that ended with this step has no row of it.
            let same = |was: &str, is: &Value| was.parse::<f64>().is_ok_and(|was| serde_json::json!(was) == *is);
            if !self.rows.contains_key(&step) {
                self.compared += 1;
                if !(same(&of.loss, &is[0]) && same(&of.grad_norm, &is[1])) {
                    let was = format!("loss {} and gradient norm {}", of.loss, of.grad_norm);
                    let why = format!("step {step} had {was}, and has loss {} and gradient norm {} now", is[0], is[1]);
                    self.difference.get_or_insert(why);
                }
            }
            if of.sha256 != kept_batch::sum(batches) {
                let why = "is another batch than the data and the reference give for this step";
                self.difference.get_or_insert_with(|| format!("{} {why}", path.display()));
            }
        }
        let batch = self.kept.map(|(path, _)| path);
        Agreement { compared: self.compared, difference: self.difference, taken, batch }
    }
}

/// A step's loss and gradient norm, as the run writes them down.
pub(super) fn numbers(totals: &Totals, norm: f64) -> [Value; 2] {
    [totals.to_json("")["loss"].clone(), serde_json::json!(norm)]
}
