//! Following long work: what it tells, who listens, and whether it goes on. Knows numbers, text and files; no backend, no
//! terminal, no signals.

pub mod event;
pub mod jsonl;

pub use event::{Both, Event, Flow, InUse, Later, Observe, Silent};
