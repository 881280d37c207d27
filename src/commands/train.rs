//! `fusedpo sft` and `fusedpo dpo`.

use crate::backend::Backend;
use crate::device::{self, Task};
use crate::error::Result;
use crate::files::RunDir;
use crate::train::config::{DpoArgs, Stage, TrainArgs, TrainConfig, merge_config};
use crate::train::eval;
use crate::train::run::{self, Summary};

/// `fusedpo sft`: supervised fine-tuning on completions.
pub fn sft(args: TrainArgs) -> Result<()> {
    train(Stage::Sft, args, DpoArgs::default())
}

/// `fusedpo dpo`: preference optimisation.
pub fn dpo(args: TrainArgs, dpo: DpoArgs) -> Result<()> {
    train(Stage::Dpo, args, dpo)
}

struct Train<'a>(&'a TrainConfig);

impl Task for Train<'_> {
    type Out = Summary;
    fn run<B: Backend>(self, be: &B) -> Result<Summary> {
        run::train(be, self.0)
    }
}

fn train(stage: Stage, args: TrainArgs, dpo: DpoArgs) -> Result<()> {
    let (args, dpo) = merge_config(stage, args, dpo)?;
    let config = TrainConfig::resolve(stage, args, dpo)?;
    RunDir::refuse_taken(&config.out)?;
    let s = device::dispatch(config.device, config.dtype, Train(&config))?;
    println!(
        "{} steps in {:.1} s ({:.1} s for the reference): {}",
        s.steps,
        s.train_seconds,
        s.reference_seconds,
        config.out.display()
    );
    if let Some((first, last)) = &s.eval {
        println!("held-out before: {}", eval::line(first));
        println!("held-out after:  {}", eval::line(last));
    }
    Ok(())
}
