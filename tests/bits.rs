//! The bits that every op gives on fixed inputs, pinned to the fingerprint that log-probs are kept under. Where they change
//! and the number in the fingerprint does not, a kept log-prob would be taken for what it no longer is: this fails then, and
//! says which family changed. Raise `NUMERICS` of that backend, and pin what is printed.
//!
//! The CPU is pinned at every level that it has here; the kernels, with the geometry that the wrappers launch them in, by
//! their host build. What a GPU makes of them is part of its fingerprint by itself: its architecture, the compiled images, the library.

#[path = "common/batches.rs"]
mod batches;
#[path = "common/host.rs"]
mod host;

use batches::{capacity, chunk, micro_batch};
use crc32fast::Hasher;
use fusedpo::backend::cpu::{Cpu, GemmPrecision, Level};
use fusedpo::backend::gpu::{Gpu, GpuFloat};
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};

const FAMILIES: [&str; 13] = [
    "embed",
    "norm",
    "linear",
    "rope",
    "attention",
    "decode",
    "swiglu",
    "rows",
    "head",
    "loss",
    "optim",
    "qk_norm",
    "adapter",
];

/// Sums over the outputs of each family, by fingerprint; on x86-64 alone, as other compilers contract the kernels' sums. With
/// FMA: the C library's `exp` and `log` have two versions.
#[rustfmt::skip]
const PINNED: &[(&str, [u32; 13])] = &[
    ("cpu-f32-x86_64-v7", [0xb12d821e, 0x495abc76, 0x2074b1d8, 0x45f8fa4f, 0x52b5e640, 0xc42c262a, 0x436a8974, 0xa22676f7, 0xb594d3e9, 0xdee4befc, 0x48d6b63f, 0xf9a9781b, 0xfa691a0f]),
    ("cpu-f32-avx2-v7", [0xb12d821e, 0x495abc76, 0xc1b3353f, 0x45f8fa4f, 0xa6c12bee, 0xc42c262a, 0x436a8974, 0xa22676f7, 0x5cd233b7, 0x22f77e01, 0x48d6b63f, 0xf9a9781b, 0xf0e8986e]),
    ("cpu-f32-avx512-v7", [0xb12d821e, 0x495abc76, 0xc1b3353f, 0x45f8fa4f, 0xa6c12bee, 0xc42c262a, 0x436a8974, 0xa22676f7, 0x5cd233b7, 0x22f77e01, 0x48d6b63f, 0xf9a9781b, 0xf0e8986e]),
    ("cpu-f32-amx-v7", [0xb12d821e, 0x495abc76, 0x019f9b07, 0x45f8fa4f, 0xa6c12bee, 0xc42c262a, 0x436a8974, 0xa22676f7, 0xc3331f8c, 0x56cfbfbf, 0x48d6b63f, 0xf9a9781b, 0xf0e8986e]),
    ("cpu-f32-bf16-avx512-v7", [0xb12d821e, 0x495abc76, 0xda44ecac, 0x45f8fa4f, 0x882b25f5, 0xc42c262a, 0x436a8974, 0xa22676f7, 0x72c6737b, 0x58733e2e, 0x48d6b63f, 0xf9a9781b, 0x626632c8]),
    ("cpu-f32-bf16-avx512fma-v7", [0xb12d821e, 0x495abc76, 0xb34ea70b, 0x45f8fa4f, 0xf6c7108b, 0xc42c262a, 0x436a8974, 0xa22676f7, 0x086cfe65, 0x23f477d4, 0x48d6b63f, 0xf9a9781b, 0x9fa5a70f]),
    ("cpu-f32-bf16-amx-v7", [0xb12d821e, 0x495abc76, 0x16aef836, 0x45f8fa4f, 0x30d389d7, 0xc42c262a, 0x436a8974, 0xa22676f7, 0xaeacf2b2, 0x2e459059, 0x48d6b63f, 0xf9a9781b, 0xe97a9ae6]),
    ("gpu-kernels on the host-f32-v4", [0xb12d821e, 0x0b185bf4, 0xe94d2342, 0xc8b9c574, 0xa16e5c56, 0xd814216c, 0x314d6dcc, 0xa22676f7, 0x29d37612, 0x39e897eb, 0xf168fe0d, 0x35b9533c, 0x6dbdd930]),
    ("gpu-kernels on the host-bf16-v4", [0x7d795a71, 0xb2a36b48, 0x4d032c99, 0x073510d2, 0x8c7e2620, 0xa702cd72, 0xffe5948f, 0x78cce949, 0x6ce629ea, 0xea4e9568, 0x77abe888, 0x7a238c21, 0xc8b6a9a5]),
];

