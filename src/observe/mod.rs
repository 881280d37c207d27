//! Following long work: what it tells, who listens, and whether it goes on. Knows numbers, text and files; no backend, no
//! terminal, no signals.
//!
//! ```
//! use fusedpo::observe::{Event, Flow, Observe};
//!
//! /// Ends a run whose loss is low enough.
//! struct Until(f64);
//!
//! impl Observe for Until {
//!     fn on(&mut self, event: &Event<'_>) -> fusedpo::Result<Flow> {
//!         let Event::Step { row, .. } = event else { return Ok(Flow::On) };
//!         let low = row["loss"].as_f64().is_some_and(|loss| loss < self.0);
//!         Ok(if low { Flow::Stop } else { Flow::On })
//!     }
//! }
//!
//! # fn step(loss: f64) -> serde_json::Map<String, serde_json::Value> { [("loss".to_owned(), loss.into())].into_iter().collect() }
//! let mut observer = Until(0.5);
//! assert_eq!(observer.on(&Event::Step { step: 1, row: &step(0.7) })?, Flow::On);
//! assert_eq!(observer.on(&Event::Step { step: 2, row: &step(0.4) })?, Flow::Stop);
//! # Ok::<(), fusedpo::Error>(())
//! ```

pub mod event;
pub mod jsonl;
pub mod tensorboard;

pub use event::{Both, Event, Flow, InUse, Later, Observe, Silent};
