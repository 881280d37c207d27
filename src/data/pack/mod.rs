//! `pack`: input rows to shards.
//!
//! ```text
//! reader thread        this thread, on every core         admitting thread            this thread
//! files -> raw rows -> parse, template, tokenise     ->   truncate, count, group  ->  train-*.pref, eval-*.pref
//! ```
//! Rows are grouped in a memory that does not grow with them: beyond [`PackOptions::memory`] they lie in temporary files.
//! Batches keep the input's order and no result depends on a thread's timing: the same input gives the same bytes on any
//! number of cores.

mod admit;
mod bad;
mod drops;
mod exclude;
mod families;
mod groups;
mod options;
mod record;
mod repeats;
mod report;
mod run;
mod stream;
mod write;

pub use exclude::{ExcludedRow, row_sha256};
pub use groups::IN_MEMORY;
pub use options::{Asked, AssistantTurns, OnBadRow, PackOptions, PairChoice, Truncation};
pub use report::{DropReason, Dropped, PackReport, SplitCounts};
pub use run::{OnProgress, Progress, pack};
