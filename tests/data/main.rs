//! Shards, sidecars and plans. One program, as each costs its linking.

mod batch;
mod files;
mod judged_plan;
mod plan;
mod shard;
mod sidecar;
mod sidecar_keyed;
mod tables;
