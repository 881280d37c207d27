//! `pack`: input rows to shards.
//!
//! ```text
//! reader thread        this thread, on every core         admitting thread            this thread
//! files -> raw rows -> parse, template, tokenise     ->   truncate, count, group  ->  train-*.pref, eval-*.pref
//! ```
//! Batches keep the input's order and no result depends on a thread's timing: the same input gives the same bytes on any
//! number of cores.

mod admit;
mod bad;
mod drops;
mod groups;
mod options;
mod report;
mod run;
mod stream;
mod write;

pub use groups::{GroupData, Groups, IN_MEMORY, PairNovelty, ResponseData, fingerprint};
pub use options::{AssistantTurns, OnBadRow, PackOptions, PairChoice, Truncation};
pub use report::{DropReason, Dropped, PackReport, SplitCounts};
pub use run::{OnProgress, Progress, pack};
