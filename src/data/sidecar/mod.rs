//! Reference log-probabilities beside the shards, `NAME.pref.ref-HASH`: one f64 a response and a bitmap of those known.
//!
//! The sums are kept as the f64 in which they are made. f32 would save 4 bytes a response, a thousandth of its tokens'
//! share, and cost the step-0 proof: a margin would be the rounding of two sums instead of 0.
//!
//! A sidecar is for one shard, one set of weights and one way of computing ([`RefKey`]). All three are in its header
//! and, hashed, in its name, so the sidecar of another key is never read: it lies beside, and [`Sidecars::notes`] tells
//! what is different. A file that has the right name and another key, or is damaged, is refused.
//!
//! [`Sidecars::flush`] writes a shard's whole sidecar to a temporary sibling and renames it. Whenever the process dies,
//! the file is that of the last flush: all of it valid, nothing else in it. `docs/shard-format.md` has the bytes.
//!
//! What belongs to two numbers rather than to one response (a response's first m tokens, a response after another's prompt) is
//! in [`Keyed`] sidecars, under the same key.

mod file;
mod key;
mod keyed;
mod keyed_file;
mod names;
mod prune;
mod sidecars;

pub use key::RefKey;
pub use keyed::{Kept, Keyed, keyed_path};
pub use prune::{Pruned, prune};
pub use sidecars::{Sidecars, path};
