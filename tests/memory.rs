//! The memory plan: what is told before a run is what the run then allocates and occupies, on every backend and for every
//! model family; and what does not fit is refused before anything is allocated.

#[path = "common/host.rs"]
mod host;
mod model_common;

use fusedpo::backend::cpu::{Cpu, GemmPrecision, Real};
use fusedpo::backend::gpu::host::HostDriver;
use fusedpo::backend::gpu::{Gpu, GpuFloat};
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{GenerateOptions, Model, ModelConfig, ModelDir, ParamTable, generate};
use fusedpo::train::choices::GradientChoice;
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::memory::MemoryPlan;
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer, OptimizerChoice};
use half::bf16;
use model_common::files::golden;
use model_common::{Group, capacity, pack};

const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];
const POSITIONS: usize = 40;
const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.1);

/// Two micro-batches of the same 48 slots: a prompt with three responses, and one with two.
fn batches() -> Vec<MicroBatch> {
    let tokens = |n: u32, from: u32| (0..n).map(|i| (from + i * 5) % 90 + 3).collect::<Vec<u32>>();
    let group = |prompt, lens: &[u32]| Group {
        prompt: tokens(prompt, 1),
        responses: lens.iter().map(|n| tokens(*n, 7 * n)).collect(),
        ref_logps: lens.iter().map(|n| -4.5 * f64::from(*n)).collect(),
        pairs: vec![(0, 1, 1.0), (lens.len() - 1, 0, 0.5)],
    };
    vec![pack(&[group(13, &[5, 4, 9])], 17), pack(&[group(20, &[6, 8])], 14)]
}

fn gpu<A: GpuFloat>() -> Option<Gpu<HostDriver, A>> {
    Some(Gpu::new(host::host_driver(0)?).unwrap())
}

/// A step of training on an engine that was made as the runs make it; its memory table, and the trained weights.
fn step<B: Backend>(be: &B, name: &str, purpose: Purpose, optim: &OptimOptions) -> Vec<f64> {
    let batches = batches();
    let model = Model::load(be, &ModelDir::open(&golden(name)).unwrap(), POSITIONS).unwrap();
    let mut engine = Engine::for_optimizer(be, model, capacity(&batches), purpose, optim).unwrap();
    let mut optimizer = Optimizer::new(be, &mut engine.state, optim).unwrap();
    let before = be.memory_table().len();
    for _ in 0..2 {
        engine.clear_grads().unwrap();
        for mb in &batches {
            engine.accumulate(mb, &SPEC, 0.25, &mut Totals::default()).unwrap();
        }
        optimizer.step(be, &mut engine.state, 1e-3).unwrap();
    }
    assert_eq!(be.memory_table().len(), before, "{name}: a step allocates nothing");
    model_common::read(be, &engine.state.model.weights, engine.state.model.table.len)
}

