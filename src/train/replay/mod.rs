//! A step of a run taken again, op by op, to find what in it was not finite first. The run's folder is only read.
//!
//! The weights of a step are those that the steps before it have left, which is not what a run keeps of each: so replay goes on from
//! the last checkpoint before the step, or from the beginning, and takes the steps between. They give the bits that they gave the run;
//! where `metrics.jsonl` says otherwise, so does the [`Replay`].

mod inputs;
mod naming;
mod report;
mod start;
mod take;
mod written;

pub use report::{Agreement, Bad, From, Place, Replay, SeenOp};
pub use start::options_of;
pub use take::replay;
