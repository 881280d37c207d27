//! Kernels by themselves: GB/s of the least possible traffic and GFLOP/s, as a share of this device's ceilings.
//!
//! `cargo bench --bench kernels`. On a GPU the time is the device's, between two CUDA events; buffers rotate so that together
//! they are larger than its L2; the ceilings (a device copy, an 8192^3 product) are measured first, in the same run. Without a
//! GPU it says so and times the CPU backend's ops on smaller shapes. Data are random in both.

use criterion::{BenchmarkId, Criterion, Throughput};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::gpu::cuda::{CudaDriver, unavailable};
use fusedpo::backend::{AttnShape, Backend, Capacity, Chunk, Float, HeadMode, HeadStats, Update, Write};
use fusedpo::data::batch::{GroupSpan, MicroBatch, PairSlot, Prediction, ResponseSlot, Segment};
use half::bf16;
use std::time::{Duration, Instant};

/// Times `n` calls.
trait Clock: Backend {
    fn time(&self, n: u64, f: impl FnMut(u64)) -> Duration;
    /// Bytes that all buffers of a bench together must pass.
    const CACHE: usize;
    /// Rows of the elementwise ops.
    const ROWS: usize;
}

impl Clock for Cpu<f32> {
    const CACHE: usize = 96 << 20;
    const ROWS: usize = 1024;
    fn time(&self, n: u64, f: impl FnMut(u64)) -> Duration {
        let start = Instant::now();
        (0..n).for_each(f);
        start.elapsed()
    }
}

impl Clock for Gpu<CudaDriver, bf16> {
    const CACHE: usize = 512 << 20;
    const ROWS: usize = 16384;
    fn time(&self, n: u64, f: impl FnMut(u64)) -> Duration {
        let stream = self.driver().stream();
        let flags = cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = stream.record_event(Some(flags)).expect("an event");
        (0..n).for_each(f);
        let end = stream.record_event(Some(flags)).expect("an event");
        end.synchronize().expect("the device finishes");
        Duration::from_secs_f64(f64::from(start.elapsed_ms(&end).expect("both events are past")) / 1e3)
    }
}

/// `len` pseudo-random numbers around 0.
fn random<B: Backend, T: Float>(be: &B, len: usize) -> B::Buf<T> {
    let mut buf = be.zeros::<T>("bench", len).expect("device memory");
    let mut state = len as u64 | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        T::from_f64((state >> 40) as f64 / f64::from(1 << 23) - 1.0)
    };
    let block: Vec<T> = (0..len.min(1 << 20)).map(|_| next()).collect();
    for start in (0..len).step_by(block.len().max(1)) {
        let n = block.len().min(len - start);
        be.upload(be.view_mut(&mut buf, start..start + n), &block[..n]).expect("upload");
    }
    buf
}

/// Ceilings of this device: bytes/s of a copy (read plus written), FLOP/s of a large product.
struct Ceilings {
    copy: f64,
    product: f64,
}

struct Bench<'a, B: Clock> {
    be: &'a B,
    criterion: &'a mut Criterion,
    ceilings: Ceilings,
}

impl<B: Clock> Bench<'_, B> {
    /// Times `op(set)` over as many sets of buffers as pass the cache; `work` is bytes, or FLOP where `flop`.
    fn run<S>(
        &mut self,
        name: &str,
        shape: &str,
        work: usize,
        flop: bool,
        set: impl Fn(&B) -> S,
        op: impl Fn(&B, &mut S),
    ) {
        let be = self.be;
        let sets = if flop { 2 } else { B::CACHE.div_ceil(work).clamp(2, 64) };
        let mut sets: Vec<S> = (0..sets).map(|_| set(be)).collect();
        op(be, &mut sets[0]);
        be.synchronize().expect("the op works");
        let (mut best, n) = (f64::INFINITY, sets.len());
        let mut group = self.criterion.benchmark_group(name);
        let work_64 = work as u64;
        group.throughput(if flop { Throughput::Elements(work_64) } else { Throughput::Bytes(work_64) });
        group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
        group.bench_function(BenchmarkId::from_parameter(shape), |b| {
            b.iter_custom(|iterations| {
                let t = be.time(iterations, |i| op(be, &mut sets[i as usize % n]));
                best = best.min(t.as_secs_f64() / iterations as f64);
                t
            });
        });
        group.finish();
        let (rate, ceiling, unit) = if flop {
            (work as f64 / best / 1e9, self.ceilings.product / 1e9, "GFLOP/s")
        } else {
            (work as f64 / best / 1e9, self.ceilings.copy / 1e9, "GB/s")
        };
        println!("{name} {shape}: {rate:.1} {unit}, {:.0} % of the {ceiling:.1} measured", 100.0 * rate / ceiling);
    }
}

