//! Training: options, reference pass, steps, evaluation. Generic over the backend; knows no device.

mod announce;
pub mod check;
pub mod checkpoint;
pub mod choices;
pub mod clock;
pub mod engine;
pub mod eval;
pub mod group;
mod in_flight;
pub mod kl;
pub mod memory;
pub mod metrics;
pub mod optim;
pub mod options;
mod proof;
pub mod record;
pub mod reference;
mod report;
pub mod resume;
pub mod run;
mod saver;
pub mod schedule;
pub mod state;
mod steps;
pub mod summary;
pub mod trained_with;
