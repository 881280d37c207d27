//! Four random 2-layer models against `tests/golden/golden.json`: an independent float64 forward pass in Python that
//! agrees with transformers. Log-probs, losses and gradients, in f64 and in f32.

use crate::model_common;

use fusedpo::backend::*;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use model_common::*;
use serde_json::Value;

const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(project("tests/golden/golden.json")).unwrap()).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// The golden's rows as groups, with the reference log-probs of one model.
fn groups(golden: &Value, model: &str) -> Vec<Group> {
    let rows = golden["rows"].as_array().unwrap().iter();
    let mut groups: Vec<Group> = rows
        .map(|r| Group {
            prompt: ids(&r["prompt_ids"]),
            responses: r["responses_ids"].as_array().unwrap().iter().map(ids).collect(),
            ..Group::default()
        })
        .collect();
    for r in golden["models"][model]["responses"].as_array().unwrap() {
        groups[r["row"].as_u64().unwrap() as usize].ref_logps.push(r["ref_logp"].as_f64().unwrap());
    }
    for p in golden["pairs"].as_array().unwrap() {
        let p = ids(p);
        groups[p[0] as usize].pairs.push((p[1] as usize, p[2] as usize, 1.0));
    }
    groups
}

fn load<B: Backend>(be: &B, name: &str) -> Model<B> {
    Model::load(be, &ModelDir::open(&project(&format!("tests/golden/{name}"))).unwrap(), 64).unwrap()
}

/// `policy[i] = f32(w[i] + f32(0.05 * sin(0.37 * i)))`, i within each tensor.
fn perturb<B: Backend>(be: &B, m: &mut Model<B>) {
    let mut w = read(be, &m.weights, m.table.len);
    for spec in &m.table.specs {
        for (i, v) in w[spec.at.clone()].iter_mut().enumerate() {
            *v = f64::from(*v as f32 + (0.05 * (0.37 * i as f64).sin()) as f32);
        }
    }
    let w: Vec<B::Act> = w.into_iter().map(B::Act::from_f64).collect();
    be.upload(be.view_mut(&mut m.weights, 0..w.len()), &w).unwrap();
}

fn close(what: &str, got: f64, want: f64, tol: f64) {
    assert!((got - want).abs() <= tol * (1.0 + want.abs()), "{what}: {got}, golden {want}");
}

/// `tol`: relative, f64 rounding through two layers; for f32, see the caller.
fn check<B: Backend>(be: &B, name: &str, tol: f64) {
    let g = golden();
    let want = &g["models"][name];
    let groups = groups(&g, name);
    // Two micro-batches, with dummy tails, so that packing and accumulation are part of the check.
    let batches = [pack(&groups[..4], 3), pack(&groups[4..], 5)];
    let mut m = load(be, name);
    let reference = score(be, &m, &batches);
    perturb(be, &mut m);
    let policy = score(be, &m, &batches);
    for (i, r) in want["responses"].as_array().unwrap().iter().enumerate() {
        for (got, key) in [(&reference[i], "ref_token_logps"), (&policy[i], "policy_token_logps")] {
            let want = floats(&r[key]);
            assert_eq!(got.len(), want.len(), "{name} response {i}");
            got.iter().zip(&want).for_each(|(a, b)| close(&format!("{name} response {i} {key}"), *a, *b, tol));
        }
    }
    losses(be, &m, &batches, name, want, tol);
    gradients(be, &m, &batches, name, want, tol);
}

fn losses<B: Backend>(
    be: &B,
    m: &Model<B>,
    batches: &[fusedpo::batch::MicroBatch],
    name: &str,
    want: &Value,
    tol: f64,
) {
    let table = [
        ("sigmoid", LossType::Sigmoid, 0.0),
        ("sigmoid|label_smoothing=0.1", LossType::Sigmoid, 0.1),
        ("hinge", LossType::Hinge, 0.0),
        ("ipo", LossType::Ipo, 0.0),
    ];
    for (key, loss_type, label_smoothing) in table {
        let spec = LossSpec::of(loss_type).beta(0.1).label_smoothing(label_smoothing);
        let got = train(be, m, batches, &spec, 1.0 / 8.0).pair_losses;
        let want = floats(&want["losses"][key]["per_pair"]);
        assert_eq!(got.len(), want.len());
        got.iter().zip(&want).for_each(|(a, b)| close(&format!("{name} {key}"), *a, *b, tol));
    }
}