/// Runs ops and sums up their outputs.
struct Ops<'a, B: Backend> {
    be: &'a B,
    micro: MicroBatch,
    batch: B::Batch,
    noise: u64,
    sums: [Hasher; 13],
}

const SHAPE: AttnShape = AttnShape { heads: 4, kv_heads: 2, head_dim: 64 };
const VOCAB: usize = 300;
/// More than a block along the summed index, and a multiple of nothing but 8.
const DIM: usize = 616;
const FFN: usize = 136;

/// Outputs of the norm of queries and keys.
type Normed<B> = ([<B as Device>::Buf<<B as Device>::Act>; 2], [<B as Device>::Buf<<B as Device>::Acc>; 2]);

macro_rules! v {
    ($o:ident, $buf:expr) => {
        $o.be.view(&$buf, 0..$o.be.len(&$buf))
    };
    ($o:ident, mut $buf:expr) => {{
        let n = $o.be.len(&$buf);
        $o.be.view_mut(&mut $buf, 0..n)
    }};
}

impl<'a, B: Backend> Ops<'a, B> {
    fn new(be: &'a B) -> Self {
        let mut noise = 7;
        let sizes: [(u32, &[u32]); 4] = [(40, &[33, 3]), (3, &[2, 1, 30, 4]), (0, &[9, 1]), (5, &[2])];
        let micro = micro_batch(133, &sizes, VOCAB as u32, || uniform(&mut noise));
        let mut batch = be.new_batch(capacity(&micro), SHAPE).unwrap();
        be.load_batch(&mut batch, &micro).unwrap();
        Ops { be, micro, batch, noise, sums: Default::default() }
    }
    /// Numbers up to `scale`, rounded to the type: in f32 they fill it, so that products round.
    fn input<T: Float>(&mut self, len: usize, scale: f64) -> B::Buf<T> {
        let draw = |_| T::from_f64(f64::from((scale * (2.0 * uniform(&mut self.noise) - 1.0)) as f32));
        let data: Vec<T> = (0..len).map(draw).collect();
        let mut buf = self.be.zeros("input", len).unwrap();
        self.be.upload(self.be.view_mut(&mut buf, 0..len), &data).unwrap();
        buf
    }
    fn act(&mut self, len: usize) -> B::Buf<B::Act> {
        self.input(len, 1.0)
    }
    fn acc(&mut self, len: usize) -> B::Buf<B::Acc> {
        self.input(len, 1.0)
    }
    fn get<T: Storage>(&self, buf: &B::Buf<T>) -> Vec<T> {
        let mut host = vec![T::zeroed(); self.be.len(buf)];
        self.be.download(&mut host, v!(self, *buf)).unwrap();
        host
    }
    fn see<T: Storage>(&mut self, family: &str, buf: &B::Buf<T>) {
        let host = self.get(buf);
        let at = FAMILIES.iter().position(|f| *f == family).expect("a family");
        self.sums[at].update(bytemuck::cast_slice(&host));
    }
    /// The first `take` of every `of` numbers.
    fn see_part(&mut self, family: &str, buf: &B::Buf<f64>, of: usize, take: usize) {
        let mut host = vec![0.0; self.be.len(buf)];
        self.be.download(&mut host, v!(self, *buf)).unwrap();
        let at = FAMILIES.iter().position(|f| *f == family).expect("a family");
        host.chunks_exact(of).for_each(|row| self.sums[at].update(bytemuck::cast_slice(&row[..take])));
    }
    fn rows(&self) -> usize {
        self.be.rows(&self.batch)
    }

