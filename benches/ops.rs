//! The CPU backend's ops at the shapes of a step (SmolLM2-135M, 1024 slots of HH-RLHF's lengths), each as a share of what
//! this machine can do, measured in the same run: multiply-adds in registers on every core, and a copy between buffers
//! that no cache holds. `cargo bench --bench ops [-- FILTER]`.
//!
//! Products: twice the multiplications. Attention: the products under the mask, two forward, five backward (our backward pass
//! computes two of them twice, which counts as time alone). Optimiser: every operand read or written once.
//! `benches/pack.rs` times packing, `benches/kernels` the GPU's ops.

#[path = "machine/mod.rs"]
mod machine;
#[path = "step/shapes.rs"]
#[allow(dead_code)] // benches/step uses the rest
mod shapes;

use criterion::{Criterion, Throughput};
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::rounding::Rounding;
use fusedpo::backend::*;
use fusedpo::batch::{Capacity, Chunk, MicroBatch};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::loss::{LossSpec, LossType, Term};
use fusedpo::quant::{Absmax, Nf4Tensor, Precision};
use half::bf16;
use shapes::{MIXES, Numbers, SHAPES};
use std::time::Duration;

const SLOTS: usize = 1024;
const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.1);

/// What this machine can do.
struct Machine {
    /// FLOP/s of f32 multiply-adds in registers.
    flops: Option<f64>,
    /// Bytes a second of a copy.
    bytes: f64,
}

struct Bench<'a> {
    criterion: &'a mut Criterion,
    machine: &'a Machine,
}

impl Bench<'_> {
    /// Times `op`, which does `work` FLOPs or, where there are none, moves `bytes`; says how much of the machine that is.
    fn run(&mut self, group: &str, name: &str, work: Work, mut op: impl FnMut()) {
        let mut least = f64::INFINITY;
        let mut g = self.criterion.benchmark_group(group);
        g.throughput(match work {
            Work::Flop(n) => Throughput::Elements(n as u64),
            Work::Bytes(n) => Throughput::Bytes(n as u64),
            Work::Tokens(n) => Throughput::Elements(n as u64),
        });
        g.bench_function(name, |b| {
            b.iter_custom(|times| {
                let begun = std::time::Instant::now();
                (0..times).for_each(|_| op());
                let spent = begun.elapsed();
                least = least.min(spent.as_secs_f64() / times as f64);
                spent
            });
        });
        g.finish();
        if least.is_infinite() {
            return; // filtered out
        }
        match (work, self.machine.flops) {
            (Work::Flop(n), Some(peak)) => {
                let rate = n / least;
                println!(
                    "{group}/{name}: best {:.0} GFLOP/s, {:.0} % of f32 multiply-adds",
                    rate / 1e9,
                    100.0 * rate / peak
                );
            }
            (Work::Flop(n), None) => println!("{group}/{name}: best {:.0} GFLOP/s", n / least / 1e9),
            (Work::Bytes(n), _) => {
                let rate = n / least;
                println!(
                    "{group}/{name}: best {:.1} GB/s, {:.0} % of a copy",
                    rate / 1e9,
                    100.0 * rate / self.machine.bytes
                );
            }
            (Work::Tokens(n), _) => println!("{group}/{name}: best {:.0} tokens/s", n / least),
        }
    }
}

/// What an op does at least.
#[derive(Clone, Copy)]
enum Work {
    Flop(f64),
    Bytes(f64),
    Tokens(f64),
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    (0..n).map(|_| numbers.next() as f32 * 2.0 - 1.0).collect()
}

fn products(b: &mut Bench<'_>, be: &Cpu<f32>, group: &str) {
    let config = SHAPES[1].config();
    let (hidden, ffn, a) = (config.hidden_size, config.intermediate_size, config.attn_shape());
    let layers = [
        ("qkv", a.qkv_width(), hidden),
        ("o", hidden, a.q_width()),
        ("gate_up", 2 * ffn, hidden),
        ("down", hidden, ffn),
    ];
    for (name, out, inp, rows) in
        layers.map(|(n, o, i)| (n, o, i, SLOTS)).into_iter().chain([("head", config.vocab_size, hidden, 512)])
    {
        let (mut x, mut y, w) = (random(rows * inp, 1), random(rows * out, 2), random(out * inp, 3));
        let mut dw = vec![0f32; out * inp];
        let work = Work::Flop(2.0 * (rows * out * inp) as f64);
        b.run(group, &format!("{name} forward {rows}x{out}x{inp}"), work, || {
            be.linear_fwd(LinearFwd { y: &mut y, x: &x, w: &w, out, inp, write: Write::Set }).expect("shapes")
        });
        b.run(group, &format!("{name} weight {out}x{inp}x{rows}"), work, || {
            be.linear_bwd_weight(LinearBwdWeight { dw: &mut dw, dy: &y, x: &x, out, inp, write: Write::Add })
                .expect("shapes")
        });
        b.run(group, &format!("{name} input {rows}x{inp}x{out}"), work, || {
            be.linear_bwd_input(LinearBwdInput { dx: &mut x, dy: &y, w: &w, out, inp, write: Write::Set })
                .expect("shapes")
        });
    }
}

