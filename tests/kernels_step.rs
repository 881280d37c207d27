//! A whole training step through the kernels: forward, head, loss, backward, AdamW on models of every supported kind, against
//! the CPU backend in f64; and a short training run. On the host, where products are Rust's and everything else is `kernels/`,
//! and on a GPU where there is one (`common/device.rs`).

#[path = "common/device.rs"]
mod device;
#[path = "common/host.rs"]
mod host;
mod model_common;

use device::{Place, SameBits};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{AdapterInit, AdapterShape, Gradients, Model, ModelConfig, ModelDir, Quantized};
use half::bf16;
use model_common::{Group, Step, norm, pack, read, score, train, workspace};
use std::path::{Path, PathBuf};

const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.3).label_smoothing(0.1);
const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];
const POSITIONS: usize = 64;

fn golden(name: &str) -> PathBuf {
    model_common::project("tests/golden").join(name)
}
fn load<B: Backend>(be: &B, dir: &Path) -> Model<B> {
    Model::load(be, &ModelDir::open(dir).unwrap(), POSITIONS).unwrap()
}

/// Groups of several shapes: two responses, three with a long prompt, an empty prompt.
fn groups(vocab: usize) -> Vec<Group> {
    let mut next = 12345u64;
    let mut tokens = |n: usize| -> Vec<u32> {
        let mut one = || {
            next = next.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (next >> 33) as u32 % vocab as u32
        };
        (0..n).map(|_| one()).collect()
    };
    [(5, vec![7, 3]), (21, vec![2, 9, 4]), (0, vec![6, 5])]
        .into_iter()
        .map(|(prompt, lens)| Group {
            prompt: tokens(prompt),
            responses: lens.iter().map(|n| tokens(*n)).collect(),
            ref_logps: lens.iter().map(|n| -4.0 * *n as f64).collect(),
            pairs: vec![(0, 1, 1.0), (lens.len() - 1, 0, 0.5)],
        })
        .collect()
}
fn batches(vocab: usize) -> Vec<MicroBatch> {
    let g = groups(vocab);
    vec![pack(&g[..2], 5), pack(&g[2..], 53)]
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    norm(&got.iter().zip(want).map(|(g, w)| g - w).collect::<Vec<_>>()) / norm(want)
}

/// A step in f64 with the model as it is.
fn exact_step(dir: &Path) -> Step {
    let exact = Cpu::<f64>::new().unwrap();
    let model = load(&exact, dir);
    train(&exact, &model, &batches(model.config.vocab_size), &SPEC, 0.2)
}
fn step<B: Backend>(be: &B, dir: &Path) -> Step {
    let model = load(be, dir);
    train(be, &model, &batches(model.config.vocab_size), &SPEC, 0.2)
}
/// Relative errors of losses, log-probs and gradients.
fn errors(got: &Step, want: &Step) -> [f64; 3] {
    [
        distance(&got.pair_losses, &want.pair_losses),
        distance(&got.logps, &want.logps),
        distance(&got.grads, &want.grads),
    ]
}

/// Relative error of a step in f32 whose products are summed in an order that nobody here chose: a sum of K terms errs by about
/// sqrt(K) times the rounding unit (Higham and Mary, 2019), and as many products as a number meets on its way through the layers
/// and back err independently.
fn in_any_order(dir: &Path) -> f64 {
    let c = ModelConfig::load(dir).unwrap();
    let longest = c.vocab_size.max(c.intermediate_size).max(c.hidden_size).max(POSITIONS);
    let products = 2 * 7 * c.num_hidden_layers + 2;
    ((longest * products) as f64).sqrt() * f64::from(f32::EPSILON / 2.0)
}

#[test]
fn a_step_in_f32_agrees_with_f64() {
    for (seed, name) in MODELS.iter().enumerate() {
        let (want, mut bits) = (exact_step(&golden(name)), SameBits::new());
        on_devices!(f32, [seed as u64], |be, place| {
            let got = step(be, &golden(name));
            let errors = errors(&got, &want);
            println!("{name}, {place}: losses, log-probs, gradients {errors:?}");
            let bound = in_any_order(&golden(name));
            assert!(errors.iter().all(|e| *e <= bound), "{name}, {place}: {errors:?}, not {bound:e}");
            bits.see(name, place, (got.pair_losses, got.logps, got.grads));
        });
    }
}

