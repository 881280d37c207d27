//! The transformer of the Llama family, written out over [`crate::backend::Backend`]: configuration, parameters, loading
//! and export of Hugging Face directories, forward, backward, the fused head, generation. No device code, no optimiser.
//!
//! A step, for one micro-batch:
//! ```text
//! ws.load_batch(be, &micro_batch)?;                     // host -> device; cuts the groups into ws.chunks
//! forward(be, &model, &mut ws)?;                        // ws.hidden: one normed row a prediction
//! for chunk in ws.chunks.clone() {
//!     head(be, &model, &mut ws, &chunk, HeadMode::Train)?;         // ws.logp, ws.entropy, ... and G in ws.logits
//!     loss(be, &mut ws, &chunk, &spec, scale)?;                    // ws.coef, ws.response_stats, ws.pair_stats
//!     head_backward(be, &model, &mut ws, &chunk, &mut grads)?;     // ws.d_hidden, and the head's gradient
//! }
//! backward(be, &model, &mut ws, &mut grads, None)?;     // everything below the head
//! ```
//! `grads` are [`Gradients`] over the trained arena of [`params::ParamTable`], accumulated into: the caller clears them once a step.
//!
//! From a directory to a model and back: [`ModelDir`] is what lies on the disk, [`Model`] is it on a device, [`generate()`]
//! continues prompts with it, and [`export()`] writes it as it would be found again. [`Workspace`] holds what a pass needs;
//! [`crate::train::engine::Engine`] is the two together, and what to use for scoring or training.

pub mod acts;
pub mod adapter;
mod arena;
pub mod backward;
mod cache;
pub mod config;
pub mod dir;
pub mod export;
mod export_nf4;
pub mod forward;
pub mod generate;
mod gradients;
pub mod graphs;
pub mod head;
mod identity;
mod json;
mod linear;
pub mod load;
pub mod low_rank;
pub mod merge;
pub mod nf4;
mod nf4_file;
mod packed;
mod param_builder;
pub mod params;
pub mod peft;
mod quantized;
mod room;
pub mod rope;
pub mod sample;
pub mod save_dtype;
mod sequence;
mod source;
mod stored;
pub mod wanted;

pub use acts::{Keep, Workspace};
pub use adapter::{AdapterInit, AdapterShape};
pub use backward::{Told, backward};
pub use config::{Architecture, ModelConfig};
pub use dir::ModelDir;
pub use export::{ExportReport, export, export_beside_weights};
pub use export_nf4::{Nf4Report, export_nf4};
pub use forward::forward;
pub use generate::{MAX_NEW_TOKENS, generate, generate_some, generate_while};
pub use gradients::{Gradients, Sums};
pub use head::{head, head_backward, loss};
pub use load::Model;
pub use params::{ParamSpec, ParamTable};
pub use quantized::{Quantize, Quantized, Skipped};
pub use room::{GenerateOptions, Room};
pub use rope::{Rope, RopeScaling};
pub use save_dtype::SaveDtype;
pub use sequence::{Generated, MAX_SEQUENCES};