    fn embed(&mut self) {
        let rows = self.rows();
        let (mut x, table) = (self.act(rows * DIM), self.act(VOCAB * DIM));
        self.be
            .embed_fwd(EmbedFwd { x: v!(self, mut x), table: v!(self, table), batch: &self.batch, dim: DIM })
            .unwrap();
        let mut dtable = self.acc(VOCAB * DIM);
        self.be
            .embed_bwd(EmbedBwd { dtable: v!(self, mut dtable), dx: v!(self, x), batch: &self.batch, dim: DIM })
            .unwrap();
        self.see("embed", &x);
        self.see("embed", &dtable);
    }

    fn norm(&mut self) {
        let (rows, be) = (self.rows(), self.be);
        let (x, w, mut y, mut rstd) = (self.act(rows * DIM), self.act(DIM), self.act(rows * DIM), self.acc(rows));
        let (mut dy, mut dx, mut dw) = (self.act(rows * DIM), self.act(rows * DIM), self.acc(DIM));
        be.rmsnorm_fwd(RmsNormFwd {
            y: v!(self, mut y),
            rstd: v!(self, mut rstd),
            x: v!(self, x),
            w: v!(self, w),
            eps: 1e-5,
        })
        .unwrap();
        self.see("norm", &y);
        be.rmsnorm_bwd(RmsNormBwd {
            dx: v!(self, mut dx),
            dw: Some(v!(self, mut dw)),
            dy: v!(self, mut dy),
            x: v!(self, x),
            w: v!(self, w),
            rstd: v!(self, rstd),
            write: Write::Add,
            again: true,
        })
        .unwrap();
        assert!(self.get(&dy) == self.get(&y), "the norm's output again");
        // The norm of queries and keys with a rotation by nothing, as the pins were made; see `qk_norm`.
        let n = 128 * SHAPE.head_dim;
        let mut table = be.zeros("table", n).unwrap();
        let cosine = |i: usize| B::Acc::from_f64(f64::from(u8::from(i % SHAPE.head_dim < SHAPE.head_dim / 2)));
        be.upload(v!(self, mut table), &(0..n).map(cosine).collect::<Vec<_>>()).unwrap();
        let (acts, accs) = self.normed("norm", &table);
        for buf in [&y, &dx].into_iter().chain(&acts) {
            self.see("norm", buf);
        }
        for buf in [&rstd, &dw].into_iter().chain(&accs) {
            self.see("norm", buf);
        }
    }

    /// Norm and rotation of queries and keys, forward and backward: their gradient and what they were, statistics and dw.
    fn normed(&mut self, family: &str, table: &B::Buf<B::Acc>) -> Normed<B> {
        let (rows, be, heads) = (self.rows(), self.be, SHAPE.heads + SHAPE.kv_heads);
        let (mut qkv, mut raw) = (self.act(rows * SHAPE.qkv_width()), self.act(rows * heads * SHAPE.head_dim));
        let (mut stats, w, mut dw) =
            (self.acc(rows * heads), self.act(2 * SHAPE.head_dim), self.acc(2 * SHAPE.head_dim));
        be.qk_norm_fwd(QkNormFwd {
            qkv: v!(self, mut qkv),
            raw: v!(self, mut raw),
            rstd: v!(self, mut stats),
            w: v!(self, w),
            table: v!(self, *table),
            batch: &self.batch,
            shape: SHAPE,
            eps: 1e-6,
        })
        .unwrap();
        self.see(family, &qkv);
        be.qk_norm_bwd(QkNormBwd {
            dqkv: v!(self, mut qkv),
            dw: Some(v!(self, mut dw)),
            raw: v!(self, raw),
            rstd: v!(self, stats),
            w: v!(self, w),
            table: v!(self, *table),
            batch: &self.batch,
            shape: SHAPE,
        })
        .unwrap();
        ([qkv, raw], [stats, dw])
    }

