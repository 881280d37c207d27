//! Direct Preference Optimization as an engine.

pub mod backend;
pub mod cli;
pub mod commands;
pub mod data;
pub mod device;
pub mod error;
pub mod loss;
pub mod model;
pub mod output;
pub mod progress;
pub mod signal;
pub mod train;

pub use error::{Error, Result};