/// The same step in f64 with the weights rounded to bf16: what no bf16 engine can avoid.
fn errors_of_rounded_weights(dir: &Path, want: &Step) -> [f64; 3] {
    let exact = Cpu::<f64>::new().unwrap();
    let model = load(&exact, dir);
    let weights = read(&exact, &model.weights, model.table.len);
    let rounded = weights.iter().map(|w| bf16::from_f64(*w).to_f32()).collect();
    let rounded = Model::from_f32(&exact, model.config.clone(), rounded, POSITIONS).unwrap();
    errors(&train(&exact, &rounded, &batches(model.config.vocab_size), &SPEC, 0.2), want)
}

/// Rounding the weights once is one of about a dozen roundings that a number meets on its way through a layer and back; errors
/// that are independent add up to less than twice the largest. The mean over the models, as one alone can be lucky.
#[test]
fn a_step_in_bf16_is_within_bf16_rounding() {
    let exact: Vec<(PathBuf, Step)> = MODELS.iter().map(|m| (golden(m), exact_step(&golden(m)))).collect();
    let sum = |all: &[[f64; 3]]| [0, 1, 2].map(|i| all.iter().map(|e| e[i]).sum::<f64>());
    let least: Vec<[f64; 3]> = exact.iter().map(|(dir, want)| errors_of_rounded_weights(dir, want)).collect();
    on_devices!(bf16, [0, 3], |be, place| {
        // Logits in bf16 are one rounding more.
        for (be, logits) in [(be, "f32"), (&be.with_bf16_logits().unwrap(), "bf16")] {
            let ours: Vec<[f64; 3]> = exact.iter().map(|(dir, want)| errors(&step(be, dir), want)).collect();
            let what = format!("{place}, logits in {logits}");
            println!("{what}: losses, log-probs, gradients by model {ours:.4?}, by rounded weights alone {least:.4?}");
            let (ours, least) = (sum(&ours), sum(&least));
            assert!((0..3).all(|i| ours[i] <= 2.0 * least[i]), "{what}: {ours:?}, by rounded weights alone {least:?}");
        }
    });
}

/// Some parameters alone: their gradients are those of a step in which everything trains, a part of a packed weight too.
#[test]
fn frozen_parameters_leave_the_others_as_they_are() {
    for (seed, name) in MODELS.iter().enumerate() {
        on_devices!(bf16, [seed as u64], |be, place| {
            let mut model = load(be, &golden(name));
            let batches = batches(model.config.vocab_size);
            let all = train(be, &model, &batches, &SPEC, 0.2).grads;
            for part in ["q_proj", "v_proj", "up_proj", "layers.1.mlp.down", "layers.1.self_attn.o", "norm", "embed"] {
                model.table.set_trains(|n| n.contains(part));
                let some = train(be, &model, &batches, &SPEC, 0.2).grads;
                for spec in model.table.specs.iter().filter(|s| s.trains) {
                    let (want, got) = (&all[spec.at.clone()], &some[spec.grad.clone()]);
                    // On a GPU the library may sum up a smaller product in another order.
                    let same = match place {
                        Place::Host(_) => want == got,
                        Place::Cuda(_) => distance(got, want) <= 1e-4,
                    };
                    assert!(same, "{name}, {place}, {part}: {}: {}", spec.name, distance(got, want));
                }
            }
        });
    }
}