    /// Angles are numbers like any other.
    fn qk_norm(&mut self) {
        let table = self.acc(128 * SHAPE.head_dim);
        let (acts, accs) = self.normed("qk_norm", &table);
        acts.iter().for_each(|buf| self.see("qk_norm", buf));
        accs.iter().for_each(|buf| self.see("qk_norm", buf));
    }

    fn linear(&mut self) {
        let (rows, be, out, inp) = (self.rows(), self.be, FFN, DIM);
        let (x, w, mut y, plus) =
            (self.act(rows * inp), self.act(out * inp), self.act(rows * out), self.act(rows * out));
        let (mut dx, mut dw, bias, mut dbias) =
            (self.act(rows * inp), self.acc(out * inp), self.act(out), self.acc(out));
        for i in 0..3 {
            let write = [Write::Set, Write::Add, Write::Plus(v!(self, plus))][i];
            be.linear_fwd(LinearFwd { y: v!(self, mut y), x: v!(self, x), w: v!(self, w), out, inp, write }).unwrap();
            self.see("linear", &y);
        }
        be.linear_bwd_input(LinearBwdInput {
            dx: v!(self, mut dx),
            dy: v!(self, plus),
            w: v!(self, w),
            out,
            inp,
            write: Write::Add,
        })
        .unwrap();
        be.linear_bwd_weight(LinearBwdWeight {
            dw: v!(self, mut dw),
            dy: v!(self, plus),
            x: v!(self, x),
            out,
            inp,
            write: Write::Add,
        })
        .unwrap();
        be.bias_fwd(BiasFwd { y: v!(self, mut y), bias: v!(self, bias) }).unwrap();
        be.bias_bwd(BiasBwd { dbias: v!(self, mut dbias), dy: v!(self, y) }).unwrap();
        self.see("linear", &dx);
        self.see("linear", &y);
        self.see("linear", &dw);
        self.see("linear", &dbias);
    }

    fn rope(&mut self) {
        let (mut qkv, table) = (self.act(self.rows() * SHAPE.qkv_width()), self.acc(128 * SHAPE.head_dim));
        let (be, batch, shape) = (self.be, &self.batch, SHAPE);
        be.rope_fwd(RopeFwd { qkv: v!(self, mut qkv), bias: None, table: v!(self, table), batch, shape }).unwrap();
        be.rope_bwd(RopeBwd { dqkv: v!(self, mut qkv), dbias: None, table: v!(self, table), batch, shape }).unwrap();
        self.see("rope", &qkv);
    }

    fn attention(&mut self) {
        let (rows, be, shape) = (self.rows(), self.be, SHAPE);
        let (q, w) = (rows * shape.q_width(), rows * shape.qkv_width());
        let (qkv, mut out, mut lse) = (self.act(w), self.act(q), self.acc(rows * shape.heads));
        let (dout, mut dqkv, mut delta) = (self.act(q), self.act(w), self.acc(rows * shape.heads));
        let len = be.attention_partial(capacity(&self.micro).slots, &shape);
        let mut partial = be.zeros("partial", len).unwrap();
        be.attention_fwd(AttentionFwd {
            out: v!(self, mut out),
            lse: v!(self, mut lse),
            qkv: v!(self, qkv),
            batch: &self.batch,
            shape,
        })
        .unwrap();
        be.attention_bwd(AttentionBwd {
            dqkv: v!(self, mut dqkv),
            delta: v!(self, mut delta),
            partial: v!(self, mut partial),
            dout: v!(self, dout),
            out: v!(self, out),
            lse: v!(self, lse),
            qkv: v!(self, qkv),
            batch: &self.batch,
            shape,
        })
        .unwrap();
        self.see("attention", &out);
        self.see("attention", &lse);
        self.see("attention", &dqkv);
    }

