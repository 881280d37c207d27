//! `fusedpo report`: runs as one page.

use super::flags::Flags;
use super::out::Out;
use crate::error::Result;
use crate::observe::Observe;
use crate::report;
use std::path::PathBuf;

/// Options of `fusedpo report`.
#[derive(clap::Args)]
pub struct ReportArgs {
    /// Folders of runs of `sft` or `dpo`, to be shown together; they are only read
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// HTML file to write; `-`: stdout
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace FILE where it exists
    #[arg(long)]
    pub overwrite: bool,
}

/// Runs the command.
pub fn run(args: &ReportArgs, flags: &Flags, observe: &mut dyn Observe) -> Result<()> {
    let mut out = Out::open(&args.out, args.overwrite)?;
    let page = report::page(&args.runs, &|text| flags.text(text), observe)?;
    out.put(page.as_bytes())?;
    let runs = if args.runs.len() == 1 { "1 run".to_owned() } else { format!("{} runs", args.runs.len()) };
    out.finish(&format!("a page of {runs}, {}", crate::units::bytes(page.len())))
}
