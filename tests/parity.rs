//! SmolLM2-135M-Instruct against the f64 truth and TRL's numbers on 16 real preference pairs.
//!
//! Needs `FUSEDPO_TEST_DATA` (goldens/golden_hh16.json) and `FUSEDPO_TEST_MODEL`, the model's directory as
//! `scripts/fetch_smollm2.py` makes it; skipped otherwise.

mod model_common;

use fusedpo::backend::Device;
use fusedpo::backend::cpu::Cpu;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer};
use model_common::*;
use serde_json::Value;
use std::path::PathBuf;

/// Nats, of a sum over up to 300 tokens.
const LOGP_TOL: f64 = 1e-3;
/// Of a mean over pairs.
const LOSS_TOL: f64 = 1e-4;
/// Relative.
const GRAD_TOL: f64 = 1e-3;

fn inputs() -> Option<(Value, PathBuf)> {
    let data = test_data("parity", "goldens/golden_hh16.json")?;
    let Some(model) = std::env::var_os("FUSEDPO_TEST_MODEL") else {
        println!("skipped: parity (FUSEDPO_TEST_MODEL is not set)");
        return None;
    };
    Some((serde_json::from_slice(&std::fs::read(data).unwrap()).unwrap(), model.into()))
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn group(pair: &Value) -> Group {
    Group {
        prompt: ids(&pair["prompt_ids"]),
        responses: vec![ids(&pair["chosen_ids"]), ids(&pair["rejected_ids"])],
        ref_logps: ["ref_chosen_logp_f64", "ref_rejected_logp_f64"].map(|k| pair[k].as_f64().unwrap()).to_vec(),
        pairs: vec![(0, 1, 1.0)],
    }
}

/// `w[r,c] = f32(w + f32(0.02*sin(0.01*i)))`, i = r*1536 + c, on every down projection.
fn perturb(be: &Cpu<f32>, m: &mut Model<Cpu<f32>>) {
    for spec in m.table.specs.iter().filter(|s| s.name.ends_with("mlp.down_proj.weight")) {
        let mut w = vec![0f32; spec.at.len()];
        be.download(&mut w, be.view(&m.weights, spec.at.clone())).unwrap();
        w.iter_mut().enumerate().for_each(|(i, v)| *v += (0.02 * (0.01 * i as f64).sin()) as f32);
        be.upload(be.view_mut(&mut m.weights, spec.at.clone()), &w).unwrap();
    }
}

fn check_logps(what: &str, got: &[Vec<f64>], golden: &Value) {
    let mut worst: f64 = 0.0;
    for (i, pair) in golden["pairs"].as_array().unwrap().iter().enumerate() {
        for (j, side) in ["chosen", "rejected"].iter().enumerate() {
            let want = pair[format!("{what}_{side}_logp_f64")].as_f64().unwrap();
            let sum: f64 = got[2 * i + j].iter().sum();
            assert!((sum - want).abs() <= LOGP_TOL, "{what} pair {i} {side}: {sum}, golden {want}");
            worst = worst.max((sum - want).abs());
        }
    }
    println!("{what}: worst sequence log-prob differs by {worst:.1e} nat");
}

fn check_gradient(be: &Cpu<f32>, m: &Model<Cpu<f32>>, groups: &[Group], want: &Value) {
    let batches: Vec<MicroBatch> = groups[..4].chunks(2).map(|g| pack(g, 0)).collect();
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    let step = train(be, m, &batches, &spec, 0.25);
    let loss = step.pair_losses.iter().sum::<f64>() / 4.0;
    let golden = want["loss_f64"].as_f64().unwrap();
    assert!((loss - golden).abs() <= 1e-4, "loss {loss}, golden {golden}");
    let mut worst: f64 = 0.0;
    let mut relative = |what: &str, got: f64, want: f64| {
        assert!((got / want - 1.0).abs() <= GRAD_TOL, "gradient norm of {what}: {got}, golden {want}");
        worst = worst.max((got / want - 1.0).abs());
    };
    relative("all", norm(&step.grads), want["global_norm_f64"].as_f64().unwrap());
    for (name, want) in want["tensors"].as_object().unwrap() {
        relative(name, norm(&step.grads[m.table.spec(name).unwrap().at.clone()]), want["norm_f64"].as_f64().unwrap());
    }
    println!("gradient norms: worst differs by {worst:.1e} relative");
}

fn evaluate(engine: &mut Engine<'_, Cpu<f32>>, batches: &[MicroBatch], spec: &LossSpec) -> Totals {
    let mut totals = Totals::default();
    batches.iter().for_each(|mb| engine.evaluate(mb, spec, &mut totals).unwrap());
    totals
}

fn check_losses(engine: &mut Engine<'_, Cpu<f32>>, batches: &[MicroBatch], golden: &Value) {
    let table = [
        ("sigmoid", LossType::Sigmoid, 0.0),
        ("cdpo_0.1 (not in TRL 1.16)", LossType::Sigmoid, 0.1),
        ("hinge", LossType::Hinge, 0.0),
        ("ipo", LossType::Ipo, 0.0),
    ];
    for (key, loss_type, label_smoothing) in table {
        let got =
            evaluate(engine, batches, &LossSpec::of(loss_type).beta(0.1).label_smoothing(label_smoothing)).mean_loss();
        let want = golden["losses"][key]["loss_f64"].as_f64().unwrap();
        assert!((got - want).abs() <= LOSS_TOL, "{key}: {got}, golden {want}");
        println!("{key}: mean loss differs by {:.1e}", (got - want).abs());
    }
    // SFT trains on the chosen responses alone.
    let chosen: Vec<MicroBatch> = golden["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let mut g = group(p);
            g.responses.truncate(1);
            g.pairs.clear();
            pack(&[g], 0)
        })
        .collect();
    let spec = LossSpec::of(LossType::Sft).beta(1.0);
    let (got, want) =
        (evaluate(engine, &chosen, &spec).mean_loss(), golden["losses"]["sft"]["loss_f64"].as_f64().unwrap());
    assert!((got - want).abs() <= LOSS_TOL, "sft: {got}, golden {want}");
}

