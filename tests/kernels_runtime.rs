//! The runtime of a training step on the host driver: input from two pieces of staging memory, numbers that are read late,
//! recorded passes, layers computed again. On a driver that runs nothing before somebody waits, as a GPU may: what reads or
//! overwrites host memory too early gives other bits than the plain driver, op by op. And on a GPU, where there is one
//! (`common/device.rs`).

#[path = "common/device.rs"]
mod device;
#[path = "common/host.rs"]
mod host;
mod model_common;

use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::host::HostDriver;
use fusedpo::backend::gpu::{Gpu, GpuFloat};
use fusedpo::backend::{Backend, Device};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::graphs::GraphCounts;
use fusedpo::model::{Keep, Model, ModelDir, Sums, Workspace};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer};
use fusedpo::train::state::State;
use half::bf16;
use model_common::{Group, capacity, pack, read};
use std::path::{Path, PathBuf};

const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.3);
const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];
const POSITIONS: usize = 64;

fn golden(name: &str) -> PathBuf {
    model_common::project("tests/golden").join(name)
}

/// At once, or only when waited for.
fn gpu<A: GpuFloat>(deferred: bool) -> Option<Gpu<HostDriver, A>> {
    let driver = if deferred { host::deferred_driver(5) } else { host::host_driver(5) };
    Some(Gpu::new(driver?).unwrap())
}

/// Micro-batches of the same number of slots that differ in everything else.
fn batches(vocab: usize, count: u64) -> Vec<MicroBatch> {
    batches_in(64, vocab, count)
}

/// [`batches`] in so many slots.
fn batches_in(slots: usize, vocab: usize, count: u64) -> Vec<MicroBatch> {
    let one = |i: u64| {
        let mut next = 77 + i;
        let mut draw = |below: u64| {
            next = next.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (next >> 33) % below
        };
        let mut groups = Vec::new();
        for _ in 0..1 + i % 2 {
            let mut tokens = |n: u64| (0..n).map(|_| draw(vocab as u64) as u32).collect::<Vec<u32>>();
            let prompt = tokens(3 + 2 * i);
            let responses = vec![tokens(4 + i), tokens(9 - i)];
            groups.push(Group { prompt, responses, ref_logps: vec![-20.0, -25.0], pairs: vec![(0, 1, 1.0)] });
        }
        let used: usize = groups.iter().map(|g| g.prompt.len() + g.responses.iter().map(Vec::len).sum::<usize>()).sum();
        pack(&groups, slots - used)
    };
    (0..count).map(one).collect()
}

/// How a run goes about its steps.
#[derive(Clone, Copy, Debug)]
struct How {
    purpose: Purpose,
    graphs: bool,
    /// Numbers are read after the passes of the next step were started, as `train` does it.
    late: bool,
}
const PLAIN: How = How { purpose: Purpose::Train, graphs: false, late: false };

/// What a run leaves: the numbers of every step, its gradient norm, and the weights.
#[derive(Debug, PartialEq)]
struct Outcome {
    totals: Vec<Totals>,
    norms: Vec<f64>,
    weights: Vec<f64>,
}

/// `steps` of two micro-batches each.
fn run<B: Backend>(be: &B, dir: &Path, steps: usize, how: How) -> (Outcome, GraphCounts) {
    let model = Model::load(be, &ModelDir::open(dir).unwrap(), POSITIONS).unwrap();
    let data = batches(model.config.vocab_size, 2 * steps as u64 % 7 + 2);
    let n = model.table.len;
    let head_rows = data.iter().flat_map(|b| b.groups()).map(|g| g.predictions.len()).max().unwrap();
    let mut engine = Engine::with_head_rows(be, model, capacity(&data), how.purpose, head_rows).unwrap();
    if how.graphs {
        engine.use_graphs().unwrap();
    }
    let mut opt = Optimizer::new(be, &mut engine.state, &OptimOptions::default()).unwrap();
    let (mut totals, mut norms) = (Vec::new(), Vec::new());
    let mut before = Vec::new();
    let finish = |engine: &mut Engine<'_, B>, before: &mut Vec<_>, totals: &mut Vec<Totals>| {
        let mut sum = Totals::default();
        before.drain(..).for_each(|(mb, late)| engine.collect(late, mb, &SPEC, &mut sum).unwrap());
        totals.push(sum);
    };
    for step in 0..steps {
        engine.clear_grads().unwrap();
        let mut this = Vec::new();
        for i in 0..2 {
            let mb = &data[(2 * step + i) % data.len()];
            this.push((mb, engine.start(mb, &SPEC, 0.5).unwrap()));
        }
        if !before.is_empty() {
            finish(&mut engine, &mut before, &mut totals);
            norms.push(opt.settle(be, &mut engine.state.clock).unwrap());
        }
        opt.step(be, &mut engine.state, 1e-3).unwrap();
        before = this;
        if !how.late {
            finish(&mut engine, &mut before, &mut totals);
            norms.push(opt.settle(be, &mut engine.state.clock).unwrap());
        }
    }
    if !before.is_empty() {
        finish(&mut engine, &mut before, &mut totals);
        norms.push(opt.settle(be, &mut engine.state.clock).unwrap());
    }
    let weights = read(be, &engine.state.model.weights, n);
    (Outcome { totals, norms, weights }, engine.graph_counts())
}

