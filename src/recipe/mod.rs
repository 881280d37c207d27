//! A recipe: stages from rows to a model, each a command with its options, and the hash of all that decides a stage.
//! [`commands`](crate::commands) starts them.

mod file;
mod hash;
mod manifest;

pub use file::{Kind, Recipe, Stage};
pub use hash::{CACHE, Inputs, content_sha256, data_sha256, model_sha256, stage_sha256};
pub use manifest::{Entry, Manifest, Unread};