/// The plans of training and scoring against what the constructors then allocate, buffer by buffer.
fn plan_is_what_is_allocated<B: Backend>(be: &B) {
    let capacity = capacity(&batches());
    for name in MODELS {
        let config_json = ModelConfig::load(&golden(name)).unwrap();
        let mut trained = Vec::new();
        for (optim, purpose) in [
            (OptimizerChoice::Rmsprop, Purpose::Train),
            (OptimizerChoice::Adamw, Purpose::Train),
            (OptimizerChoice::Adamw, Purpose::TrainInFull),
            (OptimizerChoice::Adamw, Purpose::Recompute),
        ] {
            let c = OptimOptions { optim, ..Default::default() };
            let before = be.memory_table();
            let plan = MemoryPlan::training(be, &config_json, POSITIONS, capacity, (purpose, &c)).unwrap();
            assert_eq!(be.memory_table(), before, "{name}: a plan allocates nothing");
            trained.push(step(be, name, purpose, &c));
            let table = be.memory_table().split_off(before.len());
            assert_eq!(table, plan.table, "{name} {optim:?}");
            assert!(table.iter().any(|(n, b)| n == "weights" && *b > 0));
            assert_eq!(plan.bytes(), table.iter().map(|(_, b)| b).sum::<usize>() + plan.scratch);
            let outputs = table.iter().any(|(n, b)| n == "SwiGLU outputs" && *b > 0);
            assert_eq!(outputs, purpose == Purpose::TrainInFull, "{name}");
        }
        assert!(trained[1..].iter().all(|t| *t == trained[1]), "{name}: what is kept changes no bit");
        // Weights in bf16 that are their own master: of a GPU that stores them so, and of the CPU.
        let small =
            [(OptimizerChoice::AdamwBf16, GradientChoice::F32), (OptimizerChoice::Adamw8bit, GradientChoice::Bf16)];
        for (optim, gradient_dtype) in small.into_iter().filter(|_| B::MASTER_WEIGHTS || !B::ASYNC) {
            let c = OptimOptions { optim, gradient_dtype, ..Default::default() };
            let before = be.memory_table().len();
            let plan = MemoryPlan::training(be, &config_json, POSITIONS, capacity, (Purpose::Train, &c)).unwrap();
            step(be, name, Purpose::Train, &c);
            assert_eq!(be.memory_table().split_off(before), plan.table, "{name} {optim:?}");
            assert!(!plan.table.iter().any(|(n, _)| n == "master weights"), "{name} {optim:?}");
            let of =
                |names: &[&str]| plan.table.iter().filter(|(n, _)| names.contains(&n.as_str())).map(|(_, b)| b).sum();
            let (moments, gradients): (usize, usize) = (
                of(&["optimizer first moment", "optimizer second moment"]),
                of(&["gradients", "gradients of norms and biases"]),
            );
            let table = ParamTable::new(&config_json).unwrap();
            let (n, matrices) = (table.trained_len, table.trained_matrices);
            match optim {
                OptimizerChoice::AdamwBf16 => {
                    assert_eq!((moments, gradients), (4 * n, size_of::<B::Acc>() * n), "{name}");
                }
                _ => {
                    let blocks: usize = table.specs.iter().map(|s| s.at.len().div_ceil(256)).sum();
                    assert_eq!(moments, 2 * (n + 4 * blocks), "{name}");
                    assert_eq!(gradients, 2 * matrices + size_of::<B::Acc>() * (n - matrices), "{name}");
                }
            }
        }
        let before = be.memory_table().len();
        let plan = MemoryPlan::scoring(be, &config_json, POSITIONS, capacity).unwrap();
        let model = Model::load(be, &ModelDir::open(&golden(name)).unwrap(), POSITIONS).unwrap();
        let mut engine = Engine::new(be, model, capacity, Purpose::Score).unwrap();
        engine.score(&batches()[0]).unwrap();
        assert_eq!(be.memory_table().split_off(before), plan.table, "{name}, scoring");
        drop(engine);
        let before = be.memory_table().len();
        let prompts = [vec![3; 7], vec![4; 2], vec![5; 11]];
        let o = GenerateOptions {
            max_new_tokens: 6,
            temperature: 1.0,
            top_p: 1.0,
            num_return_sequences: 2,
            seed: 1,
            eos_token_ids: vec![2],
            cache_bytes: 1 << 20,
            pack_weights: true,
        };
        let (plan, _) = MemoryPlan::generating(be, &config_json, POSITIONS, &prompts, &o).unwrap();
        let model = Model::load(be, &ModelDir::open(&golden(name)).unwrap(), POSITIONS).unwrap();
        generate(be, &model, &prompts, &o).unwrap();
        let mut table = be.memory_table().split_off(before);
        // The kernels' own, a few bytes a sequence, made when the first is decoded.
        table.retain(|(n, _)| n != "decoding tables");
        assert_eq!(table, plan.table, "{name}, generating");
    }
}