const EVERYTHING: How = How { purpose: Purpose::Recompute, graphs: true, late: true };

/// Everything that may change when work is done, and nothing that is computed.
fn every_way<A: GpuFloat>(dir: &Path, steps: usize) {
    let Some(plain) = gpu::<A>(false) else { return };
    let (want, counts) = run(&plain, dir, steps, PLAIN);
    assert_eq!(want.norms.len(), steps);
    assert!(want.norms.iter().all(|n| n.is_finite() && *n > 0.0), "{:?}", want.norms);
    assert_eq!(counts.recorded + counts.replayed, 0);
    for deferred in [false, true] {
        for purpose in [Purpose::Train, Purpose::Recompute] {
            for (graphs, late) in [(false, true), (true, false), (true, true)] {
                let how = How { purpose, graphs, late };
                let (got, counts) = run(&gpu::<A>(deferred).unwrap(), dir, steps, how);
                assert!(got == want, "{}: {how:?}, deferred {deferred}", dir.display());
                let passes = 2 * 2 * steps as u64;
                let recorded = GraphCounts { eager: 2, recorded: 2, replayed: passes - 2 };
                let eager = GraphCounts { eager: passes, ..Default::default() };
                assert_eq!(counts, if graphs { recorded } else { eager });
            }
        }
    }
}

#[test]
fn late_numbers_graphs_and_recomputation_change_no_bit() {
    every_way::<bf16>(&golden("qwen3"), 3);
}

/// All of it at once, on a driver that runs late, against none of it.
fn at_once<A: GpuFloat>(dir: &Path) {
    let Some(plain) = gpu::<A>(false) else { return };
    let (want, _) = run(&plain, dir, 3, PLAIN);
    let (got, counts) = run(&gpu::<A>(true).unwrap(), dir, 3, EVERYTHING);
    assert!(got == want, "{}", dir.display());
    assert_eq!(counts, GraphCounts { eager: 2, recorded: 2, replayed: 10 });
}

#[test]
fn nor_on_models_of_any_kind() {
    MODELS.iter().for_each(|name| at_once::<bf16>(&golden(name)));
    at_once::<f32>(&golden("llama"));
}

#[test]
fn nor_on_stories260k() {
    let dir = model_common::test_data("nor_on_stories260k", "data/stories260k");
    dir.iter().for_each(|dir| at_once::<bf16>(dir));
}

/// Each run on a GPU of its own: nobody else may enqueue on the stream while it is recorded.
#[test]
fn nor_on_a_gpu() {
    let fresh = || device::cuda_driver().map(|driver| Gpu::<_, bf16>::new(driver).unwrap());
    for name in MODELS {
        let Some(plain) = fresh() else { return };
        let (want, _) = run(&plain, &golden(name), 3, PLAIN);
        for how in [PLAIN, How { graphs: true, ..PLAIN }, How { late: true, ..PLAIN }, EVERYTHING] {
            let (got, counts) = run(&fresh().unwrap(), &golden(name), 3, how);
            assert!(got == want, "{name}: {how:?}");
            assert_eq!(counts.replayed > 0, how.graphs, "{name}: {how:?}");
        }
    }
}

/// On a driver that runs nothing before somebody waits, no launch of a step has run when all of it is enqueued. (With more
/// micro-batches than three the host waits for staging memory, and the device has two of them to work on.)
#[test]
fn a_step_is_enqueued_before_any_of_it_has_run() {
    for graphs in [false, true] {
        let Some(be) = gpu::<bf16>(true) else { return };
        let model = Model::load(&be, &ModelDir::open(&golden("llama")).unwrap(), POSITIONS).unwrap();
        let data = batches(model.config.vocab_size, 3);
        let mut engine = Engine::new(&be, model, capacity(&data), Purpose::Train).unwrap();
        if graphs {
            engine.use_graphs().unwrap();
        }
        let mut opt = Optimizer::new(&be, &mut engine.state, &OptimOptions::default()).unwrap();
        be.synchronize().unwrap();
        let begun = be.driver().launches();
        let (mut run, mut late) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            engine.clear_grads().unwrap();
            late.extend(data.iter().map(|mb| (mb, engine.start(mb, &SPEC, 0.5).unwrap())));
            opt.step(&be, &mut engine.state, 1e-3).unwrap();
            run.push(be.driver().launches() - begun);
        }
        be.synchronize().unwrap();
        let a_step = (be.driver().launches() - begun) / 4;
        for (step, run) in (0u64..).zip(run) {
            assert!(run <= step * a_step, "step {step}, graphs {graphs}: {run} launches have run, a step has {a_step}");
        }
        late.into_iter().for_each(|(mb, late)| engine.collect(late, mb, &SPEC, &mut Totals::default()).unwrap());
    }
}