/// What TRL itself logged for these 16 pairs as one batch.
fn check_metrics(engine: &mut Engine<'_, Cpu<f32>>, batches: &[MicroBatch], want: &Value) {
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    let totals = evaluate(engine, batches, &spec);
    let got = totals.to_json("");
    for key in [
        "entropy",
        "mean_token_accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    ] {
        let (got, want) = (got[key].as_f64().unwrap(), want[key].as_f64().unwrap());
        assert!((got - want).abs() <= 1e-4 + 1e-6 * want.abs(), "{key}: {got}, TRL {want}");
    }
    assert_eq!(totals.tokens_with_prompts, want["num_tokens"].as_u64().unwrap());
}

/// The loss of four pairs after one AdamW step from the perturbed policy.
fn check_step(engine: &mut Engine<'_, Cpu<f32>>, groups: &[Group], want: &Value) {
    let batches = [pack(groups, 0)];
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    let unclipped = OptimOptions { max_grad_norm: 0.0, ..Default::default() };
    let mut opt = Optimizer::new(engine.be, &mut engine.state, &unclipped).unwrap();
    engine.clear_grads().unwrap();
    engine.accumulate(&batches[0], &spec, 0.25, &mut Totals::default()).unwrap();
    opt.step(engine.be, &mut engine.state, 1e-6).unwrap();
    let got = evaluate(engine, &batches, &spec).mean_loss();
    let want = want["adamw_lr_1e-6"]["loss_after_f64"].as_f64().unwrap();
    assert!((got - want).abs() <= 1e-3, "after one AdamW step: {got}, golden {want}");
    println!("after one AdamW step the loss differs by {:.1e}", (got - want).abs());
}

#[test]
fn smollm2_agrees_with_the_f64_truth() {
    let Some((golden, dir)) = inputs() else { return };
    let groups: Vec<Group> = golden["pairs"].as_array().unwrap().iter().map(group).collect();
    let batches: Vec<MicroBatch> = groups.chunks(4).map(|g| pack(g, 0)).collect();
    let be = cpu32();
    let mut m = Model::load(&be, &ModelDir::open(&dir).unwrap(), 1024).unwrap();
    check_logps("ref", &score(&be, &m, &batches), &golden);
    perturb(&be, &mut m);
    check_logps("policy", &score(&be, &m, &batches), &golden);
    check_gradient(&be, &m, &groups, &golden["grad4_sigmoid"]);
    let mut engine = Engine::new(&be, m, capacity(&batches), Purpose::Train).unwrap();
    check_losses(&mut engine, &batches, &golden);
    check_metrics(&mut engine, &batches, &golden["trl_metrics_batch"]);
    check_step(&mut engine, &groups[..4], &golden["step4"]);
}
