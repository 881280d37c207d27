//! What a micro-batch is: whole groups packed into a fixed number of token slots, each prompt once.
//!
//! ```text
//! slots      | p p p p  a a a  b b | q q  c c c  d d d d | . . dummy tail . . |
//! positions  | 0 1 2 3  4 5 6  4 5 | 0 1  2 3 4  2 3 4 5 | 0 ...              |
//! ```
//! A prompt attends to itself causally; a response to all of its prompt and causally to itself. The prompt's last
//! row predicts the first token of every response of its group. No row of one group sees another group.
//!
//! A [`MicroBatch`] is sound by construction: [`Builder`] is the only way to make one, and it refuses what would not be.
//! Whoever holds one may follow every index in it without looking.

mod builder;
mod capacity;
mod chunk;
mod micro;

pub use builder::Builder;
pub use capacity::Capacity;
pub use chunk::{Chunk, chunks};
pub use micro::{GroupSpan, MicroBatch, PairSlot, Prediction, ResponseSlot, Role, Segment};