#[test]
fn recomputation_on_the_cpu_changes_no_bit() {
    for name in MODELS {
        let be = Cpu::<f32>::new().unwrap();
        let (want, _) = run(&be, &golden(name), 2, PLAIN);
        let (got, _) = run(&be, &golden(name), 2, How { purpose: Purpose::Recompute, ..PLAIN });
        assert!(got == want, "{name}");
    }
}

#[test]
fn recomputation_takes_less_memory_and_the_table_shows_it() {
    let be = Cpu::<f32>::new().unwrap();
    let model = Model::load(&be, &ModelDir::open(&golden("llama")).unwrap(), POSITIONS).unwrap();
    let data = batches(model.config.vocab_size, 1);
    let sizes = |keep| {
        let before = be.memory_table().len();
        let ws = Workspace::keeping(&be, &model, capacity(&data), 20, keep).unwrap();
        drop(ws);
        let table = be.memory_table().split_off(before);
        let of = |name: &str| table.iter().filter(|(n, _)| n == name).map(|(_, b)| b).sum::<usize>();
        ["residual", "qkv", "gate_up"].map(of)
    };
    let (layers, slots, n) = (model.config.num_hidden_layers, capacity(&data).slots, capacity(&data).predictions);
    let (hidden, ffn) = (model.config.hidden_size, model.config.intermediate_size);
    let qkv = model.config.attn_shape().qkv_width();
    // Above the last attention there is a row for every prediction alone.
    assert!(n < slots, "{n} of {slots}");
    let rows = |all: usize| all * slots + n;
    let kept = [(rows(2 * layers - 1) + n) * hidden, layers * slots * qkv, rows(layers - 1) * 2 * ffn];
    assert_eq!(sizes(Keep::Layers), kept.map(|elements| 4 * elements));
    assert_eq!(sizes(Keep::Inputs), [(layers + 2) * hidden, qkv, 2 * ffn].map(|elements| 4 * slots * elements));
}

/// Recorded passes keep to the buffers and the shapes that they were recorded with.
#[test]
fn a_graph_is_not_replayed_for_another_model_other_rows_or_freed_memory() {
    let Some(be) = gpu::<bf16>(true) else { return };
    let dir = golden("llama");
    let load = || Model::load(&be, &ModelDir::open(&dir).unwrap(), POSITIONS).unwrap();
    let (one, two) = (load(), load());
    let data = batches(one.config.vocab_size, 2);
    let mut ws = Workspace::new(&be, &one, capacity(&data), 40, false).unwrap();
    ws.graphs.enable().unwrap();
    let mut pass = |model: &Model<_>, mb: &MicroBatch| {
        ws.load_batch(&be, mb).unwrap();
        fusedpo::model::forward(&be, model, &mut ws).unwrap();
        let c = ws.graphs.counts();
        (read(&be, &ws.hidden, mb.predictions().len() * model.config.hidden_size), [c.eager, c.recorded, c.replayed])
    };
    let (want, counts) = pass(&one, &data[0]);
    assert_eq!(counts, [1, 0, 0]);
    assert_eq!(pass(&one, &data[0]), (want.clone(), [1, 1, 1]));
    assert_eq!(pass(&one, &data[1]).1, [1, 1, 2], "other content, same launches");
    assert_eq!(pass(&one, &data[0]), (want.clone(), [1, 1, 3]));
    assert_eq!(pass(&two, &data[0]), (want.clone(), [2, 1, 3]), "another model");
    let short = batches_in(56, one.config.vocab_size, 1).remove(0);
    assert_eq!(pass(&one, &short), (want.clone(), [3, 1, 3]), "fewer rows");
    assert_eq!(pass(&one, &data[0]), (want.clone(), [3, 1, 4]));
    drop(two);
    assert_eq!(pass(&one, &data[0]), (want.clone(), [4, 1, 4]), "memory was given back");
    assert_eq!(pass(&one, &data[0]), (want, [4, 2, 5]));
}

