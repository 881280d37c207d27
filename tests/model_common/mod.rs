//! Shared by the tests of the model: micro-batches by hand, and a whole forward and backward pass over them.
#![allow(dead_code)]

pub mod files;

use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::{Backend, Float, HeadMode, PAIR_STATS, RESPONSE_STATS};
use fusedpo::batch::{Builder, Capacity, MicroBatch};
use fusedpo::loss::LossSpec;
use fusedpo::model::{self, Gradients, Keep, Model, Workspace};
use std::path::PathBuf;

/// A prompt, its responses with their reference log-probs, and pairs of them.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub prompt: Vec<u32>,
    pub responses: Vec<Vec<u32>>,
    pub ref_logps: Vec<f64>,
    pub pairs: Vec<(usize, usize, f32)>,
}

/// Packs groups, in order, followed by `tail` dummy slots.
pub fn pack(groups: &[Group], tail: usize) -> MicroBatch {
    let (mut b, mut ref_logps, mut pairs) = (Builder::default(), Vec::new(), 0..);
    for (id, g) in (0..).zip(groups) {
        b.group(id, g.prompt.iter().copied()).unwrap();
        for (i, response) in g.responses.iter().enumerate() {
            b.response(ref_logps.len() as u64, response.iter().copied()).unwrap();
            ref_logps.push(g.ref_logps.get(i).copied().unwrap_or(0.0));
        }
        for (chosen, rejected, weight) in &g.pairs {
            b.pair(*chosen, *rejected, *weight, pairs.next().unwrap()).unwrap();
        }
    }
    let slots = b.used() + tail;
    let mut b = b.finish(slots).unwrap();
    b.set_ref_logps(|r| Ok(ref_logps[r.id as usize])).unwrap();
    b
}

/// The capacity that micro-batches need.
pub fn capacity(batches: &[MicroBatch]) -> Capacity {
    batches.iter().map(MicroBatch::capacity).reduce(Capacity::or_larger).unwrap_or_default()
}

pub fn workspace<B: Backend>(be: &B, m: &Model<B>, batches: &[MicroBatch], train: bool) -> Workspace<B> {
    let head_rows = batches.iter().flat_map(MicroBatch::groups).map(|g| g.predictions.len()).max().unwrap_or(0);
    Workspace::new(be, m, capacity(batches), head_rows, train).unwrap()
}

/// The first `len` elements of a buffer, as f64.
pub fn read<B: Backend, T: Float>(be: &B, buf: &B::Buf<T>, len: usize) -> Vec<f64> {
    let mut out = vec![T::from_f64(f64::NAN); len];
    be.download(&mut out, be.view(buf, 0..len)).unwrap();
    out.into_iter().map(T::to_f64).collect()
}

/// Token log-probs of every response, batch after batch, without keeping activations.
pub fn score<B: Backend>(be: &B, m: &Model<B>, batches: &[MicroBatch]) -> Vec<Vec<f64>> {
    let mut ws = workspace(be, m, batches, false);
    let mut out = Vec::new();
    for b in batches {
        ws.load_batch(be, b).unwrap();
        model::forward(be, m, &mut ws).unwrap();
        for chunk in ws.chunks.clone() {
            model::head(be, m, &mut ws, &chunk, HeadMode::Score).unwrap();
        }
        let logp = read(be, &ws.logp, b.predictions().len());
        out.extend(
            b.responses().iter().map(|r| logp[r.predictions.start as usize..r.predictions.end as usize].to_vec()),
        );
    }
    out
}

/// Everything that a training step computes.
pub struct Step {
    /// Unscaled loss of every pair.
    pub pair_losses: Vec<f64>,
    /// Sum of every response's token log-probs.
    pub logps: Vec<f64>,
    /// Loss of every response (SFT).
    pub response_losses: Vec<f64>,
    /// Gradient arena.
    pub grads: Vec<f64>,
}

/// Forward and backward over one micro-batch, of a loss at a scale; `told` is, how far it is.
pub fn run<B: Backend>(
    be: &B,
    (m, ws, grads): (&Model<B>, &mut Workspace<B>, &mut Gradients<B>),
    batch: &MicroBatch,
    (spec, scale): (&LossSpec, f64),
    told: Option<model::Told<'_, B>>,
) {
    ws.load_batch(be, batch).unwrap();
    model::forward(be, m, ws).unwrap();
    for chunk in ws.chunks.clone() {
        model::head(be, m, ws, &chunk, HeadMode::Train).unwrap();
        model::loss(be, ws, &chunk, (spec, scale.into(), false)).unwrap();
        model::head_backward(be, m, ws, &chunk, grads).unwrap();
    }
    model::backward(be, m, ws, grads, told).unwrap();
}

/// Forward and backward over micro-batches, gradients accumulated.
pub fn train<B: Backend>(be: &B, m: &Model<B>, batches: &[MicroBatch], spec: &LossSpec, scale: f64) -> Step {
    train_in(be, m, batches, spec, scale, workspace(be, m, batches, true))
}

/// [`train`] with the choice of what is kept.
pub fn train_keeping<B: Backend>(
    be: &B,
    m: &Model<B>,
    batches: &[MicroBatch],
    spec: &LossSpec,
    scale: f64,
    keep: Keep,
) -> Step {
    let head_rows = batches.iter().flat_map(MicroBatch::groups).map(|g| g.predictions.len()).max().unwrap_or(0);
    let ws = Workspace::keeping(be, m, capacity(batches), head_rows, keep).unwrap();
    train_in(be, m, batches, spec, scale, ws)
}

fn train_in<B: Backend>(
    be: &B,
    m: &Model<B>,
    batches: &[MicroBatch],
    spec: &LossSpec,
    scale: f64,
    mut ws: Workspace<B>,
) -> Step {
    let mut grads = Gradients::new(be, &m.table, false).unwrap();
    let mut step = Step { pair_losses: Vec::new(), logps: Vec::new(), response_losses: Vec::new(), grads: Vec::new() };
    for b in batches {
        run(be, (m, &mut ws, &mut grads), b, (spec, scale), None);
        let pairs = read(be, &ws.pair_stats, b.pairs().len() * PAIR_STATS);
        step.pair_losses.extend(pairs.chunks(PAIR_STATS).map(|p| p[0]));
        let responses = read(be, &ws.response_stats, b.responses().len() * RESPONSE_STATS);
        step.logps.extend(responses.chunks(RESPONSE_STATS).map(|r| r[0]));
        step.response_losses.extend(responses.chunks(RESPONSE_STATS).map(|r| r[3]));
    }
    step.grads = read(be, grads.all().unwrap(), m.table.trained_len);
    step
}

pub fn cpu64() -> Cpu<f64> {
    Cpu::new().unwrap()
}

pub fn cpu32() -> Cpu<f32> {
    Cpu::new().unwrap()
}

/// A folder of the project: where cargo runs the test, or where whoever carried it elsewhere says that it lies.
pub fn project(path: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join(path)
}

/// A folder of the shared test data, or `None`, having said so.
pub fn test_data(test: &str, path: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("FUSEDPO_TEST_DATA") else {
        println!("skipped: {test} (FUSEDPO_TEST_DATA is not set)");
        return None;
    };
    Some(PathBuf::from(root).join(path))
}

/// sqrt of the sum of squares.
pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}
