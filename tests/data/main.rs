//! Shards, sidecars and plans. One program, as each costs its linking.

#[path = "../pack_common/mod.rs"]
mod pack_common;
#[path = "../shards/mod.rs"]
mod shards;

mod batch;
mod files;
mod judged_plan;
mod lanes;
mod outlines;
mod plan;
mod shard;
mod sidecar;
mod sidecar_keyed;
mod tables;
