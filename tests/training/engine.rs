//! The engine's head in chunks and parts: whatever fits into the logits buffer, the numbers are the same.

use crate::host;
use crate::model_common;

use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::{Backend, Device};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use model_common::files::golden;
use model_common::{Group, capacity, norm, pack, read};

/// Groups that predict 9, 16 and 4 tokens, before `tail` dummy slots.
fn batch(tail: usize) -> MicroBatch {
    let tokens = |n: u32, from: u32| (0..n).map(|i| (from + i * 5) % 90 + 3).collect::<Vec<u32>>();
    let group = |prompt, lens: &[u32]| Group {
        prompt: tokens(prompt, 1),
        responses: lens.iter().map(|n| tokens(*n, 7 * n)).collect(),
        ref_logps: lens.iter().map(|n| -4.5 * f64::from(*n)).collect(),
        pairs: vec![(0, 1, 1.0), (lens.len() - 1, 0, 0.5)],
    };
    pack(&[group(6, &[5, 4]), group(3, &[5, 4, 7]), group(0, &[3, 3])], tail)
}

/// Log-probs, loss and gradients with a logits buffer of `head_rows` rows.
fn pass<B: Backend>(be: &B, head_rows: usize, loss_type: LossType) -> (Vec<f64>, f64, Vec<f64>) {
    let mb = batch(9);
    let model = Model::load(be, &ModelDir::open(&golden("qwen3")).unwrap(), 40).unwrap();
    let n = model.table.len;
    let all = capacity(std::slice::from_ref(&mb));
    let mut engine = Engine::with_head_rows(be, model, all, Purpose::Train, head_rows).unwrap();
    let spec = LossSpec::of(loss_type).beta(0.2);
    let mut totals = Totals::default();
    engine.accumulate(&mb, &spec, 0.25, &mut totals).unwrap();
    let logps = engine.token_logps(&mb).unwrap();
    assert_eq!(engine.score(&mb).unwrap().len(), mb.responses().len());
    assert_eq!(engine.token_logps(&mb).unwrap(), logps, "scoring after training");
    (logps, totals.mean_loss(), read(be, engine.state.grads.as_ref().unwrap().all().unwrap(), n))
}

/// The whole micro-batch at once, by groups, and groups in parts, down to one row at a time.
fn every_size<B: Backend>(be: &B) {
    for loss_type in [LossType::Sigmoid, LossType::Sft] {
        let (logps, loss, grads) = pass(be, 100, loss_type);
        assert!(logps.len() == 29 && grads.iter().any(|g| *g != 0.0));
        for head_rows in [28, 16, 15, 9, 5, 1] {
            let got = pass(be, head_rows, loss_type);
            assert_eq!((&got.0, got.1), (&logps, loss), "{loss_type:?}, {head_rows} rows");
            let apart: Vec<f64> = got.2.iter().zip(&grads).map(|(a, b)| a - b).collect();
            // Sums over rows in another order.
            let epsilon = if size_of::<B::Acc>() == 8 { f64::EPSILON } else { f32::EPSILON.into() };
            assert!(norm(&apart) <= 8.0 * epsilon * norm(&grads), "{loss_type:?}, {head_rows} rows: {}", norm(&apart));
        }
    }
}

#[test]
fn a_group_may_be_larger_than_the_logits_buffer() {
    every_size(&model_common::cpu32());
    every_size(&model_common::cpu64());
    let Some(driver) = host::host_driver(0) else { return };
    every_size(&Gpu::<_, f32>::new(driver).unwrap());
}

