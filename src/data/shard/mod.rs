//! Shards: tokenised groups in files that are mapped and read in place. `docs/shard-format.md` has the bytes.
//!
//! ```
//! use fusedpo::data::shard::format::Meta;
//! use fusedpo::data::shard::{Dataset, NewGroup, NewPair, NewResponse, ShardWriter, Split};
//!
//! let dir = tempfile::tempdir().unwrap();
//! let meta = Meta {
//!     vocab_size: 50, eos_id: Some(0), bos_rule: 0, tokenizer_sha256: [0; 32], template_sha256: [0; 32],
//!     max_length: 0, truncation: 0, boundary: 0,
//! };
//! let mut shard = ShardWriter::create(&dir.path().join("train-00000.pref"), &meta)?;
//! let response = |tokens, index| NewResponse { tokens, score: None, label: None, row: 0, index };
//! shard.push(&NewGroup {
//!     prompt: &[11, 12, 13],
//!     responses: vec![response(&[21, 22, 0], 0), response(&[31, 0], 1)],
//!     pairs: vec![NewPair { chosen: 0, rejected: 1, weight: 1.0 }],
//! })?;
//! shard.finish()?;
//!
//! let data = Dataset::open(dir.path(), Split::Train)?;
//! data.verify()?;
//! assert_eq!((data.num_groups(), data.num_responses(), data.num_pairs()), (1, 2, 1));
//! assert_eq!(data.group(0).response(1).tokens.iter().collect::<Vec<_>>(), [31, 0]);
//! # Ok::<(), fusedpo::Error>(())
//! ```

mod dataset;
pub mod format;
mod inspect;
mod inspect_json;
mod mapped;
mod verify;
mod write;

pub use dataset::{Dataset, Group, Pair, Response, Split};
pub use inspect::{InspectOptions, inspect, tokenizer_beside};
pub use inspect_json::inspect_json;
pub use mapped::{Shard, Tokens};
pub use write::{NewGroup, NewPair, NewResponse, OpenGroup, ShardSummary, ShardWriter};
