//! `metrics.jsonl`.

use super::event::{Event, Flow, Observe};
use crate::error::Result;
use crate::files::RunDir;

/// Writes the rows of steps and evaluations into a run's folder, a line each.
pub struct Jsonl<'a>(pub &'a RunDir);

impl Observe for Jsonl<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        if let Event::Step { row, .. } | Event::Evaluation { row, .. } = event {
            self.0.log(row)?;
        }
        Ok(Flow::On)
    }
}