/// With an adapter: values and gradients against the CPU in f64, for each of PEFT's goldens; and a new adapter changes no bit.
#[test]
fn adapters_agree_with_the_cpu() {
    let exact = Cpu::<f64>::new().unwrap();
    for (seed, name) in MODELS.iter().enumerate() {
        for kind in ["all", "some-rslora"] {
            let base = ModelDir::open(&golden(name)).unwrap();
            let folder = golden("adapters").join(format!("{name}-{kind}"));
            let dir = base.with_adapter(&folder).unwrap();
            let dropping = base.with_adapter_dropping(&folder, Some(0.3)).unwrap();
            let wanted = Model::load(&exact, &dir, POSITIONS).unwrap();
            let batches = batches(wanted.config.vocab_size);
            let want = train(&exact, &wanted, &batches, &SPEC, 0.2);
            on_devices!(f32, [seed as u64], |be, place| {
                let model = Model::load(be, &dir, POSITIONS).unwrap();
                let errors = errors(&train(be, &model, &batches, &SPEC, 0.2), &want);
                println!("{name}, {kind}, {place}: losses, log-probs, gradients {errors:?}");
                let bound = if let Place::Host(_) = place { 4e-6 } else { 2.0 * in_any_order(&golden(name)) };
                assert!(errors.iter().all(|e| *e <= bound), "{name}, {kind}, {place}: {errors:?}, not {bound:e}");
                let errors = under_dropout(be, &dropping, &batches);
                println!("{name}, {kind}, {place}, dropout: losses, log-probs, gradients {errors:?}");
                assert!(errors.iter().all(|e| *e <= bound), "{name}, {kind}, {place}: {errors:?}, not {bound:e}");
            });
            on_devices!(bf16, [seed as u64], |be, place| {
                let model = Model::load(be, &dir, POSITIONS).unwrap();
                let errors = errors(&train(be, &model, &batches, &SPEC, 0.2), &want);
                println!("{name}, {kind}, {place}, bf16: losses, log-probs, gradients {errors:?}");
                assert!(
                    errors[0] <= 0.04 && errors[1] <= 0.006 && errors[2] <= 0.1,
                    "{name}, {kind}, {place}: {errors:?}"
                );
                let new = base.with_new_adapter(AdapterShape::new(8, 16.0).unwrap(), AdapterInit::Kaiming, 1).unwrap();
                let [plain, new] = [&base, &new].map(|d| Model::load(be, d, POSITIONS).unwrap());
                assert_eq!(score(be, &plain, &batches), score(be, &new, &batches), "{name}, {place}: a new adapter");
            });
        }
    }
}

/// Relative errors of a step whose adapter drops some of its input, against the CPU in f64 with the same draws.
fn under_dropout<B: Backend>(be: &B, dir: &ModelDir, batches: &[MicroBatch]) -> [f64; 3] {
    let mut batches = batches.to_vec();
    batches.iter_mut().for_each(|b| b.draw_from(dropout::of_step(3, 4)));
    let exact = Cpu::<f64>::new().unwrap();
    let want = train(&exact, &Model::load(&exact, dir, POSITIONS).unwrap(), &batches, &SPEC, 0.2);
    errors(&train(be, &Model::load(be, dir, POSITIONS).unwrap(), &batches, &SPEC, 0.2), &want)
}

/// Beside weights in four bits: values and gradients of an adapter against the CPU in f64, which has the same numbers.
#[test]
fn four_bits_agree_with_the_cpu() {
    let exact = Cpu::<f64>::new().unwrap();
    let quantized = |(seed, name): (usize, &&'static str)| {
        (seed, *name, ModelDir::open(&golden(name)).unwrap().quantized(Quantized { double: seed % 2 == 0 }).unwrap())
    };
    // And of directories in which some modules are not: a weight is put together of both.
    let some = ["qwen2", "llama3-tied"].map(|name| (7, name, golden("nf4").join(format!("{name}-skip"))));
    let some = some.into_iter().map(|(seed, name, dir)| (seed, name, ModelDir::open(&dir).unwrap()));
    for (seed, name, held) in MODELS.iter().enumerate().map(quantized).chain(some) {
        let dir = held.with_adapter(&golden("adapters").join(format!("{name}-all"))).unwrap();
        let wanted = Model::load(&exact, &dir, POSITIONS).unwrap();
        let batches = batches(wanted.config.vocab_size);
        let want = train(&exact, &wanted, &batches, &SPEC, 0.2);
        on_devices!(f32, [seed as u64], |be, place| {
            let model = Model::load(be, &dir, POSITIONS).unwrap();
            let errors = errors(&train(be, &model, &batches, &SPEC, 0.2), &want);
            println!("{name}, {place}: losses, log-probs, gradients {errors:?}");
            let bound = if let Place::Host(_) = place { 4e-6 } else { 2.0 * in_any_order(&golden(name)) };
            assert!(errors.iter().all(|e| *e <= bound), "{name}, {place}: {errors:?}, not {bound:e}");
        });
        on_devices!(bf16, [seed as u64], |be, place| {
            let model = Model::load(be, &dir, POSITIONS).unwrap();
            let errors = errors(&train(be, &model, &batches, &SPEC, 0.2), &want);
            println!("{name}, {place}, bf16: losses, log-probs, gradients {errors:?}");
            assert!(errors[0] <= 0.04 && errors[1] <= 0.006 && errors[2] <= 0.1, "{name}, {place}: {errors:?}");
        });
    }
}

