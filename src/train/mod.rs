//! Training: configuration, reference pass, steps, evaluation. Generic over the backend; knows no device.

pub mod check;
pub mod config;
pub mod engine;
pub mod eval;
pub mod kl;
pub mod memory;
pub mod metrics;
pub mod optim;
pub mod reference;
pub mod run;
pub mod schedule;
