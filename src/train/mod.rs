//! Training: options, reference pass, steps, evaluation. Generic over the backend; knows no device.

pub mod check;
pub mod choices;
pub mod engine;
pub mod eval;
pub mod group;
pub mod kl;
pub mod memory;
pub mod metrics;
pub mod optim;
pub mod options;
pub mod reference;
pub mod run;
pub mod schedule;
