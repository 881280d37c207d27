//! Gradients that are summed up in bf16, against the same in f64: what a step loses by it.

use crate::model_common;

use fusedpo::backend::cpu::Cpu;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::choices::GradientChoice;
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::OptimOptions;
use fusedpo::train::state::Part;
use half::bf16;
use model_common::files::golden;
use model_common::{Group, capacity, norm, pack};

/// A micro-batch of one pair, another for each `i`.
fn batch(i: u32) -> MicroBatch {
    let tokens = |n: u32, from: u32| (0..n).map(|t| (from + i * 13 + t * (5 + i % 7)) % 90 + 3).collect::<Vec<u32>>();
    let responses = vec![tokens(5 + i % 3, 35), tokens(4 + i % 5, 28)];
    pack(&[Group { prompt: tokens(9, 1), responses, ref_logps: vec![-22.0, -18.0], pairs: vec![(0, 1, 1.0)] }], 0)
}

/// Gradients over `many` micro-batches, in the trained arena: everything is computed in f64, and summed up as asked.
fn gradients(many: u32, gradient_dtype: GradientChoice) -> (Vec<f64>, usize) {
    let be = Cpu::<f64>::new().unwrap();
    let optim = OptimOptions { gradient_dtype, ..Default::default() };
    let model = Model::load(&be, &ModelDir::open(&golden("qwen2")).unwrap(), 60).unwrap();
    let all: Vec<MicroBatch> = (0..many).map(batch).collect();
    let mut engine = Engine::for_optimizer(&be, model, capacity(&all), Purpose::Train, &optim).unwrap();
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    all.iter().for_each(|mb| engine.accumulate(mb, &spec, 1.0 / f64::from(many), &mut Totals::default()).unwrap());
    let split = engine.state.model.table.trained_matrices;
    let mut values = Vec::new();
    for s in engine.state.sections(&be).iter().filter(|s| matches!(s.part, Part::Gradients | Part::VectorGradients)) {
        let mut bytes = Vec::new();
        engine.state.read(&be, s.part, 0..s.len, &mut bytes).unwrap();
        match s.dtype {
            "bf16" => values.extend(bytes.chunks(2).map(|x| bf16::from_le_bytes(x.try_into().unwrap()).to_f64())),
            _ => values.extend(bytes.chunks(8).map(|x| f64::from_le_bytes(x.try_into().unwrap()))),
        }
    }
    (values, split)
}

/// A sum is rounded once a micro-batch, by 2^-9 of itself at most. Those of vectors are not rounded at all.
#[test]
fn what_sums_in_bf16_lose() {
    for (many, most) in [(1, 0.0018), (4, 0.0035), (16, 0.007), (64, 0.014)] {
        let ((want, split), (got, _)) = (gradients(many, GradientChoice::F32), gradients(many, GradientChoice::Bf16));
        assert_eq!(got.len(), want.len());
        assert!(got[split..] == want[split..] && split < got.len(), "norms and biases");
        let error: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
        let relative = norm(&error[..split]) / norm(&want[..split]);
        // A systematic error would shorten or lengthen the whole.
        let along = error.iter().zip(&want).map(|(e, w)| e * w).sum::<f64>() / norm(&want).powi(2);
        println!("{many} micro-batches: relative error {relative:.5}, along the gradient {along:+.6}");
        assert!(relative > 1e-4 && relative < most, "{many} micro-batches: {relative}");
        assert!(along.abs() < 0.2 * relative, "{many} micro-batches: {along} of {relative} along the gradient");
    }
}
