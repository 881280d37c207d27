//! `fusedpo demo`.

use super::choice::Devices;
use super::out::refuse_stdout;
use crate::demo::{self, DemoOptions, Sizes};
use crate::error::Result;
use crate::observe::Observe;
use crate::train::choices::DeviceChoice;
use std::path::PathBuf;

/// Options of `fusedpo demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// Folder for data and models; what an earlier demo left there is replaced
    #[arg(long, value_name = "DIR", default_value = "fusedpo-demo")]
    pub out: PathBuf,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Device
    #[arg(long, value_parser = Devices, default_value = "auto")]
    pub device: DeviceChoice,
    /// Steps of SFT; fewer also mean fewer prompts, for a rougher and quicker demo
    #[arg(long, default_value_t = Sizes::STEPS, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    pub steps: u64,
    /// Prompts that the model continues, a tenth of them held out; by --steps where it is not said, 1200 to 2500
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub prompts: Option<u64>,
}

/// Runs the command.
pub fn run(args: &DemoArgs, observe: &mut dyn Observe) -> Result<()> {
    refuse_stdout(&args.out)?;
    let DemoArgs { out, seed, device, steps, prompts } = args.clone();
    let prompts = prompts.map(|n| n as usize);
    demo::run(&DemoOptions { out, seed, device, steps, prompts }, observe)
}