/// The better of several timings of `f`, a call at a time after a warm-up, in seconds.
fn best_of<B: Clock>(be: &B, mut f: impl FnMut(u64)) -> f64 {
    f(0);
    (0..5).map(|_| be.time(4, &mut f).as_secs_f64() / 4.0).fold(f64::INFINITY, f64::min)
}

fn ceilings<B: Clock>(be: &B, edge: usize) -> Ceilings {
    let len = B::CACHE / 2;
    let from = random::<B, f32>(be, len / 4);
    let mut to = be.zeros::<f32>("bench", len / 4).expect("device memory");
    let copy = best_of(be, |_| be.copy(be.view_mut(&mut to, 0..len / 4), be.view(&from, 0..len / 4)).expect("copy"));
    let (x, w) = (random::<B, B::Act>(be, edge * edge), random::<B, B::Act>(be, edge * edge));
    let mut y = be.zeros::<B::Act>("bench", edge * edge).expect("device memory");
    let n = edge * edge;
    let product = best_of(be, |_| {
        let y = be.view_mut(&mut y, 0..n);
        be.linear_fwd(y, be.view(&x, 0..n), be.view(&w, 0..n), edge, edge, Write::Set).expect("product");
    });
    let c = Ceilings { copy: 2.0 * len as f64 / copy, product: 2.0 * (edge as f64).powi(3) / product };
    println!("{}: copy {:.0} GB/s, {edge}^3 product {:.0} GFLOP/s", be.description(), c.copy / 1e9, c.product / 1e9);
    c
}

fn benches<B: Clock>(be: &B, criterion: &mut Criterion, edge: usize) {
    let ceilings = ceilings(be, edge);
    let mut bench = Bench { be, criterion, ceilings };
    let (act, rows) = (size_of::<B::Act>(), B::ROWS);
    // SmolLM2-135M, Qwen2.5-0.5B, Llama-3.2-1B: hidden size and MLP width.
    for (dim, ffn) in [(576, 1536), (896, 4864), (2048, 8192)] {
        norms(&mut bench, rows, dim, act);
        let shape = format!("{rows}x{ffn}");
        let pair = |be: &B| (random::<B, B::Act>(be, rows * 2 * ffn), random::<B, B::Act>(be, rows * ffn));
        bench.run("swiglu_fwd", &shape, 3 * rows * ffn * act, false, pair, |be, (gu, a)| {
            be.swiglu_fwd(be.view_mut(a, 0..rows * ffn), be.view(gu, 0..2 * rows * ffn), ffn).expect("swiglu_fwd");
        });
        bench.run("swiglu_bwd", &shape, 5 * rows * ffn * act, false, pair, |be, (gu, d)| {
            be.swiglu_bwd(be.view_mut(gu, 0..2 * rows * ffn), be.view(d, 0..rows * ffn), ffn).expect("swiglu_bwd");
        });
        let shape = format!("{rows}x{ffn}x{dim}");
        let operands = |be: &B| {
            let r = |n| random::<B, B::Act>(be, n);
            (r(rows * ffn), r(rows * dim), r(ffn * dim))
        };
        bench.run("linear_fwd", &shape, 2 * rows * ffn * dim, true, operands, |be, (y, x, w)| {
            let (x, w) = (be.view(x, 0..rows * dim), be.view(w, 0..ffn * dim));
            be.linear_fwd(be.view_mut(y, 0..rows * ffn), x, w, ffn, dim, Write::Set).expect("linear_fwd");
        });
    }
    batched(&mut bench, if rows > 4096 { 16 } else { 1 });
    optimiser(&mut bench, if rows > 4096 { 64 << 20 } else { 4 << 20 }, act);
}

