//! Whole runs against a loop written here: order of the data, steps, schedule, clipping, decay, optimiser, metrics, evaluation
//! and export by their published formulas, in f64. Only the model's passes are the library's; `tests/model/golden.rs` holds those.
//!
//! A run is done twice: by the binary in f32, and by the library in f64 from the configuration that the binary wrote.

mod cli_common;
mod model_common;

use cli_common::Cli;
use fusedpo::backend::cpu::Cpu;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use fusedpo::observe::Silent;
use fusedpo::train::eval;
use fusedpo::train::metrics::wilson_95;
use fusedpo::train::options::{Stage, TrainOptions};
use fusedpo::train::summary::Summary;
use model_common::{Group, cpu64, norm, pack, score};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A preference as token ids.
struct Row {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
    weight: f32,
}

/// `n` rows with prompts of their own and weights of 2, 0.5 and 1.25.
fn rows(n: u32, salt: u32) -> Vec<Row> {
    let ids = |a: u32, len: u32| (0..len).map(|i| 3 + (a * 37 + i * i * 5 + i * 13 + salt) % 94).collect::<Vec<u32>>();
    let end = |a: u32, len: u32| [ids(a, len), vec![2]].concat();
    (0..n)
        .map(|i| Row {
            prompt: [vec![3 + i, 90 - salt], ids(i + 11, 1 + i % 3)].concat(),
            chosen: end(i + 40, 2 + (i * 3) % 7),
            rejected: end(i + 70, 1 + (i * 5) % 6),
            weight: [2.0, 0.5, 1.25][i as usize % 3],
        })
        .collect()
}

fn jsonl(rows: &[Row]) -> Vec<Value> {
    let one = |r: &Row| json!({"prompt_ids": r.prompt, "chosen_ids": r.chosen, "rejected_ids": r.rejected, "weight": r.weight});
    rows.iter().map(one).collect()
}

#[derive(Clone, Copy)]
enum Optim {
    /// beta1, beta2.
    AdamW(f64, f64),
    RmsProp,
}

#[derive(Clone, Copy)]
enum After {
    Constant,
    Linear,
    Cosine,
}

/// What a run is asked for.
struct Asked {
    stage: &'static str,
    model: &'static str,
    /// Reference, beta, label smoothing; none for SFT.
    dpo: Option<(&'static str, f64, f64)>,
    optim: Optim,
    after: After,
    peak: f64,
    /// In steps, or as a share of them.
    warmup: (u64, f64),
    decay: f64,
    max_norm: f64,
    epsilon: f64,
    batch: usize,
    epochs: f64,
    seed: u64,
    eval_steps: u64,
    token_budget: usize,
}

impl Asked {
    /// As typed.
    fn command(&self, out: &str) -> String {
        let optim = match self.optim {
            Optim::AdamW(beta1, beta2) => format!("--optim adamw --adam-beta1 {beta1} --adam-beta2 {beta2}"),
            Optim::RmsProp => "--optim rmsprop".into(),
        };
        let after = match self.after {
            After::Constant => "constant",
            After::Linear => "linear",
            After::Cosine => "cosine",
        };
        let warmup = match self.warmup {
            (0, share) => format!("--warmup-ratio {share}"),
            (steps, _) => format!("--warmup-steps {steps}"),
        };
        let dpo = self.dpo.map_or_else(String::new, |(reference, beta, smoothing)| {
            format!("--ref-model {reference} --beta {beta} --label-smoothing {smoothing}")
        });
        format!(
            "{} --model {} --data d --out {out} --device cpu --dtype f32 --save-dtype f32 {optim} --lr-scheduler-type {after} {warmup} \
             --learning-rate {} --weight-decay {} --max-grad-norm {} --adam-epsilon {} --batch-size {} \
             --num-train-epochs {} --seed {} --eval-steps {} --token-budget {} {dpo}",
            self.stage,
            self.model,
            self.peak,
            self.decay,
            self.max_norm,
            self.epsilon,
            self.batch,
            self.epochs,
            self.seed,
            self.eval_steps,
            self.token_budget
        )
    }