/// Gates and ups made dense of four bits: what every product with them costs besides.
fn dequantized(b: &mut Bench<'_>, be: &Cpu<f32>) {
    let config = SHAPES[1].config();
    let shape = [2 * config.intermediate_size, config.hidden_size];
    let n = shape[0] * shape[1];
    let t = Nf4Tensor::quantize(&random(n, 1), &shape, Precision::Bf16, None).expect("finite numbers");
    let Absmax::Plain(absmax) = &t.absmax else { unreachable!("without double quantisation") };
    let mut w = vec![0f32; n];
    b.run("nf4", &format!("gate_up made dense, {n} weights"), Work::Bytes((4 * n + n / 2 + n / 16) as f64), || {
        let absmax = Nf4Absmax::Plain(&absmax[..]);
        be.dequantize_nf4(DequantizeNf4 { w: &mut w, codes: &t.codes, absmax, round: t.dtype }).expect("shapes");
    });
}

/// A full micro-batch, and what it was planned from.
fn micro_batch() -> (MicroBatch, Capacity) {
    let (_dir, data) = shapes::data(&MIXES[0], 64, SHAPES[1].config().vocab_size);
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: 16,
        token_budget: Some(SLOTS),
        seed: 0,
        shuffle: false,
    };
    let plan = Planner::new(&data, &options).expect("a plan");
    (plan.step(0, 0).expect("a step").swap_remove(0), plan.capacity())
}

fn attention(b: &mut Bench<'_>, be: &Cpu<f32>, mb: &MicroBatch, capacity: Capacity) {
    for (name, a) in [
        ("9 over 3 heads of 64", SHAPES[1].config().attn_shape()),
        ("16 over 2 heads of 128", AttnShape { heads: 16, kv_heads: 2, head_dim: 128 }),
    ] {
        let mut batch = be.new_batch(capacity, a).expect("memory");
        be.load_batch(&mut batch, mb).expect("a sound batch");
        let n = mb.used();
        let pairs: f64 = mb
            .segments()
            .iter()
            .map(|s| f64::from(s.len) * (f64::from(s.len) + 1.0) / 2.0 + f64::from(s.len) * f64::from(s.prefix_len))
            .sum();
        let product = 2.0 * pairs * a.q_width() as f64;
        let (qkv, dout) = (random(n * a.qkv_width(), 4), random(n * a.q_width(), 5));
        let (mut out, mut lse, mut delta, mut dqkv) = (
            vec![0f32; n * a.q_width()],
            vec![0f32; n * a.heads],
            vec![0f32; n * a.heads],
            vec![0f32; n * a.qkv_width()],
        );
        let at = format!("{n} rows, {name}");
        b.run("attention", &format!("forward, {at}"), Work::Flop(2.0 * product), || {
            be.attention_fwd(AttentionFwd { out: &mut out, lse: &mut lse, qkv: &qkv, batch: &batch, shape: a })
                .expect("shapes")
        });
        b.run("attention", &format!("backward, {at}"), Work::Flop(5.0 * product), || {
            be.attention_bwd(AttentionBwd {
                dqkv: &mut dqkv,
                delta: &mut delta,
                partial: &mut [],
                dout: &dout,
                out: &out,
                lse: &lse,
                qkv: &qkv,
                batch: &batch,
                shape: a,
            })
            .expect("shapes");
        });
    }
}

