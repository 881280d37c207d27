//! A DPO run driven from Rust and followed by an observer of one's own, which prints what it likes and ends the run once
//! the model tells the responses apart.
//!
//! `cargo run --release --example dpo_from_rust [MODEL DATA OUT]`, with a Hugging Face directory, a folder of shards that
//! `fusedpo pack` wrote, and a new folder for the result; without arguments, with a small random model and rows of its own.

mod tiny;

use fusedpo::backend::cpu::Cpu;
use fusedpo::data::pack::{PackOptions, pack};
use fusedpo::files::scratch_folder;
use fusedpo::model::ModelDir;
use fusedpo::observe::{Event, Flow, Observe};
use fusedpo::train::options::{DataOptions, FileOptions, LossOptions, Stage, TrainOptions};
use fusedpo::train::run::train;
use fusedpo::train::schedule::ScheduleOptions;
use fusedpo::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    tiny::exit("dpo_from_rust", run(&arguments))
}

fn run(arguments: &[PathBuf]) -> Result<()> {
    let folder = scratch_folder()?;
    let [model, data, out] = match arguments {
        [] => {
            let own = ["model", "shards", "out"].map(|name| folder.path().join(name));
            let rows = folder.path().join("pairs.jsonl");
            tiny::write_model(&own[0])?;
            fusedpo::files::write(&rows, tiny::jsonl().as_bytes())?;
            let options = PackOptions { eval_fraction: 0.25, ..PackOptions::new(&own[0], vec![rows], &own[1]) };
            pack(&options, &mut |_| Ok(()))?;
            own
        }
        [model, data, out] => [model, data, out].map(PathBuf::clone),
        _ => return Err(Error::usage("give a model directory, a folder of shards and a new folder, or nothing")),
    };
    let options = TrainOptions {
        files: FileOptions { model: model.clone(), data, out: out.clone() },
        loss: LossOptions { beta: Some(0.1), ..Default::default() },
        schedule: ScheduleOptions { learning_rate: 5e-3, ..Default::default() },
        data: DataOptions { batch_size: 3, num_train_epochs: 50.0, ..Default::default() },
        ..Default::default()
    };
    let mut follow = Follow { margin: 0.5, reached: false };
    let summary = train(&Cpu::<f32>::new()?, &options.resolve(Stage::Dpo)?, &mut follow)?;

    let why = if follow.reached { "the margin was reached" } else { "no epochs were left" };
    println!("{} steps, {why}; {:.0} % of the weights changed", summary.steps, 100.0 * summary.changed_share);
    if let Some((first, last)) = summary.eval {
        println!("held-out loss {:.4} before, {:.4} after", first.mean_loss(), last.mean_loss());
    }
    // The result is a model directory like the one it came from.
    assert!(ModelDir::open(&out)?.identity()? != ModelDir::open(&model)?.identity()?);
    Ok(())
}

/// Ends a run whose pairs are told apart.
struct Follow {
    /// Mean of the chosen responses' rewards over the rejected ones'.
    margin: f64,
    reached: bool,
}

impl Observe for Follow {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        let Event::Step { step, row } = event else { return Ok(Flow::On) };
        let number = |key: &str| row.get(key).and_then(|v| v.as_f64()).unwrap_or(f64::NAN);
        let margin = number("rewards/margins");
        println!("step {step}: loss {:.4}, margin {margin:.4}", number("loss"));
        self.reached = margin >= self.margin;
        // The step is done, the model is saved, and the run returns as one that had no more to do.
        Ok(if self.reached { Flow::Stop } else { Flow::On })
    }
}