    /// `transformers.get_scheduler`; `step` counts from 0.
    fn rate(&self, step: u64, total: u64) -> f64 {
        let warm = if self.warmup.0 > 0 { self.warmup.0 } else { (self.warmup.1 * total as f64).ceil() as u64 };
        if step < warm {
            return self.peak * step as f64 / warm as f64;
        }
        let share = (step - warm) as f64 / (total - warm) as f64;
        match self.after {
            After::Constant => self.peak,
            After::Linear => self.peak * (1.0 - share),
            After::Cosine => self.peak * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0,
        }
    }

    /// The rows of every step with the epochs done after it: whole epochs, then the part of one that was begun.
    fn plan(&self, n: usize) -> Vec<(f64, Vec<usize>)> {
        let in_epoch = n.div_ceil(self.batch);
        let total = (self.epochs.floor() * in_epoch as f64 + ((self.epochs % 1.0) * in_epoch as f64).ceil()) as usize;
        let step = |s: usize| {
            let (epoch, at) = (s / in_epoch, s % in_epoch);
            let order = permutation(n, self.seed, epoch as u64);
            let rows = order.chunks(self.batch).nth(at).unwrap().to_vec();
            (epoch as f64 + (at + 1) as f64 / in_epoch as f64, rows)
        };
        (0..total).map(step).collect()
    }

    fn spec(&self) -> LossSpec {
        match self.dpo {
            Some((_, beta, label_smoothing)) => {
                LossSpec::of(LossType::Sigmoid).beta(beta).label_smoothing(label_smoothing)
            }
            None => LossSpec::of(LossType::Sft).beta(1.0),
        }
    }
}

/// Fisher and Yates' shuffle with draws of SplitMix64 by counter: the order that a release keeps.
fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |z: u64| {
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let stream = mix(mix(seed.wrapping_add(GAMMA)).wrapping_add(GAMMA.wrapping_mul(epoch)));
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let draw = mix(stream.wrapping_add(GAMMA.wrapping_mul(i as u64 + 1)));
        order.swap(i, ((u128::from(draw) * (i as u128 + 1)) >> 64) as usize);
    }
    order
}

/// What the loop says that a run logs and leaves.
struct Truth {
    steps: Vec<BTreeMap<&'static str, f64>>,
    /// Of every step: tokens computed, each prompt once, and pairs or responses.
    computed: Vec<[usize; 2]>,
    evaluations: Vec<BTreeMap<&'static str, f64>>,
    /// By name.
    weights: BTreeMap<String, Vec<f64>>,
}

/// The means that both a step and an evaluation log, from sums of log-probs of the rows' responses.
fn means(asked: &Asked, rows: &[&Row], logps: &[f64], reference: &[[f64; 2]]) -> BTreeMap<&'static str, f64> {
    let Some((_, beta, smoothing)) = asked.dpo else {
        let tokens: usize = rows.iter().map(|r| r.chosen.len()).sum();
        return BTreeMap::from([("loss", -logps.iter().sum::<f64>() / tokens as f64)]);
    };
    let log_sigmoid = |x: f64| -(-x).exp().ln_1p();
    let (mut loss, mut weights, n) = (0.0, 0.0, rows.len() as f64);
    let (mut rewards, mut sums, mut right) = ([0.0; 2], [0.0; 2], 0.0);
    for ((row, logp), reference) in rows.iter().zip(logps.chunks(2)).zip(reference) {
        let reward = [beta * (logp[0] - reference[0]), beta * (logp[1] - reference[1])];
        let margin = reward[0] - reward[1];
        let weight = f64::from(row.weight);
        loss -= weight * ((1.0 - smoothing) * log_sigmoid(margin) + smoothing * log_sigmoid(-margin));
        weights += weight;
        right += if margin > 0.0 { 1.0 } else { 0.0 };
        for i in 0..2 {
            rewards[i] += reward[i];
            sums[i] += logp[i];
        }
    }
    BTreeMap::from([
        ("loss", loss / weights),
        ("rewards/chosen", rewards[0] / n),
        ("rewards/rejected", rewards[1] / n),
        ("rewards/margins", (rewards[0] - rewards[1]) / n),
        ("rewards/accuracies", right / n),
        ("logps/chosen", sums[0] / n),
        ("logps/rejected", sums[1] / n),
    ])
}