fn on_the_cpu<S: Real>(precision: GemmPrecision) {
    let be = Cpu::<S>::with(precision).unwrap();
    plan_is_what_is_allocated(&be);
    let most = be.scratch(capacity(&batches()).slots, ModelConfig::load(&golden("llama")).unwrap().hidden_size);
    assert!(be.scratch_bytes() > 0 && be.scratch_bytes() <= most, "{} {most}", be.scratch_bytes());
}

#[test]
fn plans_on_the_cpu() {
    on_the_cpu::<f32>(GemmPrecision::Native);
    on_the_cpu::<f64>(GemmPrecision::Native);
    match Cpu::<f32>::with(GemmPrecision::Bf16) {
        Ok(_) => on_the_cpu::<f32>(GemmPrecision::Bf16),
        Err(e) => println!("skipped: {e}"),
    }
}

#[test]
fn plans_of_kernels() {
    let (Some(a), Some(b)) = (gpu::<bf16>(), gpu::<f32>()) else { return };
    plan_is_what_is_allocated(&a);
    plan_is_what_is_allocated(&b);
}

/// What the packed operands of a product come to, with more rows than columns and the other way round.
#[test]
fn scratch_stays_within_its_bound() {
    let be = Cpu::<f32>::new().unwrap();
    let mut bound = 0;
    for (rows, dim, wide) in [(4, 64, 151_936), (1024, 576, 3072), (64, 896, 9728), (3000, 64, 20_000)] {
        let (x, mut y, mut dw) = (vec![0.5f32; rows * dim], vec![0f32; rows * wide], vec![0f32; wide * dim]);
        let mut dx = x.clone();
        let w = vec![0.5f32; wide * dim];
        be.linear_fwd(LinearFwd { y: &mut y, x: &x, w: &w, out: wide, inp: dim, write: fusedpo::backend::Write::Set })
            .unwrap();
        be.linear_bwd_input(LinearBwdInput {
            dx: &mut dx,
            dy: &y,
            w: &w,
            out: wide,
            inp: dim,
            write: fusedpo::backend::Write::Set,
        })
        .unwrap();
        be.linear_bwd_weight(LinearBwdWeight { dw: &mut dw, dy: &y, x: &x, out: wide, inp: dim, write: Write::Add })
            .unwrap();
        bound = be.scratch(rows, dim).max(bound);
        assert!(be.scratch_bytes() <= bound, "{rows} {dim} {wide}: {} of {bound}", be.scratch_bytes());
    }
}

/// One allocation for all of a run, handed out whole, given back whole; and the results are the same bits.
#[test]
fn an_arena_holds_a_run() {
    let Some(apart) = gpu::<bf16>() else { return };
    let want = step(&apart, "qwen3", Purpose::Train, &OptimOptions::default());
    let be = gpu::<bf16>().unwrap();
    let alone = be.driver().live_allocations();
    let c = OptimOptions::default();
    let model = ModelConfig::load(&golden("qwen3")).unwrap();
    let plan = MemoryPlan::training(&be, &model, POSITIONS, capacity(&batches()), (Purpose::Train, &c)).unwrap();
    for _ in 0..2 {
        be.reserve(&plan.table).unwrap();
        assert_eq!(be.driver().live_allocations(), alone + 1);
        assert!(step(&be, "qwen3", Purpose::Train, &c) == want);
        assert_eq!(be.driver().live_allocations(), alone, "the arena goes with its last buffer");
    }
    // A buffer that no plan named has a home of its own, before and after the arena's are handed out.
    be.reserve(&[("small".into(), 100), ("also".into(), 300)]).unwrap();
    let large = be.zeros::<u32>("large", 1000).unwrap();
    let (small, also) = (be.zeros::<u32>("small", 25).unwrap(), be.zeros::<u32>("also", 75).unwrap());
    let late = be.zeros::<u32>("late", 1).unwrap();
    assert_eq!(be.driver().live_allocations(), alone + 3);
    drop((large, late, small));
    assert_eq!(be.driver().live_allocations(), alone + 1, "the arena stays while a buffer of it does");
    drop(also);
    assert_eq!(be.driver().live_allocations(), alone);
}