    fn decode(&mut self) {
        let (be, shape, stride, lens) = (self.be, SHAPE, 40, [40, 1, 17]);
        let (mut k, mut v) = (self.act(120 * shape.kv_width()), self.act(120 * shape.kv_width()));
        let (qkv, mut out) = (self.act(3 * shape.qkv_width()), self.act(3 * shape.q_width()));
        let dst = [39, u32::MAX, 96];
        be.kv_store(KvStore { k: v!(self, mut k), v: v!(self, mut v), qkv: v!(self, qkv), dst: &dst, shape }).unwrap();
        be.attention_decode(AttentionDecode {
            out: v!(self, mut out),
            qkv: v!(self, qkv),
            k: v!(self, k),
            v: v!(self, v),
            lens: &lens,
            stride,
            shape,
        })
        .unwrap();
        for buf in [&k, &v, &out] {
            self.see("decode", buf);
        }
    }

    fn swiglu(&mut self) {
        let (rows, be) = (self.rows(), self.be);
        let (mut act, mut dact) = (self.act(rows * FFN), self.act(rows * FFN));
        let mut gate_up = self.input(2 * rows * FFN, 4.0);
        be.swiglu_fwd(SwigluFwd { act: v!(self, mut act), gate_up: v!(self, gate_up), ffn: FFN }).unwrap();
        be.swiglu_bwd(SwigluBwd { gate_up: v!(self, mut gate_up), dact: v!(self, mut dact), ffn: FFN, again: true })
            .unwrap();
        assert!(self.get(&dact) == self.get(&act), "SwiGLU's output again");
        self.see("swiglu", &act);
        self.see("swiglu", &gate_up);
    }

    fn gather_and_scatter(&mut self) {
        let (rows, n, be) = (self.rows(), self.micro.predictions().len(), self.be);
        let (mut x, mut out) = (self.act(rows * DIM), self.act(n * DIM));
        be.gather_rows(GatherRows { out: v!(self, mut out), x: v!(self, x), batch: &self.batch, dim: DIM }).unwrap();
        be.scatter_rows(ScatterRows { dx: v!(self, mut x), dout: v!(self, out), batch: &self.batch, dim: DIM })
            .unwrap();
        self.see("rows", &out);
        self.see("rows", &x);
    }