fn groups(asked: &Asked, rows: &[&Row], reference: &[[f64; 2]]) -> Vec<Group> {
    let pair = |r: &Row| vec![r.chosen.clone(), r.rejected.clone()];
    let one = |(r, reference): (&&Row, &[f64; 2])| match asked.dpo {
        Some(_) => Group {
            prompt: r.prompt.clone(),
            responses: pair(r),
            ref_logps: reference.to_vec(),
            pairs: vec![(0, 1, r.weight)],
        },
        None => Group { prompt: r.prompt.clone(), responses: vec![r.chosen.clone()], ..Group::default() },
    };
    rows.iter().zip(reference).map(one).collect()
}

/// Sums of log-probs of both responses of every row.
fn reference(cli: &Cli, asked: &Asked, rows: &[Row]) -> Vec<[f64; 2]> {
    let Some((dir, ..)) = asked.dpo else { return vec![[0.0; 2]; rows.len()] };
    let be = cpu64();
    let model = Model::load(&be, &ModelDir::open(&cli.path(dir)).unwrap(), 64).unwrap();
    let all = groups(asked, &rows.iter().collect::<Vec<_>>(), &vec![[0.0; 2]; rows.len()]);
    let sums: Vec<f64> = score(&be, &model, &[pack(&all, 0)]).iter().map(|t| t.iter().sum()).collect();
    sums.chunks(2).map(|s| [s[0], s[1]]).collect()
}

/// The loop.
fn truth(cli: &Cli, asked: &Asked, train: &[Row], held_out: &[Row]) -> Truth {
    let (be, spec) = (cpu64(), asked.spec());
    let mut model = Model::load(&be, &ModelDir::open(&cli.path(asked.model)).unwrap(), 64).unwrap();
    let [of_train, of_held_out] = [train, held_out].map(|rows| reference(cli, asked, rows));
    let held_out: Vec<&Row> = held_out.iter().collect();
    let evaluate = |model: &Model<Cpu<f64>>, step: u64| {
        let logps = score(&be, model, &[pack(&groups(asked, &held_out, &of_held_out), 0)]);
        let logps: Vec<f64> = logps.iter().map(|t| t.iter().sum()).collect();
        let mut row = means(asked, &held_out, &logps, &of_held_out);
        row.insert("step", step as f64);
        row
    };
    let mut evaluations = vec![evaluate(&model, 0)];
    let (mut steps, mut computed) = (Vec::new(), Vec::new());
    let (mut m, mut v) = (vec![0.0; model.table.len], vec![0.0; model.table.len]);
    let mut tokens = 0;
    let plan = asked.plan(train.len());
    let total = plan.len() as u64;
    for (step, (epoch, ids)) in (1..).zip(&plan) {
        let rows: Vec<&Row> = ids.iter().map(|i| &train[*i]).collect();
        let of_rows: Vec<[f64; 2]> = ids.iter().map(|i| of_train[*i]).collect();
        let scored: usize = rows.iter().map(|r| r.chosen.len()).sum();
        let weights: f64 = rows.iter().map(|r| f64::from(r.weight)).sum();
        let scale = if asked.dpo.is_some() { 1.0 / weights } else { 1.0 / scored as f64 };
        let pass = model_common::train(&be, &model, &[pack(&groups(asked, &rows, &of_rows), 0)], &spec, scale);
        let (rate, size) = (asked.rate(step - 1, total), norm(&pass.grads));
        let clip = if asked.max_norm > 0.0 { (asked.max_norm / (size + 1e-6)).min(1.0) } else { 1.0 };
        for tensor in &model.table.specs {
            let decays = !(tensor.name.ends_with("norm.weight") || tensor.name.ends_with("bias"));
            let decay = if decays { asked.decay } else { 0.0 };
            for i in tensor.at.clone() {
                let g = clip * pass.grads[i];
                update(asked, [&mut model.weights[i], &mut m[i], &mut v[i]], g, rate, decay, step as i32);
            }
        }
        tokens += rows.iter().map(|r| tokens_of(asked, r)).sum::<usize>();
        let again = if asked.dpo.is_some() { rows.iter().map(|r| r.prompt.len()).sum() } else { 0 };
        computed.push([rows.iter().map(|r| tokens_of(asked, r)).sum::<usize>() - again, rows.len()]);
        let mut row = means(asked, &rows, &pass.logps, &of_rows);
        row.extend([("step", step as f64), ("epoch", *epoch), ("grad_norm", size), ("learning_rate", rate)]);
        row.insert("num_tokens", tokens as f64);
        steps.push(row);
        if step == total || (asked.eval_steps > 0 && step % asked.eval_steps == 0) {
            evaluations.push(evaluate(&model, step));
        }
    }
    let tensor = |t: &fusedpo::model::ParamSpec| (t.name.clone(), model.weights[t.at.clone()].to_vec());
    Truth { steps, computed, evaluations, weights: model.table.specs.iter().map(tensor).collect() }
}