#[test]
fn recording_allows_no_allocation_and_no_wait() {
    let Some(be) = gpu::<bf16>(false) else { return };
    let mut kept = be.zeros::<f32>("kept", 4).unwrap();
    let mut page = be.readback(1).unwrap();
    let number = be.zeros::<f64>("number", 1).unwrap();
    type Gpu16 = Gpu<HostDriver, bf16>;
    let refused = |ops: &mut dyn FnMut(&Gpu16) -> fusedpo::Result<()>, what: &str| {
        let why = be.record(|| ops(&be)).err().expect(what).to_string();
        assert!(why.contains(&format!("cannot {what} while work is being recorded")), "{why}");
    };
    refused(&mut |be| be.zeros::<f32>("more", 1).map(drop), "allocate memory");
    refused(&mut |be| be.synchronize(), "wait");
    refused(&mut |be| be.download(&mut [0.0f32; 4], be.view(&kept, 0..4)), "wait");
    refused(&mut |be| be.upload(be.view_mut(&mut kept, 0..4), &[0.0f32; 4]), "move data between host and device");
    refused(&mut |be| be.read_back(&mut page, &[be.view(&number, 0..1)]), "move data between host and device");
    // And the driver works on.
    be.upload(be.view_mut(&mut kept, 0..4), &[1.0f32; 4]).unwrap();
    let graph = be.record(|| be.clear(be.view_mut(&mut kept, 0..2))).unwrap();
    assert_eq!(read(&be, &kept, 4), [1.0; 4]);
    be.replay(&graph).unwrap();
    assert_eq!(read(&be, &kept, 4), [0.0, 0.0, 1.0, 1.0]);
    drop(number);
    let why = be.replay(&graph).unwrap_err().to_string();
    assert!(why.contains("memory it may use was given back"), "{why}");
}

/// The driver does run late: a number is not there before it is waited for, and is that of its own time.
#[test]
fn numbers_that_are_read_back_are_those_of_their_time() {
    let Some(be) = gpu::<bf16>(true) else { return };
    let mut number = be.zeros::<f64>("number", 1).unwrap();
    let (mut first, mut second) = (be.readback(2).unwrap(), be.readback(2).unwrap());
    be.upload(be.view_mut(&mut number, 0..1), &[3.0]).unwrap();
    be.read_back(&mut first, &[be.view(&number, 0..1)]).unwrap();
    be.upload(be.view_mut(&mut number, 0..1), &[4.0]).unwrap();
    be.read_back(&mut second, &[be.view(&number, 0..1), be.view(&number, 0..1)]).unwrap();
    be.clear(be.view_mut(&mut number, 0..1)).unwrap();
    assert_eq!(be.arrived(&mut first).unwrap(), [3.0, 0.0]);
    assert_eq!(be.arrived(&mut second).unwrap(), [4.0, 4.0]);
    let why = be.read_back(&mut first, &[be.view(&number, 0..1), be.view(&number, 0..1), be.view(&number, 0..1)]);
    assert!(why.unwrap_err().to_string().contains("`parts` has 3 elements, expected 2"));
}

/// A step without a finite gradient norm changes nothing and does not count, although that is known one step late.
#[test]
fn a_skipped_step_does_not_count() {
    fn weights<B: Backend>(be: &B, poison: bool) -> Vec<f64> {
        let model = Model::load(be, &ModelDir::open(&golden("llama")).unwrap(), POSITIONS).unwrap();
        let n = model.table.len;
        let mut state = State::new(be, model, true).unwrap();
        let mut opt = Optimizer::new(be, &mut state, &OptimOptions::default()).unwrap();
        let grads: Vec<B::Acc> = (0..n).map(|i| fusedpo::backend::Float::from_f64((i % 17) as f64 / 64.0)).collect();
        let mut good = be.zeros("gradients", n).unwrap();
        be.upload(be.view_mut(&mut good, 0..n), &grads).unwrap();
        let mut bad = be.zeros("gradients", n).unwrap();
        be.upload(be.view_mut(&mut bad, 0..1), &[fusedpo::backend::Float::from_f64(f64::NAN)]).unwrap();
        let mut bad = Some(Sums::Full(bad).into());
        state.grads = Some(Sums::Full(good).into());
        for step in 0..4 {
            opt.step(be, &mut state, 1e-2).unwrap();
            if poison && step == 1 {
                let good = state.grads.replace(bad.take().unwrap());
                opt.step(be, &mut state, 1e-2).unwrap();
                assert!(opt.settle(be, &mut state.clock).unwrap().is_nan());
                assert!(opt.settle(be, &mut state.clock).unwrap().is_nan(), "asking twice does not count twice");
                state.grads = good;
            }
        }
        opt.settle(be, &mut state.clock).unwrap();
        assert_eq!(state.clock.updates, 4);
        read(be, &state.model.weights, n)
    }
    let cpu = Cpu::<f32>::new().unwrap();
    assert_eq!(weights(&cpu, false), weights(&cpu, true));
    let Some(be) = gpu::<bf16>(true) else { return };
    assert_eq!(weights(&be, false), weights(&be, true));
}