fn gradients<B: Backend>(
    be: &B,
    m: &Model<B>,
    batches: &[fusedpo::batch::MicroBatch],
    name: &str,
    want: &Value,
    tol: f64,
) {
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    let grads = train(be, m, batches, &spec, 1.0 / 8.0).grads;
    let want = &want["gradient"];
    close(&format!("{name} gradient norm"), norm(&grads), want["global_norm"].as_f64().unwrap(), tol);
    let tensors = want["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), m.table.specs.len());
    for (tensor, want) in tensors {
        let got = &grads[m.table.spec(tensor).unwrap().at.clone()];
        close(&format!("{name} gradient of {tensor}"), norm(got), want["norm"].as_f64().unwrap(), tol);
        got.iter().zip(floats(&want["first8"])).for_each(|(a, b)| close(&format!("{name} {tensor}"), *a, b, tol));
    }
}

#[test]
fn f64_agrees_to_1e_9() {
    MODELS.iter().for_each(|name| check(&cpu64(), name, 1e-9));
}

/// Mean over the tokens of every row's first response.
#[test]
fn sft_loss_agrees() {
    let (be, g) = (cpu64(), golden());
    let spec = LossSpec::of(LossType::Sft).beta(0.1);
    for name in MODELS {
        let mut m = load(&be, name);
        perturb(&be, &mut m);
        let mut groups = groups(&g, name);
        groups.iter_mut().for_each(|g| {
            g.responses.truncate(1);
            g.pairs.clear();
        });
        let batch = pack(&groups, 0);
        let tokens = batch.predictions().len() as f64;
        let loss = train(&be, &m, &[batch], &spec, 1.0 / tokens).response_losses.iter().sum::<f64>() / tokens;
        close(&format!("{name} sft"), loss, g["models"][name]["losses"]["sft"]["loss"].as_f64().unwrap(), 1e-9);
    }
}

/// Mean sigmoid loss after one step from the policy. Adam's first step is nearly lr * sign(g), so only f64 is compared.
#[test]
fn one_optimiser_step_agrees() {
    let (be, g) = (cpu64(), golden());
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    let adam = Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    for name in MODELS {
        let batches = [pack(&groups(&g, name), 0)];
        for (key, update) in [("adamw_lr_1e-3", Some(adam)), ("sgd_lr_1e-1", None)] {
            let mut m = load(&be, name);
            perturb(&be, &mut m);
            let grads = train(&be, &m, &batches, &spec, 1.0 / 8.0).grads;
            match update {
                Some(update) => {
                    let (mut first, mut second) = (vec![0.0; grads.len()], vec![0.0; grads.len()]);
                    let norm = [norm(&grads)];
                    be.update(Update {
                        w: &mut m.weights,
                        master: None,
                        m: &mut first,
                        v: &mut second,
                        g: &grads,
                        norm: &norm,
                        max_grad_norm: 0.0,
                        rule: update,
                    })
                    .unwrap();
                }
                None => m.weights.iter_mut().zip(&grads).for_each(|(w, g)| *w -= 0.1 * g),
            }
            let loss = train(&be, &m, &batches, &spec, 1.0 / 8.0).pair_losses.iter().sum::<f64>() / 8.0;
            let want = g["models"][name]["loss_after_one_step"][key].as_f64().unwrap();
            close(&format!("{name} {key}"), loss, want, 1e-9);
        }
    }
}

/// The golden's own script allows 2e-5 between transformers in f32 and f64; hinge and IPO add up 40 token log-probs of
/// about 5 nats, each good to a few 1e-6.
#[test]
fn f32_agrees_to_rounding() {
    MODELS.iter().for_each(|name| check(&cpu32(), name, 5e-5));
}