    fn head_and_loss(&mut self) {
        let (be, chunk) = (self.be, chunk(&self.micro, 0..self.micro.groups().len()));
        let n = chunk.predictions.len();
        let (x, w, mut z) = (self.act(n * DIM), self.input(VOCAB * DIM, 0.05), self.acc(n * VOCAB));
        be.logits(Logits { logits: v!(self, mut z), x: v!(self, x), w: v!(self, w), dim: DIM }).unwrap();
        self.see("head", &z);
        let [mut logp, mut entropy, mut log_sum_p2, mut hit] = [(); 4].map(|()| self.acc(n));
        be.head_fwd(HeadFwd {
            logp: v!(self, mut logp),
            entropy: v!(self, mut entropy),
            log_sum_p2: v!(self, mut log_sum_p2),
            hit: v!(self, mut hit),
            logits: v!(self, mut z),
            x: v!(self, x),
            w: v!(self, w),
            batch: &self.batch,
            chunk: &chunk,
            mode: HeadMode::Train,
        })
        .unwrap();
        let (coef, mut dw) = (self.acc(n), self.acc(VOCAB * DIM));
        let (mut dx, mut scaled) = (self.act(n * DIM), self.act(n * DIM));
        be.head_bwd(HeadBwd {
            dx: v!(self, mut dx),
            dw: Some((v!(self, mut dw), Write::Add)),
            scaled: v!(self, mut scaled),
            logits: v!(self, z),
            x: v!(self, x),
            w: v!(self, w),
            coef: v!(self, coef),
        })
        .unwrap();
        for buf in [&logp, &entropy, &log_sum_p2, &hit, &dw] {
            self.see("head", buf);
        }
        self.see("head", &dx);
        // The four losses that the pins were made with; of what the op writes, what it wrote then.
        let (r, p) = (chunk.responses.len(), chunk.pairs.len());
        for loss_type in [LossType::Sigmoid, LossType::Hinge, LossType::Ipo, LossType::Sft] {
            let mut coef = self.acc(n);
            // They take numbers from the noise that the ops after this one are given.
            let (_, _) = (self.input::<f64>(4 * r, 1.0), self.input::<f64>(3 * p, 1.0));
            let mut responses = be.zeros::<f64>("responses", r * RESPONSE_STATS).unwrap();
            let mut pairs = be.zeros::<f64>("pairs", p * PAIR_STATS).unwrap();
            be.loss(Loss {
                coef: v!(self, mut coef),
                responses: v!(self, mut responses),
                pairs: v!(self, mut pairs),
                logp: v!(self, logp),
                entropy: v!(self, entropy),
                hit: v!(self, hit),
                log_sum_p2: v!(self, log_sum_p2),
                batch: &self.batch,
                chunk: &chunk,
                spec: &LossSpec::of(loss_type).beta(0.1),
                scales: 0.125.into(),
                given: false,
            })
            .unwrap();
            self.see("loss", &coef);
            self.see_part("loss", &responses, RESPONSE_STATS, 4);
            let of_pairs = if loss_type == LossType::Sft { 0 } else { 3 };
            self.see_part("loss", &pairs, PAIR_STATS, of_pairs);
            self.sums[9].update(&vec![0; 8 * (3 - of_pairs) * p]);
        }
    }

    fn optim(&mut self) {
        // More than a block of the CPU's norm.
        let (be, n) = (self.be, 70_001);
        let (mut w, g, mut m) = (self.act(n), self.acc(n), self.acc(n));
        let mut v = self.input::<B::Acc>(n, 1.0);
        let positive = vec![B::Acc::from_f64(0.25); n];
        be.upload(v!(self, mut v), &positive).unwrap();
        let mut master = B::MASTER_WEIGHTS.then(|| self.acc(n));
        let mut norm = self.input::<f64>(1, 1.0);
        be.grad_norm(GradNorm { norm: v!(self, mut norm), g: v!(self, g) }).unwrap();
        self.see("optim", &norm);
        for rule in [
            Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 3 },
            Rule::RmsProp { lr: 1e-3, alpha: 0.99, eps: 1e-8, weight_decay: 0.01 },
        ] {
            be.update(Update {
                w: v!(self, mut w),
                master: master.as_mut().map(|x| be.view_mut(x, 0..n)),
                m: v!(self, mut m),
                v: v!(self, mut v),
                g: v!(self, g),
                norm: v!(self, norm),
                max_grad_norm: 1.0,
                rule,
            })
            .unwrap();
            self.see("optim", &w);
            self.see("optim", &m);
            self.see("optim", &v);
            if let Some(master) = &master {
                self.see("optim", master);
            }
        }
    }
}

