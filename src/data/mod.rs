//! Preference data: input rows, shards, reference sidecars, batches. Knows tokens, never logits.

pub mod batch;
pub mod dataset;
pub mod format;
pub mod shard;
pub mod shard_write;
mod verify;