/// Tokens that a trainer without shared prompts would compute.
fn tokens_of(asked: &Asked, r: &Row) -> usize {
    match asked.dpo {
        Some(_) => 2 * r.prompt.len() + r.chosen.len() + r.rejected.len(),
        None => r.prompt.len() + r.chosen.len(),
    }
}

/// As the documentation of `torch.optim` writes them.
fn update(asked: &Asked, [w, m, v]: [&mut f64; 3], g: f64, rate: f64, decay: f64, step: i32) {
    match asked.optim {
        Optim::AdamW(beta1, beta2) => {
            *w -= rate * decay * *w;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            let (m, v) = (*m / (1.0 - beta1.powi(step)), *v / (1.0 - beta2.powi(step)));
            *w -= rate * m / (v.sqrt() + asked.epsilon);
        }
        Optim::RmsProp => {
            let g = g + decay * *w;
            *v = 0.99 * *v + 0.01 * g * g;
            *w -= rate * g / (v.sqrt() + asked.epsilon);
        }
    }
}

/// Holds what `run` logged and saved to `truth`, each number within `tol` of it relative to its size or 1.
fn holds(cli: &Cli, run: &str, truth: &Truth, tol: f64) {
    let logged = cli.json_lines(&format!("{run}/metrics.jsonl"));
    let (evaluated, stepped): (Vec<&Value>, Vec<&Value>) = logged.iter().partition(|r| r.get("eval_loss").is_some());
    for (got, computed) in stepped.iter().zip(&truth.computed) {
        let units = if got.get("rewards/chosen").is_some() { "pairs_per_second" } else { "samples_per_second" };
        for (name, want) in ["tokens_per_second", units].into_iter().zip(computed) {
            let all = got[name].as_f64().unwrap() * got["step_seconds"].as_f64().unwrap();
            assert!((all - *want as f64).abs() <= 1e-9 * *want as f64, "{run}: {name} of {want}: {got}");
        }
    }
    for (got, want, prefix) in [(stepped, &truth.steps, ""), (evaluated, &truth.evaluations, "eval_")] {
        assert_eq!(got.len(), want.len(), "{run}: rows with {prefix}loss");
        for (got, want) in got.iter().zip(want) {
            for (key, want) in want {
                let name = if *key == "step" { "step".to_owned() } else { format!("{prefix}{key}") };
                let value = got[&name].as_f64().unwrap_or_else(|| panic!("{run}: no {name} in {got}"));
                // What does not depend on arithmetic is exact in f32 too; `epoch` and the rate are f64 everywhere.
                let tol = match *key {
                    "step" | "num_tokens" => 0.0,
                    "epoch" | "learning_rate" => 1e-14,
                    _ => tol,
                };
                assert!(
                    (value - want).abs() <= tol * want.abs().max(1.0),
                    "{run}: {name}: {value}, not {want}, in {got}"
                );
            }
        }
    }
    let saved = model_common::files::tensors(&cli.path(run).join("model.safetensors"));
    assert_eq!(saved.keys().collect::<Vec<_>>(), truth.weights.keys().collect::<Vec<_>>());
    for (name, (_, _, bytes)) in &saved {
        for (i, (got, want)) in bytes.chunks(4).zip(&truth.weights[name]).enumerate() {
            let got = f64::from(f32::from_le_bytes(got.try_into().unwrap()));
            // The file's own rounding, and the run's.
            let tol = want.abs() * 2f64.powi(-24) + tol;
            assert!((got - want).abs() <= tol, "{run}: {name}[{i}]: {got}, not {want}");
        }
    }
}