impl<B: Backend> Ops<'_, B> {
    /// Two modules of a product, of which the second has the last columns, and the gradients through their first half.
    fn adapter(&mut self) {
        let (rows, be, columns) = (self.rows(), self.be, [0..96, 100..FFN]);
        let parts = AdapterParts { columns: &columns, rank: 12, out: FFN, inp: DIM, scale: 1.25 };
        let (low, covered) = (parts.low(), parts.covered() * parts.rank);
        let (x, a, b) = (self.act(rows * DIM), self.act(low * DIM), self.act(covered));
        let (mut y, mut between, mut dlow) = (self.act(rows * FFN), self.act(rows * low), self.act(rows * low));
        let (mut dx, mut da, mut db) = (self.act(rows * DIM), self.acc(low * DIM), self.acc(covered));
        let fwd = AdapterFwd {
            y: v!(self, mut y),
            low: v!(self, mut between),
            x: v!(self, x),
            a: v!(self, a),
            b: v!(self, b),
            parts,
        };
        be.adapter_fwd(fwd).unwrap();
        be.adapter_bwd_low(AdapterBwdLow { dlow: v!(self, mut dlow), dy: v!(self, y), b: v!(self, b), parts }).unwrap();
        let bwd = AdapterBwdWeight {
            db: v!(self, mut db),
            low: v!(self, mut between),
            dy: v!(self, y),
            x: v!(self, x),
            a: v!(self, a),
            parts,
        };
        be.adapter_bwd_weight(bwd).unwrap();
        let bwd = LinearBwdInput {
            dx: v!(self, mut dx),
            dy: v!(self, dlow),
            w: v!(self, a),
            out: low,
            inp: DIM,
            write: Write::Add,
        };
        be.linear_bwd_input(bwd).unwrap();
        let bwd = LinearBwdWeight {
            dw: v!(self, mut da),
            dy: v!(self, dlow),
            x: v!(self, x),
            out: low,
            inp: DIM,
            write: Write::Add,
        };
        be.linear_bwd_weight(bwd).unwrap();
        for buf in [&y, &dlow, &dx] {
            self.see("adapter", buf);
        }
        for buf in [&da, &db] {
            self.see("adapter", buf);
        }
    }
}

/// SplitMix64 (Steele et al. 2014), in `[0, 1)`.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Compares what `be` computes with what is pinned for it.
fn check<B: Backend>(be: &B) {
    let mut ops = Ops::new(be);
    ops.embed();
    ops.norm();
    ops.linear();
    ops.rope();
    ops.attention();
    ops.decode();
    ops.swiglu();
    ops.gather_and_scatter();
    ops.head_and_loss();
    ops.optim();
    ops.qk_norm();
    ops.adapter();
    let got = ops.sums.map(Hasher::finalize);
    let fingerprint = be.fingerprint();
    let line = format!("(\"{fingerprint}\", {got:#010x?}),").replace("\n    ", " ").replace(",\n]", "]");
    if !cfg!(target_arch = "x86_64") {
        return eprintln!("not pinned: {line}");
    }
    if let Some((_, want)) = PINNED.iter().find(|(f, _)| *f == fingerprint) {
        for ((family, got), want) in FAMILIES.iter().zip(got).zip(want) {
            assert!(got == *want, "{fingerprint}: other bits of {family} than before: raise NUMERICS, and pin {line}");
        }
        return;
    }
    let kind = |f: &str| f.rsplit_once("-v").map(|(kind, _)| kind.to_owned());
    let known = PINNED.iter().any(|(f, _)| kind(f) == kind(&fingerprint));
    assert!(!known, "NUMERICS was raised: pin {line}");
    eprintln!("not pinned: {line}");
}

#[test]
fn of_the_cpu() {
    for level in Level::available() {
        check(&Cpu::<f32>::at(level, GemmPrecision::Native).unwrap());
        if level.has_bf16() {
            check(&Cpu::<f32>::at(level, GemmPrecision::Bf16).unwrap());
        }
    }
}

fn of_the_kernels<A: GpuFloat>() {
    let Some(driver) = host::host_driver(0) else { return };
    check(&Gpu::<_, A>::new(driver).unwrap());
}

#[test]
fn of_the_kernels_in_f32() {
    of_the_kernels::<f32>();
}

#[test]
fn of_the_kernels_in_bf16() {
    of_the_kernels::<half::bf16>();
}
