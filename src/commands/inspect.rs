//! `fusedpo inspect`.

use crate::data::shard::{InspectOptions, inspect, inspect_json};
use crate::error::Result;
use crate::say;
use std::path::PathBuf;

/// Show what a folder of shards holds.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Folder that `pack` wrote, or one .pref file.
    pub data: PathBuf,
    /// Show the first N groups with their tokens made visible.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub show: u64,
    /// Check every checksum and every token id.
    #[arg(long)]
    pub verify: bool,
    /// Print one JSON object (docs/json.md has its keys)
    #[arg(long)]
    pub json: bool,
}

/// Prints the description.
pub fn run_inspect(args: &InspectArgs) -> Result<()> {
    let options = InspectOptions { show: args.show, verify: args.verify };
    if args.json {
        say::json(&inspect_json(&args.data, &options)?);
        return Ok(());
    }
    let text = inspect(&args.data, &options)?;
    say!("{}", text.trim_end_matches('\n'));
    Ok(())
}
