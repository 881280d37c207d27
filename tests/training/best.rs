//! The checkpoint of the best evaluation, where things go wrong: a run that begins in another, a disk that is full for a while.

use crate::cli_common;

use cli_common::*;
use fusedpo::Result;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::files::RunDir;
use fusedpo::observe::{Event, Flow, Observe};
use fusedpo::train::options::{Stage, TrainOptions};
use fusedpo::train::run::train;
use serde_json::Value;
use std::path::PathBuf;

/// A rate so high that the held-out loss turns.
const BASE: &str = "dpo --model m --data d --device cpu --dtype f32 --learning-rate 0.01 --lr-scheduler-type constant --batch-size 3 \
                    --token-budget 64 --load-best-model-at-end";

fn best(cli: &Cli, out: &str) -> (u64, bool) {
    let run: Value = serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap();
    (run["best"]["step"].as_u64().unwrap(), run["best"]["loaded"].as_bool().unwrap())
}

fn tensors(cli: &Cli, path: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = cli.bytes(path);
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = all.tensors().into_iter().map(|(name, t)| (name, t.data().to_vec())).collect();
    all.sort();
    all
}

/// A run in another, and one in that: each goes on, and ends with the best evaluation, which lies in the first.
#[test]
fn the_best_lies_in_the_run_before_the_run_before() {
    let cli = Cli::with_data();
    let base = format!("{BASE} --eval-steps 1 --save-steps 1 --save-total-limit 0");
    cli.ok(&format!("{base} --max-steps 14 --out whole"));
    let (step, _) = best(&cli, "whole");
    assert!(1 < step && step <= 8, "the loss turns: {step}");
    let kept = tensors(&cli, &format!("whole/checkpoint-{step}/model.safetensors"));
    let mut before = "whole".to_owned();
    for (i, out) in ["one", "two"].into_iter().enumerate() {
        let at = step + i as u64 + 1;
        cli.ok(&format!("{base} --max-steps {} --out {out} --resume {before}/checkpoint-{at}", at + 1));
        assert_eq!(best(&cli, out), (step, true));
        let ran = cli.ok(&format!("{base} --max-steps {} --out {out} --resume auto", at + 2));
        assert_eq!(best(&cli, out), (step, true), "{ran:?}");
        assert!(tensors(&cli, &format!("{out}/model.safetensors")) == kept, "{out}: {ran:?}");
        assert_eq!(rows(&cli, out).last(), rows(&cli, "whole").iter().rfind(|r| r["step"] == at + 2), "{out}");
        before = out.to_owned();
    }
    // What another run did after this one left it is no checkpoint of this one.
    cli.ok(&format!("{base} --max-steps {} --out early --resume whole/checkpoint-{}", step + 1, step - 1));
    std::fs::rename(cli.path(&format!("early/checkpoint-{step}")), cli.path("away")).unwrap();
    assert!(cli.path(&format!("whole/checkpoint-{step}")).is_dir());
    let ran = cli.run(&format!("{base} --max-steps {} --out early --resume auto", step + 2));
    let want = format!(
        "early/checkpoint-{}: its best evaluation was at step {step}, and checkpoint-{step} is not beside it: put it back, go on from \
         another checkpoint, or leave --load-best-model-at-end out",
        step + 1
    );
    one_line("away", &ran, 2, &want);
}

/// Fills the disk from an evaluation to the next step.
struct Full {
    at: u64,
    filler: PathBuf,
    warned: Vec<String>,
}

impl Observe for Full {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        match event {
            Event::Evaluation { step, .. } if *step == self.at => {
                // As much as there is room for.
                let _ = std::fs::write(&self.filler, vec![1; 4 << 20]);
            }
            Event::Step { .. } => drop(std::fs::remove_file(&self.filler)),
            Event::Warning(why) => self.warned.push((*why).to_owned()),
            _ => {}
        }
        Ok(Flow::On)
    }
}

/// The best evaluation's save fails: the best before it is not taken away for it, and the end says so.
#[test]
fn a_save_that_fails_takes_nothing_away() {
    let cli = Cli::with_data();
    // Every step is evaluated, and saved where it is the best.
    cli.ok(&format!("{BASE} --eval-steps 1 --save-steps 0 --max-steps 14 --out peace"));
    let loss = |row: &Value| row.get("eval_loss").and_then(Value::as_f64);
    let rows: Vec<Value> = rows(&cli, "peace").into_iter().filter(|row| loss(row).is_some()).collect();
    let mut bests: Vec<u64> = Vec::new();
    let mut least = f64::INFINITY;
    for row in &rows[1..] {
        if loss(row).unwrap() < least {
            least = loss(row).unwrap();
            bests.push(row["step"].as_u64().unwrap());
        }
    }
    let [.., first, last] = bests[..] else { panic!("one best alone: {bests:?}") };
    assert!(last < 14, "{bests:?}");
    let Some(_disk) = Mount::new(&cli.path("t"), "size=3m", "the best evaluation on a full disk") else { return };
    let written: toml::Table = cli.text("peace/config.toml").parse().unwrap();
    let mut c = TrainOptions::from_table(Stage::Dpo, &{
        let mut all = written;
        for (key, path) in [("model", "m"), ("data", "d"), ("out", "t/r")] {
            all.insert(key.into(), cli.path(path).display().to_string().into());
        }
        all
    })
    .unwrap();
    // Checkpoints are due after the one that fails, and one alone may stay.
    (c.save.save_steps, c.save.save_total_limit) = (Some(last + 1), 1);
    let mut full = Full { at: last, filler: cli.path("t/filler"), warned: Vec::new() };
    let be = Cpu::<f32>::with(GemmPrecision::Native).unwrap();
    train(&be, &c.resolve(Stage::Dpo).unwrap(), &mut full).unwrap();
    let steps: Vec<u64> = RunDir::checkpoints(&cli.path("t/r")).iter().map(|c| c.step).collect();
    assert!(steps.contains(&first) && !steps.contains(&last), "{steps:?}, bests {bests:?}: {:#?}", full.warned);
    assert_eq!(best(&cli, "t/r"), (last, false));
    let end = full.warned.iter().find(|why| why.starts_with("the best eval_loss was at step ")).unwrap();
    assert!(end.ends_with(&format!("; checkpoint-{first}, the best before it, is kept")), "{end}");
}
