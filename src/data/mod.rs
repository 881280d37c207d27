//! Preference data: input rows, shards, reference sidecars, batches. Knows tokens, never logits.

pub mod batch;
