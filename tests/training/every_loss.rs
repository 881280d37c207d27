//! A short run of every loss of the table: finite, the same twice, begun at the loss that its formula gives at the reference,
//! and gone on with from a checkpoint to the same bytes.

use crate::cli_common;

use cli_common::*;
use fusedpo::backend::cpu::Cpu;
use fusedpo::choice::Choice;
use fusedpo::loss::{LossSpec, LossType, Scope};
use fusedpo::observe::{Event, Flow, Observe, Silent};
use fusedpo::train::choices::Resume;
use fusedpo::train::options::{Stage, TrainOptions};
use fusedpo::train::run::train;
use fusedpo::{Error, Result};
use serde_json::{Value, json};

/// Prompts with three scored responses each, of different lengths.
fn rankings(n: u64) -> Vec<Value> {
    let words =
        |from: u64, n: u64| (0..n).map(|i| format!("w{}", 3 + (from + 7 * i) % 94)).collect::<Vec<_>>().join(" ");
    let row = |i: u64| {
        let responses: Vec<String> = (0..3).map(|k| words(11 * i + 31 * k, 1 + (i + 2 * k) % 5)).collect();
        json!({"prompt": words(5 * i, 2 + i % 3), "responses": responses, "scores": [i % 4, i % 4 + 2, i % 4 + 1]})
    };
    (0..n).map(row).collect()
}

/// A crash after a step.
struct Crash(u64);

impl Observe for Crash {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        match event {
            Event::Step { step, .. } if *step == self.0 => Err(Error::Training("crash".into())),
            _ => Ok(Flow::On),
        }
    }
}

fn run(cli: &Cli, out: &str, more: &str, resume: bool, observe: &mut dyn Observe) -> Result<()> {
    let [model, data, to, cache] = ["m", "d", out, &format!("cache-{out}")].map(|p| cli.path(p).display().to_string());
    let text = format!(
        "model = '{model}'\ndata = '{data}'\nout = '{to}'\nlearning_rate = 1e-3\nbatch_size = 6\nmax_steps = 5\n\
         token_budget = 64\nsave_steps = 2\neval_steps = 3\n{more}\n"
    );
    let mut table: toml::Table = text.parse().unwrap();
    let mut options = TrainOptions::from_table(Stage::Dpo, &table)?;
    if options.loss().reference() {
        table.insert("cache".into(), cache.into());
        options = TrainOptions::from_table(Stage::Dpo, &table)?;
    }
    options.resume.resume = resume.then_some(Resume::Auto);
    train(&Cpu::<f32>::new()?, &options, observe).map(|_| ())
}

/// Trains twice, the second time with a crash between; gives the rows of metrics.
fn twice(cli: &Cli, name: &str, more: &str) -> Vec<Value> {
    let [whole, broken] = [format!("{name}-whole"), format!("{name}-broken")];
    run(cli, &whole, more, false, &mut Silent).unwrap_or_else(|e| panic!("{name}: {e}"));
    run(cli, &broken, more, false, &mut Crash(3)).unwrap_err();
    run(cli, &broken, more, true, &mut Silent).unwrap_or_else(|e| panic!("{name}, again: {e}"));
    let got = rows(cli, &whole);
    assert_eq!(got, rows(cli, &broken), "{name}");
    let weights = |out: &str| cli.bytes(&format!("{out}/model.safetensors"));
    assert!(weights(&whole) == weights(&broken), "{name}: other weights");
    assert!(weights(&whole) != cli.bytes("m/model.safetensors"), "{name}: nothing was learned");
    let ledger = |out: &str| std::fs::read(cli.path(&format!("{out}/ledger.bin"))).ok();
    assert!(ledger(&whole) == ledger(&broken), "{name}: another ledger");
    assert_eq!(ledger(&whole).is_some(), !["sft", "kto"].contains(&name), "{name}");
    let numbers = got.iter().flat_map(|row| row.as_object().unwrap().iter());
    // An interval has two ends.
    let finite = |x: &Value| x.as_f64().is_some_and(f64::is_finite);
    let ends = |x: &Value| x.as_array().is_some_and(|of| of.len() == 2 && of.iter().all(finite));
    numbers.for_each(|(key, x)| assert!(finite(x) || key.ends_with("_ci95") && ends(x), "{name}: {key} {x}"));
    got
}

fn cli() -> Cli {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &rankings(24));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --pairs all --eval-fraction 0.25");
    cli
}

#[test]
fn every_loss_trains_and_goes_on() {
    let cli = cli();
    for loss_type in LossType::EVERY {
        let rows = twice(&cli, loss_type.name(), &format!("loss_type = '{loss_type}'"));
        assert_eq!(rows.iter().filter(|r| r.get("loss").is_some()).count(), 5, "{loss_type}: {rows:?}");
        if LossSpec::of(*loss_type).scope() == Scope::Group && *loss_type == LossType::Sigmoid {
            let first = rows.iter().find_map(|r| r["loss"].as_f64()).unwrap();
            assert!((first - std::f64::consts::LN_2).abs() < 1e-12, "{first}");
        }
    }
}

#[test]
fn sums_and_transforms_train_and_go_on() {
    let cli = cli();
    for (name, more) in [
        ("mpo", "loss_type = ['sigmoid', 'bco_pair', 'sft']\nloss_weights = [0.8, 0.2, 1.0]"),
        ("weighted", "loss_type = 'sigmoid'\nuse_weighting = true"),
        ("forward", "f_divergence_type = 'forward_kl'"),
        ("js", "f_divergence_type = 'js_divergence'\nloss_type = 'ipo'"),
        ("alpha", "f_divergence_type = 'alpha_divergence'\nf_alpha_divergence_coef = 0.3"),
        ("ranked", "loss_type = ['plackett_luce', 'sft']"),
        ("sorted", "loss_type = ['aot', 'sft']"),
        ("less", "ld_alpha = 0.3"),
    ] {
        twice(&cli, name, more);
    }
}
