//! Training: options, reference pass, steps, evaluation. Generic over the backend; knows no device.

pub mod check;
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
pub mod reference;
mod report;
pub mod run;
pub mod schedule;
pub mod state;
mod steps;
pub mod summary;
pub mod trained_with;
