//! Shards: tokenised groups in files that are mapped and read in place. `docs/shard-format.md` has the bytes.

mod dataset;
pub mod format;
mod inspect;
mod mapped;
mod verify;
mod write;

pub use dataset::{Dataset, Group, Pair, Response, Split};
pub use inspect::{InspectOptions, inspect};
pub use mapped::{Shard, Tokens};
pub use write::{NewGroup, NewPair, NewResponse, ShardSummary, ShardWriter};