#[test]
fn schedules_and_runs_do_not_change_a_bit() {
    let mut bits = SameBits::new();
    on_devices!(bf16, 0..4, |be, place| {
        let step = step(be, &golden("qwen3"));
        bits.see("a step", place, (step.pair_losses, step.logps, step.grads));
    });
}

/// Threads that share a device share its stream and its scratch: none may come between the kernels of another's op.
#[test]
fn threads_that_share_a_device_do_not_disturb_each_other() {
    on_devices!(f32, [5], |be, place| {
        let alone: Vec<Step> = MODELS.iter().map(|m| step(be, &golden(m))).collect();
        let together: Vec<Step> = std::thread::scope(|scope| {
            let all: Vec<_> = MODELS.iter().map(|m| scope.spawn(move || step(be, &golden(m)))).collect();
            all.into_iter().map(|thread| thread.join().expect("a step")).collect()
        });
        for ((alone, together), model) in alone.iter().zip(&together).zip(MODELS) {
            assert!(
                alone.logps == together.logps && alone.pair_losses == together.pair_losses,
                "{model}, {place}: losses"
            );
            assert!(alone.grads == together.grads, "{model}, {place}: gradients");
        }
    });
}

/// What the step-0 proof rests on: a response's log-probs do not depend on what is packed beside it. On the host not on the
/// number of slots either; on a GPU the library may take another algorithm for another number (`Device::SHAPES_BY_CAPACITY`).
fn packing<A: GpuFloat>() {
    on_devices!(A, [1], |be, place| {
        let model = load(be, &golden("llama"));
        let groups = groups(model.config.vocab_size);
        let slots = pack(&groups, 3).slots();
        let packed = |groups: &[Group], tail: usize| match place {
            Place::Host(_) => pack(groups, tail),
            Place::Cuda(_) => pack(groups, slots - pack(groups, 0).slots()),
        };
        let together = score(be, &model, &[packed(&groups, 3)]);
        let apart: Vec<MicroBatch> =
            groups.iter().enumerate().map(|(i, g)| packed(std::slice::from_ref(g), 40 + 7 * i)).collect();
        assert_eq!(score(be, &model, &apart), together, "{place}");
        let reversed: Vec<Group> = groups.iter().rev().cloned().collect();
        let mut back: Vec<Vec<f64>> = Vec::new();
        let scores = score(be, &model, &[packed(&reversed, 0)]);
        let mut at = scores.len();
        for g in &groups {
            at -= g.responses.len();
            back.extend_from_slice(&scores[at..at + g.responses.len()]);
        }
        assert_eq!(back, together, "{place}");
    });
}
#[test]
fn log_probs_do_not_depend_on_packing_in_bf16() {
    packing::<bf16>();
}
#[test]
fn log_probs_do_not_depend_on_packing_in_f32() {
    packing::<f32>();
}

