//! Direct Preference Optimization as an engine.

pub mod backend;
pub mod commands;
pub mod data;
pub mod error;
pub mod loss;
pub mod model;

pub use error::{Error, Result};