#[test]
fn a_counting_backend_computes_nothing() {
    let Some(be) = gpu::<f32>() else { return };
    let counting = be.counting();
    let live = be.driver().live_allocations();
    let mut buf = counting.zeros::<f32>("counted", 1 << 40).unwrap();
    assert_eq!((counting.memory_table(), be.driver().live_allocations()), (vec![("counted".into(), 4 << 40)], live));
    let error = counting.clear(counting.view_mut(&mut buf, 0..4)).unwrap_err().to_string();
    assert_eq!(error, "clear: this backend only counts memory");
    assert!(counting.upload(counting.view_mut(&mut buf, 0..1), &[1.0]).is_err());
    assert!(counting.download(&mut [0.0], counting.view(&buf, 0..1)).is_err());
    let mut rstd = counting.zeros("rstd", 1).unwrap();
    let (y, rstd) = (counting.view_mut(&mut buf, 0..64), counting.view_mut(&mut rstd, 0..1));
    let x = counting.zeros::<f32>("x", 64).unwrap();
    let x = counting.view(&x, 0..64);
    assert!(counting.rmsnorm_fwd(RmsNormFwd { y, rstd, x, w: x, eps: 1e-5 }).is_err());
}

#[test]
fn devices_tell_their_memory() {
    let be = Cpu::<f32>::new().unwrap().with_free(12345);
    let told = be.memory().unwrap().unwrap();
    assert_eq!(told.free, 12345);
    let Some(driver) = host::host_driver(0) else { return };
    let gpu = Gpu::<_, f32>::new(driver.with_memory(1 << 30)).unwrap();
    let before = gpu.memory().unwrap().unwrap();
    assert_eq!(before.used + before.free, 1 << 30);
    let kept = gpu.zeros::<f32>("kept", 1000).unwrap();
    assert_eq!(gpu.memory().unwrap(), Some(DeviceMemory { used: before.used + 4000, free: before.free - 4000 }));
    drop(kept);
    assert_eq!(gpu.memory().unwrap(), Some(before));
    let error = gpu.zeros::<f32>("huge", 1 << 28).err().unwrap().to_string();
    assert!(error.starts_with("`huge` (1073741824 bytes): out of memory"), "{error}");
}

/// A GPU that is not there is planned for as one that is.
#[test]
fn a_plan_on_paper_is_a_gpus() {
    use fusedpo::backend::gpu::cuda::PaperDriver;
    fn check<A: GpuFloat>() {
        let Some(host) = gpu::<A>() else { return };
        let paper = Gpu::<_, A>::new(PaperDriver::new(1 << 30)).unwrap();
        let taken: usize = PaperDriver::beside().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(paper.memory().unwrap(), Some(DeviceMemory { used: taken, free: (1 << 30) - taken }));
        let optim = OptimOptions::default();
        for name in MODELS {
            let config = ModelConfig::load(&golden(name)).unwrap();
            for purpose in [Purpose::Train, Purpose::TrainInFull, Purpose::Recompute] {
                let plan = |what| (purpose, what);
                let capacity = capacity(&batches());
                let want = MemoryPlan::training(&host, &config, POSITIONS, capacity, plan(&optim)).unwrap();
                let got = MemoryPlan::training(&paper, &config, POSITIONS, capacity, plan(&optim)).unwrap();
                assert_eq!(got, want, "{name}");
            }
        }
        let mut buffer = paper.zeros::<f32>("x", 4).unwrap();
        let error = paper.upload(paper.view_mut(&mut buffer, 0..4), &[1.0; 4]).unwrap_err().to_string();
        assert_eq!(error, "upload: this GPU is planned for, and not there");
        assert!(paper.clear(paper.view_mut(&mut buffer, 0..4)).is_err());
    }
    check::<bf16>();
    check::<f32>();
}
