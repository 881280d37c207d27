//! Preference data: input rows, shards, reference sidecars, plans. Knows tokens, never logits.

mod admit;
pub mod boundary;
pub mod cuts;
pub mod dataset;
pub mod format;
pub mod groups;
pub mod input;
pub mod inspect;
pub mod order;
pub mod pack;
mod pieces;
pub mod plan;
mod python;
mod quietly;
pub mod render;
pub mod report;
pub mod shard;
pub mod shard_write;
pub mod sidecar;
mod sidecar_file;
mod survey;
pub mod template;
pub mod tokenize;
mod verify;
