//! What a micro-batch is: whole groups packed into a fixed number of token slots, each prompt once.
//!
//! ```text
//! slots      | p p p p  a a a  b b | q q  c c c  d d d d | . . dummy tail . . |
//! positions  | 0 1 2 3  4 5 6  4 5 | 0 1  2 3 4  2 3 4 5 | 0 ...              |
//! ```
//! A prompt attends to itself causally; a response to all of its prompt and causally to itself. The prompt's last
//! row predicts the first token of every response of its group. No row of one group sees another group.
//!
//! What lies where in it is its [`Outline`], which is known before any token is read: of the micro-batches of a step each of several
//! processes has the outlines of all and the tokens of its own ([`Batches`]).
//!
//! A [`MicroBatch`] is sound by construction: [`Outliner`] is the only way to make an outline, and it refuses what would not be; a
//! micro-batch is an outline and as many tokens as it has rows ([`MicroBatch::of`]), and all else in it follows from both. Whoever
//! holds one may follow every index in it without looking. [`Builder`] takes the tokens along.

mod batches;
mod builder;
mod capacity;
mod chunk;
mod micro;
mod outline;
mod outliner;

pub use batches::Batches;
pub use builder::Builder;
pub use capacity::Capacity;
pub use chunk::{Chunk, chunks};
pub use micro::{MicroBatch, Prediction, Segment};
pub use outline::{GroupSpan, Outline, PairSlot, ResponseSlot, Role};
pub use outliner::Outliner;
