//! Steady state: once scratch memory has its size, a step takes from the heap a list of blocks for each matrix product, and a
//! few hundred bytes of an engine's own bookkeeping; nothing that grows with rows, widths or weights. Counted by the
//! allocator of this very program, so that it has one test alone.

mod model_common;

use fusedpo::backend::Backend;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{self, Model, ModelConfig};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer};
use fusedpo::train::state::State;
use model_common::files::golden;
use model_common::{Group, capacity, pack};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes asked for since the last look, by every thread.
static ASKED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.fetch_add(size, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.1);

/// The most bytes that one of three calls of `f` asks for, once scratch memory has its size: it grows until as many buffers
/// exist as threads ever worked at once, which is a matter of luck.
fn asked(be: &Cpu<f32>, mut f: impl FnMut()) -> usize {
    let (mut streak, mut most) = (0, 0);
    for _ in 0..200 {
        let before = be.scratch_bytes();
        ASKED.store(0, Ordering::Relaxed);
        f();
        let bytes = ASKED.load(Ordering::Relaxed);
        (streak, most) = if be.scratch_bytes() == before { (streak + 1, bytes.max(most)) } else { (0, 0) };
        // The first three are for whatever else has a first time.
        if streak == 6 {
            return most;
        }
        if streak <= 3 {
            most = 0;
        }
    }
    panic!("scratch memory never stopped growing");
}

/// Two micro-batches of 160 slots.
fn batches() -> Vec<MicroBatch> {
    let tokens = |n: u32, from: u32| (0..n).map(|i| (from + i * 5) % 90 + 3).collect::<Vec<u32>>();
    let group = |prompt, lens: &[u32]| Group {
        prompt: tokens(prompt, 1),
        responses: lens.iter().map(|n| tokens(*n, 7 * n)).collect(),
        ref_logps: lens.iter().map(|n| -4.5 * f64::from(*n)).collect(),
        pairs: vec![(0, 1, 1.0), (lens.len() - 1, 0, 0.5)],
    };
    vec![pack(&[group(50, &[20, 15, 30]), group(3, &[11, 13])], 18), pack(&[group(70, &[40, 20])], 30)]
}

fn random<B: Backend>(be: &B, name: &str, times: usize) -> Model<B> {
    let mut config = ModelConfig::load(&golden(name)).unwrap();
    config.hidden_size *= times;
    config.intermediate_size *= times;
    config.num_hidden_layers *= times;
    Model::random(be, config, 1, 128).unwrap()
}

/// Bytes for everything that a step computes, from a batch that is loaded to updated weights, and its products.
fn ops(precision: GemmPrecision, name: &str, times: usize) -> (usize, usize) {
    let be = Cpu::<f32>::with(precision).unwrap();
    let mut state = State::new(&be, random(&be, name, times), true).unwrap();
    let batches = batches();
    let mut ws = model_common::workspace(&be, &state.model, &batches, true);
    let mut optimizer = Optimizer::new(&be, &mut state, &OptimOptions::default()).unwrap();
    ws.load_batch(&be, &batches[0]).unwrap();
    let chunks = ws.chunks.clone();
    let products = products(state.model.table.layers.len(), chunks.len());
    let bytes = asked(&be, || {
        let (m, grads) = (&state.model, state.grads.as_mut().unwrap());
        grads.clear(&be, &m.table).unwrap();
        model::forward(&be, m, &mut ws).unwrap();
        for chunk in &chunks {
            model::head(&be, m, &mut ws, chunk, fusedpo::backend::HeadMode::Train).unwrap();
            model::loss(&be, &mut ws, chunk, (&SPEC, 0.5.into(), false)).unwrap();
            model::head_backward(&be, m, &mut ws, chunk, grads).unwrap();
        }
        model::backward(&be, m, &mut ws, grads, None).unwrap();
        optimizer.step(&be, &mut state, 1e-3).unwrap();
    });
    (bytes, products)
}

/// A layer multiplies by four weights, forward, for the input's gradient and for the weight's; a chunk of the head by one.
fn products(layers: usize, chunks: usize) -> usize {
    12 * layers + 3 * chunks
}

/// A step as a run takes it: two micro-batches through an engine, and the optimiser.
fn engine(name: &str, times: usize) -> usize {
    let be = Cpu::<f32>::new().unwrap();
    let batches = batches();
    let mut engine = Engine::new(&be, random(&be, name, times), capacity(&batches), Purpose::Train).unwrap();
    let mut optimizer = Optimizer::new(&be, &mut engine.state, &OptimOptions::default()).unwrap();
    asked(&be, || {
        engine.clear_grads().unwrap();
        let mut totals = Totals::default();
        for mb in &batches {
            engine.accumulate(mb, &SPEC, 0.5, &mut totals).unwrap();
        }
        optimizer.step(&be, &mut engine.state, 1e-3).unwrap();
    })
}

/// Of a product: a list of its blocks along the summed index, and one of those that are packed together, with one block
/// each at these widths, or two in the head's where f32 is multiplied in parts, whose blocks are half as long.
const A_PRODUCT: usize = 48;
/// Of an engine and its two micro-batches.
const BOOKKEEPING: usize = 512;

#[test]
fn steady_state_takes_next_to_nothing_from_the_heap() {
    // On a worker of the pool: a call from outside goes through its queue, which grows by a block now and then.
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| {
        for name in ["llama", "qwen2", "qwen3"] {
            for times in [1, 3] {
                let precisions = [GemmPrecision::Native, GemmPrecision::Bf16];
                for precision in precisions.into_iter().filter(|p| Cpu::<f32>::with(*p).is_ok()) {
                    let (bytes, products) = ops(precision, name, times);
                    println!("{name} x{times}, {precision:?}: {bytes} bytes in {products} products");
                    assert!(bytes <= A_PRODUCT * products, "{name} x{times}, {precision:?}: {bytes} bytes");
                }
                let bytes = engine(name, times);
                let layers = 2 * times;
                println!("{name} x{times}: {bytes} bytes a step of two micro-batches");
                assert!(bytes <= BOOKKEEPING + A_PRODUCT * 2 * products(layers, 2), "{name} x{times}: {bytes} bytes");
            }
        }
    });
}