fn head(b: &mut Bench<'_>, be: &Cpu<f32>, mb: &MicroBatch, capacity: Capacity) {
    let config = SHAPES[1].config();
    let (dim, vocab, n) = (config.hidden_size, config.vocab_size, mb.predictions().len());
    let mut batch = be.new_batch(capacity, config.attn_shape()).expect("memory");
    be.load_batch(&mut batch, mb).expect("a sound batch");
    let chunk = Chunk { responses: 0..mb.responses().len(), predictions: 0..n, pairs: 0..mb.pairs().len() };
    let (x, w) = (random(n * dim, 6), random(vocab * dim, 7).into_iter().map(|v| v * 0.05).collect::<Vec<_>>());
    let (mut z, mut dx, mut dw, mut scaled) =
        (vec![0f32; n * vocab], vec![0f32; n * dim], vec![0f32; vocab * dim], vec![0f32; n * dim]);
    let mut stats = [(); 4].map(|()| vec![0f32; n]);
    let (mut coef, mut responses, mut pairs) =
        (vec![0f32; n], vec![0f64; RESPONSE_STATS * mb.responses().len()], vec![0f64; PAIR_STATS * mb.pairs().len()]);
    b.run(
        "head",
        &format!("forward, loss and backward, {n} predictions of {vocab}"),
        Work::Flop(6.0 * (n * dim * vocab) as f64),
        || {
            let [logp, entropy, log_sum_p2, hit] = stats.each_mut().map(Vec::as_mut_slice);
            be.head_fwd(HeadFwd {
                logp,
                entropy,
                log_sum_p2,
                hit,
                logits: &mut z,
                x: &x,
                w: &w,
                batch: &batch,
                chunk: &chunk,
                mode: HeadMode::Train,
            })
            .expect("shapes");
            be.loss(Loss {
                coef: &mut coef,
                responses: &mut responses,
                pairs: &mut pairs,
                logp: &stats[0],
                entropy: &stats[1],
                hit: &stats[3],
                log_sum_p2: &stats[2],
                batch: &batch,
                chunk: &chunk,
                spec: &SPEC,
                scales: 0.25.into(),
                given: false,
            })
            .expect("shapes");
            // A coefficient of every size would underflow here and there, where nothing like it happens in training.
            coef.fill(0.25);
            be.head_bwd(HeadBwd {
                dx: &mut dx,
                dw: Some((&mut dw, Write::Add)),
                scaled: &mut scaled,
                logits: &z,
                x: &x,
                w: &w,
                coef: &coef,
            })
            .expect("shapes");
        },
    );
}

/// The losses of a chunk that is a whole micro-batch: one, a sum of three, and the one that reads lists.
fn losses(b: &mut Bench<'_>, be: &Cpu<f32>, mb: &MicroBatch, capacity: Capacity) {
    let n = mb.predictions().len();
    let mut batch = be.new_batch(capacity, SHAPES[1].config().attn_shape()).expect("memory");
    be.load_batch(&mut batch, mb).expect("a sound batch");
    let chunk = Chunk { responses: 0..mb.responses().len(), predictions: 0..n, pairs: 0..mb.pairs().len() };
    let stats = [10, 11, 12, 13].map(|seed| random(n, seed));
    let (mut coef, mut responses, mut pairs) =
        (vec![0f32; n], vec![0f64; RESPONSE_STATS * mb.responses().len()], vec![0f64; PAIR_STATS * mb.pairs().len()]);
    for spec in [
        SPEC,
        LossSpec::of(LossType::Orpo),
        LossSpec::sum(&[LossType::Sigmoid, LossType::BcoPair, LossType::Sft].map(Term::of)),
        LossSpec::of(LossType::PlackettLuce),
    ] {
        let name = format!("{}, {n} predictions, {} pairs", spec.name(), mb.pairs().len());
        b.run("loss", &name, Work::Bytes(20.0 * n as f64), || {
            be.loss(Loss {
                coef: &mut coef,
                responses: &mut responses,
                pairs: &mut pairs,
                logp: &stats[0],
                entropy: &stats[1],
                hit: &stats[2],
                log_sum_p2: &stats[3],
                batch: &batch,
                chunk: &chunk,
                spec: &spec,
                scales: 0.25.into(),
                given: false,
            })
            .expect("shapes")
        });
    }
}