/// Losses of `steps` AdamW steps on one batch, and the weights after them.
fn run_training<B: Backend>(be: &B, dir: &Path, batch: &MicroBatch, steps: u64) -> (Vec<f64>, Vec<f64>) {
    let mut model = load(be, dir);
    let n = model.table.len;
    let mut ws = workspace(be, &model, std::slice::from_ref(batch), true);
    let mut master = B::MASTER_WEIGHTS.then(|| model.master(be).unwrap());
    let acc = |name: &str| be.zeros::<B::Acc>(name, n).unwrap();
    let (mut grads, mut m, mut v) = (Gradients::new(be, &model.table, false).unwrap(), acc("m"), acc("v"));
    let mut norm = be.zeros::<f64>("norm", 1).unwrap();
    let mut losses = Vec::new();
    for step in 1..=steps {
        grads.clear(be, &model.table).unwrap();
        let scale = 1.0 / batch.pairs().iter().map(|p| f64::from(p.weight)).sum::<f64>();
        model_common::run(be, (&model, &mut ws, &mut grads), batch, (&SPEC, scale), None);
        let pairs = read(be, &ws.pair_stats, batch.pairs().len() * fusedpo::backend::PAIR_STATS);
        let weighted = pairs.chunks(fusedpo::backend::PAIR_STATS).zip(batch.pairs());
        losses.push(weighted.map(|(l, p)| l[0] * f64::from(p.weight)).sum::<f64>() * scale);
        be.grad_norm(GradNorm { norm: be.view_mut(&mut norm, 0..1), g: be.view(grads.all().unwrap(), 0..n) }).unwrap();
        let update = Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step };
        let shadow = master.as_mut().map(|b| be.view_mut(b, 0..n));
        let (m, v) = (be.view_mut(&mut m, 0..n), be.view_mut(&mut v, 0..n));
        let w = be.view_mut(&mut model.weights, 0..n);
        be.update(Update {
            w,
            master: shadow,
            m,
            v,
            g: be.view(grads.all().unwrap(), 0..n),
            norm: be.view(&norm, 0..1),
            max_grad_norm: 1.0,
            rule: update,
        })
        .unwrap();
    }
    (losses, read(be, &model.weights, n))
}

fn training_agrees(dir: &Path, batch: &MicroBatch, steps: u64) {
    let (want, weights) = run_training(&Cpu::<f64>::new().unwrap(), dir, batch, steps);
    assert!(want[steps as usize - 1] < 0.9 * want[0], "the reference itself learns: {want:?}");
    let mut bits = SameBits::new();
    on_devices!(f32, [2], |be, place| {
        let (got, w) = run_training(be, dir, batch, steps);
        println!("f32, {place}: losses {got:.5?}, weights {:.1e}", distance(&w, &weights));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-4 * w), "{place}: {got:?}, want {want:?}");
        assert!(distance(&w, &weights) <= 1e-4, "{place}");
        bits.see("a run in f32", place, (got, w));
    });
    let mut bits = SameBits::new();
    on_devices!(bf16, [3], |be, place| {
        let (got, w) = run_training(be, dir, batch, steps);
        println!("bf16, {place}: losses {got:.5?}, weights {:.1e}; f64: {want:.5?}", distance(&w, &weights));
        let close = |(g, w): (&f64, &f64)| (g - w).abs() <= 0.05 * want[0] + 0.05 * w;
        assert!(got.iter().zip(&want).all(close), "{place}: {got:?}, want {want:?}");
        assert!(distance(&w, &weights) <= 1e-2, "{place}");
        bits.see("a run in bf16", place, (got, w));
    });
}

#[test]
fn a_short_run_agrees_with_the_cpu() {
    let dir = golden("qwen2");
    let vocab = load(&Cpu::<f32>::new().unwrap(), &dir).config.vocab_size;
    training_agrees(&dir, &pack(&groups(vocab), 4), 6);
}

/// A real, if small, model.
#[test]
fn stories260k_trains_through_the_kernels() {
    let Some(dir) = model_common::test_data("stories260k_trains_through_the_kernels", "data/stories260k") else {
        return;
    };
    let vocab = load(&Cpu::<f32>::new().unwrap(), &dir).config.vocab_size;
    training_agrees(&dir, &pack(&groups(vocab), 2), 4);
}
