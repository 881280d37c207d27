//! Steps: which groups, in which micro-batches. Everything is a pure function of the data, the options, the epoch and
//! the step.
//!
//! - The order of an epoch is [`permutation`] of the usable groups, or their own order.
//! - A step takes whole groups until it holds at least `batch_size` pairs (responses for [`Objective::Sft`] and
//!   [`Objective::Score`]); the last step of an epoch may hold fewer.
//! - A step of [`Objective::Judgement`] holds at least two prompts, and a last prompt alone goes with the step before: a loss of
//!   judgements compares each prompt with a response to another ([`Planner::first_outlines`]).
//! - Within a step, groups are packed best-fit decreasing into micro-batches of exactly `T` token slots. A group that
//!   needs more is cut: each pair is in exactly one piece, with both its responses; the prompt is repeated, and a
//!   response may be. Micro-batches, and groups in them, are in the order of the epoch.
//! - In lanes ([`Planner::in_lanes`]) the pieces of a step are shared out first, and packed within each; micro-batches then come
//!   lane by lane ([`Outline::lane`](crate::batch::Outline::lane)).
//! - All of that is known from the records of groups and responses: a plan first gives outlines ([`Planner::outlines`]). Tokens are read
//!   for those micro-batches alone that a process computes ([`Planner::batches`]).
//! - An empty prompt predicts nothing, so a response's first token is not scored. A response of one token after an empty
//!   prompt has no prediction at all: [`Objective::Preference`] leaves out pairs with such a response and
//!   [`Objective::Sft`] and [`Objective::Judgement`] leave out the response, all counted ([`Planner::unscorable`]); [`Objective::Score`]
//!   takes it along without predictions, its log-probability being the empty sum, 0.

mod judged;
mod lanes;
mod options;
mod order;
mod pieces;
mod planner;
mod reads;
mod set;
mod survey;
mod tokens;

pub use judged::Mismatch;
pub use options::{Objective, PlanOptions};
pub use order::{draw, permutation};
pub use planner::Planner;
pub use reads::shared_lens;
pub use set::ResponseSet;