fn norms<B: Clock>(bench: &mut Bench<'_, B>, rows: usize, dim: usize, act: usize) {
    let (shape, n) = (format!("{rows}x{dim}"), rows * dim);
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        (r(n), r(n), r(dim), random::<B, B::Acc>(be, rows), random::<B, B::Acc>(be, dim), r(n))
    };
    bench.run("rmsnorm_fwd", &shape, (2 * n + dim) * act + 4 * rows, false, set, |be, (y, x, w, rstd, ..)| {
        let (y, rstd) = (be.view_mut(y, 0..n), be.view_mut(rstd, 0..rows));
        be.rmsnorm_fwd(y, rstd, be.view(x, 0..n), be.view(w, 0..dim), 1e-5).expect("rmsnorm_fwd");
    });
    bench.run("rmsnorm_bwd", &shape, (3 * n + dim) * act + 4 * rows, false, set, |be, (dx, x, w, rstd, dw, dy)| {
        let (dx, dw) = (be.view_mut(dx, 0..n), Some(be.view_mut(dw, 0..dim)));
        let (dy, x, w, rstd) = (be.view(dy, 0..n), be.view(x, 0..n), be.view(w, 0..dim), be.view(rstd, 0..rows));
        be.rmsnorm_bwd(dx, dw, dy, x, w, rstd, Write::Set).expect("rmsnorm_bwd");
    });
}

/// `count` groups of a prompt of `prompt` tokens and two responses of `response` tokens.
fn micro_batch(count: u32, prompt: u32, response: u32, vocab: u32) -> MicroBatch {
    let rows = prompt + 2 * response;
    let mut m = MicroBatch { slots: (count * rows) as usize, used: (count * rows) as usize, ..Default::default() };
    for g in 0..count {
        let start = g * rows;
        let first = [m.segments.len(), m.responses.len(), m.predictions.len()].map(|n| n as u32);
        m.segments.push(Segment { start, len: prompt, prefix_start: start, prefix_len: 0 });
        m.tokens.extend((0..rows).map(|i| (start + i).wrapping_mul(2654435761) % vocab));
        m.positions.extend((0..prompt + response).chain(prompt..prompt + response));
        for r in 0..2 {
            let at = start + prompt + r * response;
            m.segments.push(Segment { start: at, len: response, prefix_start: start, prefix_len: prompt });
            let from = m.predictions.len() as u32;
            let row = |i: u32| if i == 0 { start + prompt - 1 } else { at + i - 1 };
            let predict = |i| Prediction { row: row(i), target: m.tokens[(at + i) as usize], response: first[1] + r };
            m.predictions.extend((0..response).map(predict));
            m.responses.push(ResponseSlot { id: 0, predictions: from..from + response, ref_logp: 0.0 });
        }
        m.pairs.push(PairSlot { chosen: first[1], rejected: first[1] + 1, weight: 1.0, id: u64::from(g) });
        m.groups.push(GroupSpan {
            id: u64::from(g),
            prompt: start..start + prompt,
            segments: first[0]..first[0] + 3,
            responses: first[1]..first[1] + 2,
            predictions: first[2]..first[2] + 2 * response,
            pairs: g..g + 1,
            end: start + rows,
        });
    }
    m.rows_by_token = (0..m.used as u32).collect();
    m.rows_by_token.sort_by_key(|r| (m.tokens[*r as usize], *r));
    m.predictions_by_row = (0..m.predictions.len() as u32).collect();
    m.predictions_by_row.sort_by_key(|p| (m.predictions[*p as usize].row, *p));
    m
}

