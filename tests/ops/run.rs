//! Ops as functions from vectors to vectors, outputs prefilled with NaN.

use super::support::{nan, of};
use fusedpo::backend::cpu::{Cpu, CpuBatch, Real};
use fusedpo::backend::{self, *};
use fusedpo::batch::Chunk;
use fusedpo::loss::LossSpec;

pub fn linear<S: Real>(cpu: &Cpu<S>, x: &[S], w: &[S], out: usize, inp: usize) -> Vec<S> {
    let mut y = nan(x.len() / inp * out);
    cpu.linear_fwd(LinearFwd { y: &mut y, x, w, out, inp, write: Write::Set }).unwrap();
    y
}

/// Output and rstd.
pub fn rmsnorm<S: Real>(cpu: &Cpu<S>, x: &[S], w: &[S]) -> (Vec<S>, Vec<S>) {
    let (mut y, mut rstd) = (nan(x.len()), nan(x.len() / w.len()));
    cpu.rmsnorm_fwd(RmsNormFwd { y: &mut y, rstd: &mut rstd, x, w, eps: 1e-5 }).unwrap();
    (y, rstd)
}

pub fn swiglu<S: Real>(cpu: &Cpu<S>, gate_up: &[S], ffn: usize) -> Vec<S> {
    let mut act = nan(gate_up.len() / 2);
    cpu.swiglu_fwd(SwigluFwd { act: &mut act, gate_up, ffn }).unwrap();
    act
}

/// Output and log-sum-exp.
pub fn attention<S: Real>(cpu: &Cpu<S>, qkv: &[S], batch: &CpuBatch, shape: AttnShape) -> (Vec<S>, Vec<S>) {
    let rows = cpu.rows(batch);
    let (mut out, mut lse) = (nan(rows * shape.q_width()), nan(rows * shape.heads));
    cpu.attention_fwd(AttentionFwd { out: &mut out, lse: &mut lse, qkv, batch, shape }).unwrap();
    (out, lse)
}

/// Gradient of `qkv`.
pub fn attention_bwd<S: Real>(cpu: &Cpu<S>, dout: &[S], qkv: &[S], batch: &CpuBatch, shape: AttnShape) -> Vec<S> {
    let (out, lse) = attention(cpu, qkv, batch, shape);
    let (mut dqkv, mut delta) = (nan(qkv.len()), nan(lse.len()));
    cpu.attention_bwd(AttentionBwd {
        dqkv: &mut dqkv,
        delta: &mut delta,
        partial: &mut [],
        dout,
        out: &out,
        lse: &lse,
        qkv,
        batch,
        shape,
    })
    .unwrap();
    dqkv
}

/// What the head gives for a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Head<S> {
    pub logits: Vec<S>,
    pub logp: Vec<S>,
    pub entropy: Vec<S>,
    pub log_sum_p2: Vec<S>,
    pub hit: Vec<S>,
}

pub fn head<S: Real>(
    cpu: &Cpu<S>,
    x: &[S],
    w: &[S],
    vocab: usize,
    batch: &CpuBatch,
    chunk: &Chunk,
    mode: HeadMode,
) -> Head<S> {
    let n = chunk.predictions.len();
    let mut h = Head { logits: nan(n * vocab), logp: nan(n), entropy: nan(n), log_sum_p2: nan(n), hit: nan(n) };
    cpu.head_fwd(HeadFwd {
        logp: &mut h.logp,
        entropy: &mut h.entropy,
        log_sum_p2: &mut h.log_sum_p2,
        hit: &mut h.hit,
        logits: &mut h.logits,
        x,
        w,
        batch,
        chunk,
        mode,
    })
    .unwrap();
    h
}

/// Coefficients, response statistics and pair statistics.
pub struct Loss<S> {
    pub coef: Vec<S>,
    pub responses: Vec<f64>,
    pub pairs: Vec<f64>,
}

pub fn loss<S: Real>(
    cpu: &Cpu<S>,
    h: &Head<S>,
    batch: &CpuBatch,
    chunk: &Chunk,
    spec: &LossSpec,
    scale: f64,
) -> Loss<S> {
    let mut l = Loss {
        coef: nan(chunk.predictions.len()),
        responses: nan(chunk.responses.len() * RESPONSE_STATS),
        pairs: nan(chunk.pairs.len() * PAIR_STATS),
    };
    cpu.loss(backend::Loss {
        coef: &mut l.coef,
        responses: &mut l.responses,
        pairs: &mut l.pairs,
        logp: &h.logp,
        entropy: &h.entropy,
        hit: &h.hit,
        log_sum_p2: &h.log_sum_p2,
        batch,
        chunk,
        spec,
        scales: scale.into(),
        given: false,
    })
    .unwrap();
    l
}

/// Angles of RoPE with base 10000: positions x head_dim.
pub fn rope_table<S: Real>(positions: usize, d: usize) -> Vec<S> {
    let angle = |p: usize, i: usize| p as f64 * 10000f64.powf(-2.0 * i as f64 / d as f64);
    let row = |p: usize| {
        let cos = (0..d / 2).map(move |i| angle(p, i).cos());
        cos.chain((0..d / 2).map(move |i| angle(p, i).sin()))
    };
    of(&(0..positions).flat_map(row).collect::<Vec<f64>>())
}
