//! Models: configurations, files, and what they compute. One program, as each costs its linking.

#[path = "../model_common/mod.rs"]
mod model_common;

mod adapter;
mod configs;
mod golden;
mod model;
mod model_bad;
mod model_files;
mod naive_model;
mod nf4;
mod nf4_bad;
mod nf4_folders;
mod rope;