/// The head with its product, and attention over a shared prefix: FLOP as the algorithm needs them.
fn batched<B: Clock>(bench: &mut Bench<'_, B>, count: u32) {
    let (prompt, response, dim, vocab) = (256u32, 256u32, 896, 32768);
    let micro = micro_batch(count, prompt, response, vocab as u32);
    let (rows, n) = (micro.used, micro.predictions.len());
    let capacity = Capacity { slots: rows, predictions: n, responses: 2 * count as usize, pairs: count as usize };
    let mut batch = bench.be.new_batch(capacity).expect("device memory");
    bench.be.load_batch(&mut batch, &micro).expect("a sound batch");
    let chunk = Chunk { responses: 0..capacity.responses, predictions: 0..n, pairs: 0..capacity.pairs };
    let set = |be: &B| {
        let stats = [(); 4].map(|()| be.zeros::<B::Acc>("bench", n).expect("device memory"));
        let r = |n| random::<B, B::Act>(be, n);
        (r(n * dim), r(vocab * dim), be.zeros::<B::Acc>("bench", n * vocab).expect("device memory"), stats)
    };
    bench.run("head_fwd", &format!("{n}x{vocab}x{dim}"), 2 * n * vocab * dim, true, set, |be, (x, w, z, stats)| {
        let [logp, entropy, p2, hit] = stats;
        let view = |b| be.view_mut(b, 0..n);
        let stats = HeadStats { logp: view(logp), entropy: view(entropy), log_sum_p2: view(p2), hit: view(hit) };
        let (x, w, z) = (be.view(x, 0..n * dim), be.view(w, 0..vocab * dim), be.view_mut(z, 0..n * vocab));
        be.head_fwd(stats, z, x, w, &batch, &chunk, HeadMode::Train).expect("head_fwd");
    });
    let shape = AttnShape { heads: 14, kv_heads: 2, head_dim: 64 };
    let (p, r) = (prompt as usize, response as usize);
    let scores = count as usize * (p * (p + 1) / 2 + 2 * (r * p + r * (r + 1) / 2));
    let flop = 4 * scores * shape.heads * shape.head_dim;
    let (wide, narrow, stat) = (rows * shape.qkv_width(), rows * shape.q_width(), rows * shape.heads);
    let set = |be: &B| {
        let (a, b) = (be.zeros::<B::Acc>("bench", stat).expect("memory"), be.zeros("bench", stat).expect("memory"));
        let r = |n| random::<B, B::Act>(be, n);
        (r(wide), r(narrow), r(narrow), r(wide), a, b)
    };
    let name = format!("{count}x({prompt}+2x{response}) hd 64");
    bench.run("attention_fwd", &name, flop, true, set, |be, (qkv, out, _, _, lse, _)| {
        let (out, lse) = (be.view_mut(out, 0..narrow), be.view_mut(lse, 0..stat));
        be.attention_fwd(out, lse, be.view(qkv, 0..wide), &batch, shape).expect("attention_fwd");
    });
    bench.run("attention_bwd", &name, flop * 5 / 2, true, set, |be, (qkv, out, dout, dqkv, lse, delta)| {
        let (dqkv, delta) = (be.view_mut(dqkv, 0..wide), be.view_mut(delta, 0..stat));
        let (dout, out) = (be.view(dout, 0..narrow), be.view(out, 0..narrow));
        let (lse, qkv) = (be.view(lse, 0..stat), be.view(qkv, 0..wide));
        be.attention_bwd(dqkv, delta, dout, out, lse, qkv, &batch, shape).expect("attention_bwd");
    });
}

fn optimiser<B: Clock>(bench: &mut Bench<'_, B>, n: usize, act: usize) {
    let bytes = if B::MASTER_WEIGHTS { 28 + act } else { 28 } * n;
    let set = |be: &B| {
        let r = |n| random::<B, B::Acc>(be, n);
        (
            random::<B, B::Act>(be, n),
            B::MASTER_WEIGHTS.then(|| r(n)),
            r(n),
            r(n),
            r(n),
            be.zeros::<f64>("bench", 1).expect("memory"),
        )
    };
    let shape = format!("{n}");
    bench.run("grad_norm", &shape, 4 * n, false, set, |be, (_, _, _, _, g, norm)| {
        be.grad_norm(be.view_mut(norm, 0..1), be.view(g, 0..n)).expect("grad_norm");
    });
    bench.run("adamw", &shape, bytes, false, set, |be, (w, master, m, v, g, norm)| {
        let update = Update::AdamW { lr: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 5 };
        let master = master.as_mut().map(|b| be.view_mut(b, 0..n));
        let (w, m, v) = (be.view_mut(w, 0..n), be.view_mut(m, 0..n), be.view_mut(v, 0..n));
        be.update(w, master, m, v, be.view(g, 0..n), be.view(norm, 0..1), 1.0, &update).expect("adamw");
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    match unavailable() {
        None => {
            let gpu = Gpu::<_, bf16>::new(CudaDriver::open(0).expect("the GPU opens")).expect("device memory");
            benches(&gpu, &mut criterion, 8192);
        }
        Some(why) => {
            println!("no GPU is timed here: {why}\ntimed instead: the CPU backend's ops in f32");
            benches(&Cpu::<f32>::new().expect("the CPU"), &mut criterion, 1024);
        }
    }
    criterion.final_summary();
}
