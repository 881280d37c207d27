//! One file a command: its options and what it does with the library.

pub mod analyze;
#[allow(unsafe_code)] // a handler of signals
pub mod bus;
pub mod choice;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod effect;
pub mod eval;
pub mod flags;
pub mod generate;
pub mod help;
pub mod hub;
pub mod inspect;
pub mod loss;
pub mod loss_flags;
pub mod merge;
pub mod out;
pub mod pack;
pub mod plan;
pub mod progress;
pub mod quantize;
pub mod quantize_flags;
pub mod reference;
pub mod replay;
pub mod report;
pub mod score;
pub mod shell;
pub mod signal;
pub mod stdin;
pub mod terminal;
pub mod threads;
pub mod train;
pub mod trl;
pub mod trl_keys;
pub mod yaml;
