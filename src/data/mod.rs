//! Preference data: input rows, shards, reference sidecars, batches. Knows tokens, never logits.

mod admit;
pub mod batch;
pub mod boundary;
pub mod cuts;
pub mod dataset;
pub mod format;
pub mod groups;
pub mod input;
pub mod inspect;
mod outdir;
pub mod pack;
pub mod render;
pub mod report;
pub mod shard;
pub mod shard_write;
pub mod template;
pub mod tokenize;
mod verify;