fn optimiser(b: &mut Bench<'_>, be: &Cpu<f32>) {
    let n = 16 << 20;
    let (mut w, g) = (random(n, 8), random(n, 9));
    let (mut m, mut v, mut norm) = (vec![0f32; n], vec![0f32; n], [0f64]);
    b.run("optimizer", "gradient norm", Work::Bytes(4.0 * n as f64), || {
        be.grad_norm(GradNorm { norm: &mut norm, g: &g }).expect("shapes")
    });
    let adamw = Rule::AdamW { lr: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 5 };
    b.run("optimizer", "AdamW", Work::Bytes(28.0 * n as f64), || {
        be.update(Update {
            w: &mut w,
            master: None,
            m: &mut m,
            v: &mut v,
            g: &g,
            norm: &[1.0],
            max_grad_norm: 1.0,
            rule: adamw,
        })
        .expect("shapes")
    });
    let rmsprop = Rule::RmsProp { lr: 1e-6, alpha: 0.99, eps: 1e-8, weight_decay: 0.0 };
    b.run("optimizer", "RMSprop", Work::Bytes(20.0 * n as f64), || {
        be.update(Update {
            w: &mut w,
            master: None,
            m: &mut m,
            v: &mut v,
            g: &g,
            norm: &[1.0],
            max_grad_norm: 1.0,
            rule: rmsprop,
        })
        .expect("shapes")
    });
    let (rule, rounding, blocks) = (adamw, Rounding::of(1, 5, 0), code8::blocks(n));
    let (mut m16, mut v16, g16) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n], vec![bf16::from_f32(0.5); n]);
    b.run("optimizer", "AdamW, moments in bf16", Work::Bytes(20.0 * n as f64), || {
        let (w, m, v, norm) = (&mut w[..], &mut m16[..], &mut v16[..], &[1.0][..]);
        be.update_bf16(UpdateBf16 { w, m, v, g: &g[..], norm, max_grad_norm: 1.0, rule, rounding }).expect("shapes")
    });
    let [mut m8, mut v8] = [vec![0u8; n], vec![0u8; n]];
    let [mut m_scale, mut v_scale] = [vec![0f32; blocks], vec![0f32; blocks]];
    b.run("optimizer", "AdamW, moments in 8 bits, gradients in bf16", Work::Bytes(14.0 * n as f64), || {
        be.update_8bit(Update8bit {
            w: &mut w,
            m: &mut m8,
            m_scale: &mut m_scale,
            v: &mut v8,
            v_scale: &mut v_scale,
            g: &g16[..],
            norm: &[1.0],
            max_grad_norm: 1.0,
            rule,
            rounding,
        })
        .expect("shapes")
    });
    b.run("optimizer", "clearing gradients", Work::Bytes(4.0 * n as f64), || be.clear(&mut m).expect("memory"));
}

fn batches(b: &mut Bench<'_>, be: &Cpu<f32>) {
    let config = SHAPES[1].config();
    let (_dir, data) = shapes::data(&MIXES[0], 1024, config.vocab_size);
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: 64,
        token_budget: Some(SLOTS),
        seed: 0,
        shuffle: true,
    };
    let plan = Planner::new(&data, &options).expect("a plan");
    let built = plan.step(0, 0).expect("a step");
    let tokens: usize = built.iter().map(|mb| mb.used()).sum();
    b.run("batches", "planning and building a step of 64 pairs", Work::Tokens(tokens as f64), || {
        drop(std::hint::black_box(plan.step(0, 0)))
    });
    let mut batch = be.new_batch(plan.capacity(), config.attn_shape()).expect("memory");
    b.run("batches", "loading them onto the device", Work::Tokens(tokens as f64), || {
        built.iter().for_each(|mb| be.load_batch(&mut batch, mb).expect("a sound batch"));
    });
}

fn main() {
    let short = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200));
    let mut criterion = short.measurement_time(Duration::from_secs(1)).configure_from_args();
    let machine = Machine { flops: machine::fma_peak().map(|g| g * 1e9), bytes: machine::copy_bandwidth() * 1e9 };
    let be = Cpu::<f32>::new().expect("the CPU");
    let flops = machine.flops.map_or("no loop for this CPU".into(), |f| format!("{:.0} GFLOP/s", f / 1e9));
    println!("{}; f32 multiply-adds in registers: {flops}; copy: {:.1} GB/s", be.description(), machine.bytes / 1e9);
    let mut b = Bench { criterion: &mut criterion, machine: &machine };
    products(&mut b, &be, "gemm f32");
    dequantized(&mut b, &be);
    match Cpu::<f32>::with(GemmPrecision::Bf16) {
        Ok(bf16) => products(&mut b, &bf16, "gemm bf16"),
        Err(e) => println!("gemm bf16: not timed: {e}"),
    }
    let (mb, capacity) = micro_batch();
    attention(&mut b, &be, &mb, capacity);
    head(&mut b, &be, &mb, capacity);
    losses(&mut b, &be, &mb, capacity);
    optimiser(&mut b, &be);
    batches(&mut b, &be);
    criterion.final_summary();
}