/// What a run answers: its steps, its first and its last evaluation, and each in a line.
fn answers(asked: &Asked, got: &Summary, truth: &Truth, n: u64) {
    assert_eq!(got.steps, truth.steps.len() as u64);
    let (first, last) = got.eval.as_ref().expect("something is held out");
    for (got, want) in [(first, &truth.evaluations[0]), (last, truth.evaluations.last().unwrap())] {
        let loss = want["loss"];
        assert!((got.mean_loss() - loss).abs() <= 1e-11, "{} {loss}", got.mean_loss());
        let line = match asked.dpo {
            None => format!("loss {loss:.4}, token accuracy {:.3}", got.hits / got.scored_tokens as f64),
            Some(_) => {
                let [low, high] = wilson_95(want["rewards/accuracies"], n);
                format!(
                    "loss {loss:.4}, accuracy {:.3} [{low:.3}, {high:.3}], margin {:.4}, {n} pairs",
                    want["rewards/accuracies"], want["rewards/margins"]
                )
                .replace("margin -0.0000,", "margin 0.0000,")
            }
        };
        assert_eq!(eval::line(got), line);
    }
}

/// The run by the binary and by the library, both against the loop.
fn check(asked: &Asked) -> Truth {
    let cli = Cli::new();
    cli.model("qwen2", "qwen2");
    cli.model("qwen3", "qwen3");
    let (train, mut held_out) = (rows(7, 0), rows(3, 20));
    // Positions and buffers of a run are for what is held out too.
    let longest = train.iter().map(|r| r.prompt.len() + r.chosen.len().max(r.rejected.len())).max().unwrap();
    let last = held_out.last_mut().unwrap();
    last.rejected = vec![last.rejected[0]];
    let room = longest + 2 - last.prompt.len() - last.chosen.len();
    last.chosen.splice(0..0, (0..room as u32).map(|i| 5 + i));
    for (name, rows) in [("d", &train), ("held-out", &held_out)] {
        cli.write_rows("rows.jsonl", &jsonl(rows));
        cli.ok(&format!("pack --tokenizer {} --input rows.jsonl --out {name}", asked.model));
    }
    std::fs::rename(cli.path("held-out/train-00000.pref"), cli.path("d/eval-00000.pref")).unwrap();
    let truth = truth(&cli, asked, &train, &held_out);
    cli.ok(&asked.command("f32"));
    // Sums of f32 products in a network of two layers; the optimiser's large epsilon keeps what they lose from growing.
    holds(&cli, "f32", &truth, 2e-5);
    let mut options: toml::Table = cli.text("f32/config.toml").parse().unwrap();
    options.insert("out".into(), "f64".into());
    for key in ["model", "data", "ref_model", "out"] {
        if let Some(dir) = options.get_mut(key) {
            *dir = cli.path(dir.as_str().unwrap()).to_str().unwrap().into();
        }
    }
    let stage = if asked.dpo.is_some() { Stage::Dpo } else { Stage::Sft };
    let c = TrainOptions::from_table(stage, &options).unwrap();
    let summary = fusedpo::train::run::train(&cpu64(), &c, &mut Silent).unwrap();
    holds(&cli, "f64", &truth, 1e-11);
    answers(asked, &summary, &truth, held_out.len() as u64);
    truth
}

fn dpo() -> Asked {
    Asked {
        stage: "dpo",
        model: "qwen3",
        dpo: Some(("m", 0.3, 0.1)),
        optim: Optim::AdamW(0.8, 0.95),
        after: After::Cosine,
        peak: 1e-2,
        warmup: (0, 0.4),
        decay: 0.2,
        max_norm: 0.5,
        epsilon: 1e-3,
        batch: 2,
        epochs: 1.3,
        seed: 42,
        eval_steps: 2,
        token_budget: 20,
    }
}