/// A kernel's grid covers a micro-batch that is almost empty up to the next of few numbers of rows, not all of its slots.
#[test]
fn empty_slots_are_not_computed() {
    let Some(driver) = host::host_driver(0) else { return };
    let be = Gpu::<_, f32>::new(driver).unwrap();
    let model = Model::load(&be, &ModelDir::open(&golden("qwen3")).unwrap(), 40).unwrap();
    let (n, shape) = (model.table.len, model.config.attn_shape());
    let small = batch(9);
    let large = batch(5000 - small.used());
    let all = capacity(std::slice::from_ref(&large));
    let mut on_device = be.new_batch(all, shape).unwrap();
    for (mb, rows) in [(&small, small.slots()), (&large, 1024)] {
        be.load_batch(&mut on_device, mb).unwrap();
        assert_eq!(be.rows(&on_device), rows);
    }
    let mut engine = Engine::new(&be, model, all, Purpose::Train).unwrap();
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.2);
    let mut step = |mb: &MicroBatch| {
        engine.clear_grads().unwrap();
        let mut totals = Totals::default();
        engine.accumulate(mb, &spec, 0.25, &mut totals).unwrap();
        (
            engine.token_logps(mb).unwrap(),
            totals.mean_loss(),
            read(&be, engine.state.grads.as_ref().unwrap().all().unwrap(), n),
        )
    };
    let (want, got) = (step(&small), step(&large));
    assert_eq!((got.0, got.1), (want.0, want.1), "log-probs and loss, to the bit");
    let apart: Vec<f64> = got.2.iter().zip(&want.2).map(|(a, b)| a - b).collect();
    // Sums over rows are cut into other parts.
    assert!(norm(&apart) <= 8.0 * f64::from(f32::EPSILON) * norm(&want.2), "{}", norm(&apart));
}

/// The head's f32 gradient is read and written once a chunk: on a GPU chunks are of thousands of rows.
#[test]
fn chunks_on_a_gpu_are_large() {
    type OnHost = Gpu<fusedpo::backend::gpu::host::HostDriver, f32>;
    let row = 151_936 * 4;
    assert!(OnHost::LOGITS_BYTES / row >= 3000 && OnHost::LOGITS_BYTES / 2 < 1 << 31);
}

/// The gradients of a step are those of its micro-batches, whatever the step before has left in the same memory.
fn what_was_there<B: Backend<Act = f32, Acc = f32>>(be: &B) {
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.2);
    let batches = [batch(3), batch(7), batch(0)];
    for (name, trains) in [("llama", ""), ("qwen3", ""), ("llama", "mlp|lm_head"), ("qwen3", "q_proj|down|norm")] {
        let model = || {
            let mut model = Model::load(be, &ModelDir::open(&golden(name)).unwrap(), 60).unwrap();
            let parts: Vec<&str> = trains.split('|').collect();
            model.table.set_trains(|name| parts.iter().any(|p| name.contains(p)));
            model
        };
        let engine = || Engine::new(be, model(), capacity(&batches), Purpose::Train).unwrap();
        let gradients = |engine: &mut Engine<'_, B>, of: &[MicroBatch]| {
            of.iter().for_each(|mb| engine.accumulate(mb, &spec, 0.5, &mut Totals::default()).unwrap());
            let table = &engine.state.model.table;
            engine.state.grads.as_mut().unwrap().settle(be, table).unwrap();
            read(be, engine.state.grads.as_ref().unwrap().all().unwrap(), table.trained_len)
        };
        let (mut fresh, mut used) = (engine(), engine());
        let want = gradients(&mut fresh, &batches[..2]);
        assert!(want.iter().any(|g| *g != 0.0));
        gradients(&mut used, &batches[2..]);
        used.clear_grads().unwrap();
        assert!(gradients(&mut used, &batches[..2]) == want, "{name}, {trains:?}");
        used.clear_grads().unwrap();
        assert!(gradients(&mut used, &[]).iter().all(|g| *g == 0.0), "{name}, {trains:?}: no micro-batch");
    }
}

#[test]
fn gradients_do_not_know_the_step_before() {
    what_was_there(&model_common::cpu32());
    let Some(driver) = host::host_driver(0) else { return };
    what_was_there(&Gpu::<_, f32>::new(driver).unwrap());
}
