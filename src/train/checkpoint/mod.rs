//! Checkpoints: what a run can go on from, to the bit, in `RUN/checkpoint-STEP`.
//!
//! ```text
//! model.safetensors       weights as the passes read them       with config.json and the tokenizer: a model directory
//! adapter_model.safetensors  instead, of a run that trains an adapter: with adapter_config.json, in PEFT's form
//! optimizer.safetensors   master weights, moments                `master.NAME`, `first_moment.NAME`, `second_moment.NAME`, of 8 bits
//!                                                                also `first_scale.NAME`, `second_scale.NAME`
//! reference.safetensors   a synced reference, where there is one  `reference.NAME`, `reference_master.NAME`
//! trainer_state.json      clock, identity, sums of the above     [`Manifest`]
//! config.toml             the run's options
//! ```
//!
//! A checkpoint is complete or absent: it is filled under another name, everything in it goes to the disk, and it is renamed.
//! Its tensors come from the state's arenas a piece at a time ([`PIECE`]), and go back in the same way.
//!
//! [`Identity`] is all that decides a bit of what follows, beside the state: a run goes on from a checkpoint of the same
//! identity alone. `docs/runs.md` is the page for users.

mod due;
mod identity;
mod layout;
mod load;
mod manifest;
mod save;

pub use due::{Due, SaveOptions};
pub use identity::{Identity, Plans, data_sha256, deciding};
pub use layout::{BUFFER, PIECE, elements};
pub use load::Checkpoint;
pub use manifest::{Carried, Manifest, Saved, SavedLedger, SavedSection, VERSION};
pub use save::{Source, save};
