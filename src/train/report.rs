//! What is said of a step.

use super::metrics::Totals;
use serde_json::{Map, Value, json};

/// A step's numbers, once they are there.
pub struct Numbers<'a> {
    /// From 1.
    pub step: u64,
    /// Passes over the data after it.
    pub epochs: f64,
    /// Sums over its micro-batches.
    pub totals: &'a Totals,
    /// Gradient norm before clipping.
    pub norm: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Tokens of the run after it, as TRL counts them.
    pub tokens: u64,
    /// How long it took.
    pub seconds: f64,
    /// Most memory that was taken so far, bytes, where that is known.
    pub memory: Option<usize>,
}

impl Numbers<'_> {
    /// Its row of `metrics.jsonl`.
    pub fn row(&self) -> Map<String, Value> {
        let (t, seconds) = (self.totals, self.seconds);
        let mut row = Map::new();
        row.insert("step".into(), json!(self.step));
        row.insert("epoch".into(), json!(self.epochs));
        row.extend(t.to_json(""));
        row.insert("grad_norm".into(), json!(self.norm));
        row.insert("learning_rate".into(), json!(self.lr));
        row.insert("num_tokens".into(), json!(self.tokens));
        row.insert("step_seconds".into(), json!(seconds));
        row.insert("tokens_per_second".into(), json!(t.tokens as f64 / seconds));
        let units = if t.pairs > 0 { ("pairs_per_second", t.pairs) } else { ("samples_per_second", t.responses) };
        row.insert(units.0.into(), json!(units.1 as f64 / seconds));
        if let Some(bytes) = self.memory {
            row.insert("peak_memory_bytes".into(), json!(bytes));
        }
        row
    }
}
