//! Which response of a pair does a model find likelier, and by how much?
//!
//! `cargo run --release --example score_pairs [MODEL PAIRS.jsonl]`, with a Hugging Face directory and a file of preference
//! rows; without arguments, with a small random model and rows of its own.

mod tiny;

use fusedpo::backend::Backend;
use fusedpo::backend::cpu::Cpu;
use fusedpo::data::pack::{PackOptions, pack};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::files::scratch_folder;
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::check::check_data;
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    tiny::exit("score_pairs", run(&arguments))
}

fn run(arguments: &[PathBuf]) -> Result<()> {
    let folder = scratch_folder()?;
    let own = [folder.path().join("model"), folder.path().join("pairs.jsonl")];
    let (model, rows) = match arguments {
        [] => {
            tiny::write_model(&own[0])?;
            fusedpo::files::write(&own[1], tiny::jsonl().as_bytes())?;
            (&own[0], &own[1])
        }
        [model, rows] => (model, rows),
        _ => return Err(Error::usage("give a model directory and a file of pairs, or nothing")),
    };

    // Rows become shards once: tokenised, checked, and mapped from then on.
    let shards = folder.path().join("shards");
    pack(&PackOptions::new(model, vec![rows.clone()], &shards), &mut |_| Ok(()))?;
    let data = Dataset::open(&shards, Split::Train)?;
    let logps = score(&Cpu::<f32>::new()?, model, &data)?;

    let mut preferred = 0;
    for group in (0..data.num_groups()).map(|id| data.group(id)) {
        for pair in group.pairs() {
            let [chosen, rejected] = [pair.chosen, pair.rejected].map(|i| group.response(i));
            let [c, r] = [&chosen, &rejected].map(|response| logps[response.id as usize]);
            println!("row {}: chosen {c:.3}, rejected {r:.3}, difference {:+.3} nats", chosen.row, c - r);
            preferred += u32::from(c > r);
        }
    }
    println!("the chosen response is the likelier one in {preferred} of {} pairs", data.num_pairs());
    Ok(())
}

/// Log-probability of every response of `data` given its prompt, in nats, by its id.
fn score<B: Backend>(be: &B, model: &Path, data: &Dataset) -> Result<Vec<f64>> {
    let model = ModelDir::open(model)?;
    // The same tokenizer, and not a byte that was not checked.
    check_data(&model, data)?;
    let options =
        PlanOptions { objective: Objective::Score, batch_size: 64, token_budget: None, seed: 0, shuffle: false };
    let plan = Planner::new(data, &options)?;
    let model = Model::load(be, &model, data.longest_row())?;
    let mut engine = Engine::new(be, model, plan.capacity(), Purpose::Score)?;
    let mut logps = vec![f64::NAN; data.num_responses() as usize];
    for step in 0..plan.steps_in_epoch(0) {
        for batch in plan.step(0, step)? {
            for (slot, logp) in batch.responses().iter().zip(engine.score(&batch)?) {
                logps[slot.id as usize] = logp;
            }
        }
    }
    Ok(logps)
}
