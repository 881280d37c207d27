//! The key/value cache.

use crate::{Case, Noise, Outputs, both, buf, compare, fetch, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;

struct Decode {
    shape: AttnShape,
    stride: usize,
    lens: Vec<u32>,
    dst: Vec<u32>,
    qkv: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
    /// A score's rounding is a relative error of its weight: what scores of this size leave in outputs of about 1.
    scores: f64,
}
impl Case for Decode {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let qkv = buf::<B, B::Act>(be, &self.qkv);
        let (mut k, mut value) = (buf::<B, B::Act>(be, &self.keys), buf::<B, B::Act>(be, &self.values));
        be.kv_store(KvStore {
            k: v!(be, mut k),
            v: v!(be, mut value),
            qkv: v!(be, qkv),
            dst: &self.dst,
            shape: self.shape,
        })
        .unwrap();
        let mut out = unset::<B, B::Act>(be, self.lens.len() * self.shape.q_width());
        let (keys, values) = (v!(be, k), v!(be, value));
        be.attention_decode(AttentionDecode {
            out: v!(be, mut out),
            qkv: v!(be, qkv),
            k: keys,
            v: values,
            lens: &self.lens,
            stride: self.stride,
            shape: self.shape,
        })
        .unwrap();
        vec![("k", fetch(be, &k), true), ("v", fetch(be, &value), true), ("out", fetch(be, &out), true)]
    }
    fn terms(&self, output: &str) -> f64 {
        if output == "out" { self.scores } else { 0.0 }
    }
}
fn decode<A: GpuFloat>() {
    for (heads, kv_heads, head_dim, lens) in
        [(1, 1, 3, vec![1]), (6, 2, 20, vec![9, 1, 300]), (2, 1, 136, vec![128, 129]), (4, 4, 8, vec![260])]
    {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let stride = lens.iter().max().copied().unwrap_or(1) as usize + 2;
        let mut noise = Noise(head_dim as u64);
        // Every sequence's new row goes to its end; the last stays out of the cache.
        let dst = lens.iter().enumerate().map(|(s, l)| (s * stride) as u32 + l - 1);
        let n = lens.len();
        let dst = dst.enumerate().map(|(s, d)| if n > 1 && s + 1 == n { u32::MAX } else { d }).collect();
        let qkv = noise.vec::<A>(n * shape.qkv_width(), 1.0);
        let cache = noise.vec::<A>(n * stride * shape.kv_width(), 1.0);
        let case = Decode { shape, stride, dst, qkv, keys: cache.clone(), values: cache, scores: 0.0, lens };
        compare::<A>(&format!("decode {heads}/{kv_heads} x {head_dim}"), &case);
    }
}
both!(decode);

/// Scores that ascend over three tiles of keys: what was summed under a smaller maximum shrinks with every tile, in both columns
/// of a thread.
fn decode_ascending<A: GpuFloat>() {
    let (head_dim, len) = (136, 300);
    let shape = AttnShape { heads: 1, kv_heads: 1, head_dim };
    let mut noise = Noise(8);
    let qkv = noise.vec::<A>(shape.qkv_width(), 1.0);
    // Key j is j / 200 of the query: scores 0.06 apart, 7 a tile, 1.5 of the query's with itself at the end.
    let keys = (0..len * head_dim).map(|i| A::from_f64(qkv[i % head_dim] * (i / head_dim) as f64 / 200.0).to_f64());
    let case = Decode {
        shape,
        stride: len,
        lens: vec![len as u32],
        dst: vec![u32::MAX],
        keys: keys.collect(),
        values: noise.vec::<A>(len * head_dim, 1.0),
        scores: qkv[..head_dim].iter().map(|q| q * q).sum::<f64>() / (head_dim as f64).sqrt() * 1.5,
        qkv,
    };
    compare::<A>("decode with ascending scores", &case);
}
both!(decode_ascending);
