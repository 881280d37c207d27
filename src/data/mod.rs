//! Preference data, from rows to steps. Knows tokens, never logits.
//!
//! ```text
//! input  ->  text  ->  pack  ->  shard  ->  plan: micro-batches
//!                                  \ sidecar: reference log-probs
//! ```

pub mod input;
pub mod lengths;
pub mod numbers;
pub mod pack;
pub mod plan;
pub mod shard;
pub mod sidecar;
pub mod text;
pub mod wanted;