/// Seven pairs, two a step: four steps and, of the second epoch, the two that 0.3 of it begin.
#[test]
fn dpo_with_adamw() {
    let asked = dpo();
    let plan = asked.plan(7);
    assert_eq!(plan.len(), 6);
    assert_ne!(plan[0].1, plan[4].1, "the epochs' orders must differ for this test to see it");
    let truth = check(&asked);
    let column = |key: &str| truth.steps.iter().map(|r| r[key]).collect::<Vec<_>>();
    assert!(column("grad_norm").iter().all(|n| *n > 1.1 * asked.max_norm), "clips: {:?}", column("grad_norm"));
    // 0.4 of six steps: a warm-up of three, not of two.
    assert_eq!(column("learning_rate")[..4], [0.0, 1e-2 / 3.0, 2e-2 / 3.0, 1e-2]);
    assert_eq!(column("epoch"), [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]);
    assert_eq!(truth.evaluations.iter().map(|r| r["step"]).collect::<Vec<_>>(), [0.0, 2.0, 4.0, 6.0]);
}

/// No clipping: the norm is below the bound.
#[test]
fn dpo_with_rmsprop() {
    let asked = Asked {
        optim: Optim::RmsProp,
        after: After::Constant,
        warmup: (2, 0.0),
        peak: 1e-3,
        max_norm: 1e3,
        epochs: 2.0,
        eval_steps: 0,
        ..dpo()
    };
    let truth = check(&asked);
    assert_eq!(truth.evaluations.iter().map(|r| r["step"]).collect::<Vec<_>>(), [0.0, 8.0]);
}

/// The mean over a step's tokens, not over its responses or micro-batches.
#[test]
fn sft_with_adamw() {
    let asked = Asked {
        stage: "sft",
        model: "qwen2",
        dpo: None,
        after: After::Linear,
        warmup: (1, 0.0),
        batch: 3,
        epochs: 2.5,
        seed: 7,
        eval_steps: 3,
        token_budget: 16,
        ..dpo()
    };
    let truth = check(&asked);
    assert_eq!(truth.steps.len(), 8);
    assert!(truth.steps.iter().all(|r| r["grad_norm"] > 1.1 * asked.max_norm));
}

/// Updates that the saved numbers are too coarse for are no changes.
#[test]
fn rounded_away_is_not_changed() {
    let cli = Cli::with_data();
    let run = |rate: f64, out: &str| {
        let mut o = TrainOptions::default();
        (o.files.model, o.files.data, o.files.out) = (cli.path("m"), cli.path("d"), cli.path(out));
        (o.schedule.learning_rate, o.data.max_steps) = (rate, Some(1));
        fusedpo::train::run::train(&cpu64(), &o.resolve(Stage::Sft).unwrap(), &mut Silent).unwrap().changed_share
    };
    assert_eq!(run(1e-14, "small"), 0.0);
    assert!(run(1e-3, "large") > 0.9);
}

/// What is held out may need more room of a kind than any training step: longer answers, and more of them side by side.
#[test]
fn there_is_room_for_what_is_held_out() {
    let cli = Cli::new();
    let ids = |n: u32, from: u32| (0..n).map(|i| 3 + (from + i * 7) % 94).collect::<Vec<u32>>();
    let row = |i: u32, prompt: u32, answer: u32| Row {
        prompt: ids(prompt, i),
        chosen: ids(answer, i + 20),
        rejected: ids(answer, i + 50),
        weight: 1.0,
    };
    let train: Vec<Row> = (0..4).map(|i| row(i, 40, 1)).collect();
    let held_out: Vec<Row> = (0..8).map(|i| row(i, 1, 20)).collect();
    for (name, rows) in [("d", &train), ("held-out", &held_out)] {
        cli.write_rows("rows.jsonl", &jsonl(rows));
        cli.ok(&format!("pack --tokenizer m --input rows.jsonl --out {name}"));
    }
    std::fs::rename(cli.path("held-out/train-00000.pref"), cli.path("d/eval-00000.pref")).unwrap();
    for stage in ["sft", "dpo"] {
        cli.ok(&format!("{stage} --model m --data d --out {stage} --device cpu --batch-size 2 --token-budget 128"));
        assert_eq!(cli.json_lines(&format!("{stage}/metrics.jsonl")).len(), 2 + 2, "two steps, two evaluations");
    }
}
