//! What can be asked of `fusedpo sweep`, and what it says that goes on.

use crate::error::Error;
use crate::sweep::Results;
use std::path::{Path, PathBuf};

/// Options of `fusedpo sweep`.
#[derive(Clone, clap::Args)]
pub struct SweepArgs {
    /// TOML file: options of `sft` or `dpo` as in their --config, a table grid or random with those that vary, and a table sweep
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Folder for the runs, the table (sweep.json, sweep.csv) and the picture; a sweep of the same file in it goes on
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Runs at a time; they share the threads [default: 1, or one for each of --gpus]
    #[arg(long, value_name = "N", value_parser = jobs)]
    pub jobs: Option<usize>,
    /// GPUs as CUDA_VISIBLE_DEVICES names them, with commas between: each run sees one, in turn [default: with several --jobs those of that variable, else all]
    #[arg(long, value_delimiter = ',', value_name = "ID,...")]
    pub gpus: Vec<String>,
    /// Print sweep.json in place of the table
    #[arg(long)]
    pub json: bool,
}

fn jobs(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=256).contains(n)).ok_or_else(|| "give a whole number from 1 to 256".to_owned())
}

/// What a sweep that was stopped says.
pub(super) fn stopped(file: &Path, out: &Path, results: &Results) -> Error {
    let through = results.runs.iter().filter(|r| r.error.is_none()).count();
    Error::stopped(format!(
        "stopped; {through} of {} runs are through; this goes on: fusedpo sweep {} --out {}",
        results.runs.len(),
        file.display(),
        out.display()
    ))
}
