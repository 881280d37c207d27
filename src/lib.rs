//! Direct Preference Optimization ([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)) as an engine: SFT, then DPO, on
//! a Hugging Face model directory; the result is one too. The README is about the program; this page is about the crate: how
//! to use it, then how it is built.
//!
//! # Using it
//!
//! The program is a thin layer on the library, and everything that it does can be done from Rust, in this order:
//!
//! 1. Rows become shards, once: [`data::pack::pack`] with [`PackOptions`](data::pack::PackOptions), or
//!    [`ShardWriter`](data::shard::ShardWriter) for data of one's own kind. [`Dataset`](data::shard::Dataset) reads them.
//! 2. A model directory is opened: [`ModelDir`](model::ModelDir). [`Model::load`](model::Model::load) gives weights on a
//!    backend, such as [`backend::cpu::Cpu`]; [`device::dispatch`] finds the backend for a choice.
//! 3. A run: [`train::run::train`] with [`TrainOptions`](train::options::TrainOptions). It fills a new folder with `run.json`,
//!    `config.toml`, `metrics.jsonl`, checkpoints and the trained model, or goes on with one
//!    ([`ResumeOptions`](train::options::ResumeOptions)); [`train::run::train_as`] is the same by several processes.
//!    [`train::reference::ensure`] is its reference pass alone.
//! 4. What came out: [`train::eval::evaluate`], [`train::kl::estimate`], [`model::generate()`], and [`model::export()`]. A
//!    directory with an adapter is [`ModelDir::with_adapter`](model::ModelDir::with_adapter), from then on a model like any
//!    other; [`model::merge::merged`] makes it one without.
//!
//! Work that takes long is told to an [`Observe`](observe::Observe), which may end it in order; nobody listens with
//! [`Silent`](observe::Silent). Errors are one type, [`Error`], and one line each: what, where, what to do. They name an
//! option as its field, in backticks. Only [`commands`] and the [`demo`] print or know of signals.
//!
//! ```
//! use fusedpo::loss::{LossSpec, LossType};
//! use fusedpo::train::options::{FileOptions, LossOptions, Stage, TrainOptions};
//!
//! let options = TrainOptions {
//!     files: FileOptions { model: "sft".into(), data: "shards".into(), out: "dpo".into() },
//!     loss: LossOptions { beta: Some(0.2), ..Default::default() },
//!     ..Default::default()
//! };
//! // Checked, and filled in; `train(&backend, &options, &mut observer)` would take it from here.
//! let options = options.resolve(Stage::Dpo)?;
//! assert_eq!(options.loss(), LossSpec::of(LossType::Sigmoid).beta(0.2));
//!
//! let wrong = TrainOptions { loss: LossOptions { beta: Some(-1.0), ..Default::default() }, ..options };
//! let why = wrong.resolve(Stage::Dpo).unwrap_err().to_string();
//! assert_eq!(why, "`beta` -1: must be a finite number greater than 0");
//! # Ok::<(), fusedpo::Error>(())
//! ```
//!
//! Whole programs, each of which runs without arguments (`cargo run --release --example NAME`):
//!
//! - `examples/score_pairs.rs`: which response of a pair a model finds likelier, and by how much.
//! - `examples/dpo_from_rust.rs`: a run that an observer of one's own follows and ends.
//! - `examples/write_shard.rs`: a converter from a format of one's own.
//!
//! # The shape of it
//!
//! ```text
//!  rows (JSONL, JSON, CSV, Parquet)       Hugging Face directory
//!        | data::pack                            | model::load
//!        v                                       v
//!  shards ---------- data::plan ---------> micro-batches          model::Model<B>
//!    |   groups: a prompt, K responses       T token slots,           |
//!    |   scores, pairs                       each prompt once         |
//!    v                                           |                    |
//!  sidecars: reference log-probs --------------> train::engine <------+
//!        ^                                       |   forward, head and loss by chunks, backward
//!        | train::reference                      v
//!        +----------------------------      train::optim -> model::export
//! ```
//!
//! Every method is the same three steps, so there is one path and no matrix of flags. **Forward**: a micro-batch of groups
//! gives a log-probability per response token. **Loss** ([`loss::LOSSES`]): a small function from policy and reference
//! log-probs to a number and to `dL/dlogp`, usually one coefficient per response. **Backward**: one pass seeded by the
//! coefficients. A coefficient is a scalar per row, so it commutes with the head's two products: the head leaves the
//! unscaled `onehot - softmax` in its logits buffer, and the coefficient is applied on the hidden side, after the whole
//! response is known. Logits exist for one chunk of rows at a time, for completion tokens only.
//!
//! # Code map
//!
//! From the ground up. A room names its own files and those of rooms above it in this list, never the other way round, and
//! no two files name each other in a circle; `tests/architecture.rs` reads every path in the sources to keep it so.
//!
//! - [`error`]; [`mod@choice`]: enums that a user names, with names and descriptions beside the variants; [`units`]: sizes in
//!   words; [`guard`]: a library that panics on a damaged file gives an error.
//! - [`batch`]: what a micro-batch is, sound by construction: an outline, which says what lies where before any token is read, and
//!   as many tokens; one builder makes it, everything below reads it.
//! - [`chart`]: curves as pictures. Knows numbers over steps and colours, no run.
//! - [`files`]: the only opener and writer of files: a file, a folder, a run's folder, what the user named for a result; and
//!   what of a stranger's folder may be opened at all.
//! - [`comm`]: the ranks of a job that a launcher started, and how bytes go from one to the other; sums in a fixed order. Knows
//!   bytes, numbers and addresses, no device.
//! - [`loss`]: the table of losses: formula, derivative, source, and what each needs; a loss at given numbers
//!   ([`loss::explain()`]). Knows no device and no plan.
//! - [`quant`]: weights in four bits, on the host, as bitsandbytes has them.
//! - [`observe`]: what long work tells and who listens: `metrics.jsonl`, TensorBoard's event file; the terminal and signals are
//!   in [`commands`]. Knows plain numbers, no device.
//! - [`hub`]: models and data sets by their names: what a repository holds, its files in the cache that `huggingface_hub` keeps
//!   too. Which of them are wanted, [`model::wanted`] and [`data::wanted`] know.
//! - [`data`]: rows ([`data::input`]), tokenisation and templates ([`data::text`]), packing, shards, sidecars, plans, lengths
//!   of well-known data ([`data::lengths`]). Knows tokens, never logits.
//! - [`backend`]: the boundary of about thirty ops that every device implements. [`backend::ops`] are the contracts, a trait a
//!   family and a struct of arguments an op; [`backend::cpu`] is the definition, in f32 and f64; [`backend::gpu`] launches the
//!   kernels of `kernels/`, on a GPU or on the host; [`backend::watched`] looks at what the ops of another
//!   leave, or how long they take, and [`backend::metered`] notes what a pass asks for and does nothing.
//! - [`model`]: a directory opened once, configuration, parameter table, weights in four bits ([`model::nf4`]), adapters
//!   ([`model::peft`] are their files, [`model::low_rank`] what they compute), loading and export, forward and backward written
//!   out, generation.
//! - [`train`]: options ([`train::options`]), memory plan, who takes a run's steps together ([`train::team`]), continues prompts
//!   together ([`train::generating`]), and keeps what of the optimiser's state ([`train::shares`]; buckets of gradients go to the others
//!   while the backward pass goes on), reference pass, what a run learns
//!   and where it stands ([`train::state`]), the passes of a step
//!   ([`train::engine`]), optimiser, evaluation and what is sampled at it ([`train::samples`]), what follows from it
//!   ([`train::best`]), metrics, the ledger of pairs ([`train::ledger`]), checkpoints ([`train::checkpoint`]), records
//!   ([`train::record`]), runs, a step of one taken again ([`train::replay`]), and the memory and time of those that are not begun
//!   ([`train::forecast`]).
//! - [`analyze`]: what a run's ledger says of its data: likely flipped labels, the hardest pairs, bias of length, displacement.
//! - [`device`]: from a choice to a backend, the one `match` over devices.
//! - [`mod@say`]: the one place that prints, and makes visible what a terminal would obey.
//! - [`report`]: folders of runs as a page that needs no network; it reads what they left, and knows no device.
//! - [`sweep`]: a search over options without its processes: its file, its runs' values and names, the table of what came out, and
//!   reward over KL as a picture.
//! - [`recipe`]: stages from rows to a model, and the hash of what decides each; likewise without its processes.
//! - [`demo`]: the method in one command, on data that the program makes itself, through the same functions.
//! - [`commands`], [`cli`]: one file a command; what the user types, and all that is said. Only here (and in the demo, which
//!   says things too) does the crate know flags and signals.
//!
//! The same word names a family of ops everywhere: `src/backend/ops/norm.rs`, `src/backend/cpu/norm.rs`,
//! `src/backend/gpu/norm.rs`, `kernels/norm.cu`.
//!
//! # Invariants
//!
//! - `model`, `loss` and `train` never name a device: they are generic over [`backend::Backend`].
//! - Training never tokenises, and never reads a byte of a shard that was not checked.
//! - An op allocates nothing on its device; all memory of a step is asked for, by name, before the first. How much it will
//!   be is told before any is taken, by the same constructors on a backend that only counts ([`train::memory`]).
//! - Within a step the host reads nothing that the step computes, and leaves the device always something to do: numbers are
//!   read a step later, micro-batches are staged two ahead, and a non-finite gradient norm stops the update on the device.
//!   Losses that compare a whole step ([`loss::Scope::Step`]) alone go through the model twice, and read log-probs between. Several
//!   ranks wait for each other within a step: for gradients that were not there before the backward pass was over, the blocks of their
//!   norm, and weights.
//! - An output row depends on its own inputs alone, not on what is packed beside it. So the reference's log-probs, computed
//!   in other batches and kept in a file, equal the policy's at step 0 to the bit; a run that starts at its reference
//!   proves it or does not start.
//! - Every reduction has a fixed order: the same command gives the same bits, whatever the number of threads. Ranks of a job add up
//!   lanes along one tree ([`comm::tree`]), and numbers of micro-batches in the order of the plan: whatever the number of processes. All
//!   know the same of a step, whose tokens each reads for its own micro-batches alone, and decide alike; rank 0 alone has the run's folder.
//! - A run that goes on from a checkpoint comes to the bytes of one that nobody disturbed, in weights and metrics: what decides a
//!   bit is in the [`State`](train::state::State) with its [`Clock`](train::clock::Clock), or in the
//!   [`Identity`](train::checkpoint::Identity) that the checkpoint refuses to be without. Observers hold nothing of the kind.
//! - Which parameters train is input to the parameter table. What is frozen has no gradient, no master weights and no
//!   moments, and nothing is computed for it; below the lowest parameter that trains the backward pass does not go.
//! - The loss is a mean over the pairs of the whole step: gradients do not depend on how it was cut into micro-batches.
//! - A model's directory is opened once a command ([`model::ModelDir`]): its configuration is read once, each of its files
//!   is hashed once, and reference, policy and export come from the same bytes.
//! - Files appear whole or not at all, a checkpoint's folder too: a temporary sibling, then a rename. A device, a pipe or a link that the user named
//!   is written to, and never replaced.
//! - Whatever is refused is refused in one line that names what, where and what to do. Nothing falls back in silence.

#![deny(unsafe_code)] // allowed by name: backend::gpu, backend::cpu::{gemm, pages, simd}, files::map, comm::{mpi::{abi, calls}, nccl}, commands::bus

pub mod analyze;
pub mod backend;
pub mod batch;
pub mod chart;
pub mod choice;
pub mod cli;
pub mod comm;
pub mod commands;
pub mod data;
pub mod demo;
pub mod device;
pub mod error;
pub mod files;
pub mod guard;
pub mod hub;
pub mod loss;
pub mod model;
pub mod observe;
pub mod quant;
pub mod recipe;
pub mod report;
pub mod say;
pub mod sweep;
pub mod train;
pub mod units;

pub use error::{Error, Result};
