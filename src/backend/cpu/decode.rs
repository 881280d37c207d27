//! Generation: the key/value cache, and attention of one query per sequence.

use super::check;
use super::device::Cpu;
use super::real::Real;
use super::scalar::dot;
use super::simd::simd_fn;
use crate::backend::ops::decode::{AttentionDecode, DecodeOps, KvStore};
use crate::error::{Error, Result};
use rayon::prelude::*;

impl<S: Real> DecodeOps for Cpu<S> {
    fn kv_store(&self, op: KvStore<'_, Self>) -> Result<()> {
        const OP: &str = "kv_store";
        let KvStore { k, v, qkv, dst, shape } = op;
        check::attn(OP, &shape)?;
        let width = shape.kv_width();
        check::len(OP, "qkv", qkv.len(), &[("rows", dst.len()), ("qkv_width", shape.qkv_width())])?;
        let rows = check::rows(OP, "k", k.len(), "kv_width", width)?;
        check::len(OP, "v", v.len(), &[("cache rows", rows), ("kv_width", width)])?;
        if let Some(end) = dst.iter().filter(|d| **d != u32::MAX).max() {
            check::at_least(OP, "k", k.len(), &[("largest row + 1", *end as usize + 1), ("kv_width", width)])?;
        }
        for (row, dst) in qkv.chunks_exact(shape.qkv_width()).zip(dst).filter(|(_, d)| **d != u32::MAX) {
            let at = *dst as usize * width..(*dst as usize + 1) * width;
            k[at.clone()].copy_from_slice(&row[shape.q_width()..][..width]);
            v[at].copy_from_slice(&row[shape.q_width() + width..]);
        }
        Ok(())
    }

    fn attention_decode(&self, op: AttentionDecode<'_, Self>) -> Result<()> {
        const OP: &str = "attention_decode";
        let g = &self.gemm;
        let AttentionDecode { out, qkv, k, v, lens, stride, shape } = op;
        check::attn(OP, &shape)?;
        check::len(OP, "out", out.len(), &[("sequences", lens.len()), ("q_width", shape.q_width())])?;
        check::len(OP, "qkv", qkv.len(), &[("sequences", lens.len()), ("qkv_width", shape.qkv_width())])?;
        check::at_least(
            OP,
            "k",
            k.len(),
            &[("sequences", lens.len()), ("stride", stride), ("kv_width", shape.kv_width())],
        )?;
        check::len(OP, "v", v.len(), &[("elements of k", k.len())])?;
        if let Some(len) = lens.iter().find(|l| **l == 0 || **l as usize > stride) {
            let shape = format!("between 1 and stride={stride}");
            return Err(Error::Shape { op: OP, name: "lens", got: *len as usize, want: stride, shape });
        }
        let (d, width, group) = (shape.head_dim, shape.kv_width(), shape.heads / shape.kv_heads);
        out.par_chunks_exact_mut(d).enumerate().for_each(|(i, out)| {
            let (s, h) = (i / shape.heads, i % shape.heads);
            let len = lens[s] as usize;
            let at = s * stride * width + h / group * d;
            let end = at + (len - 1) * width + d;
            let q = &qkv[s * shape.qkv_width() + h * d..][..d];
            g.scratch.with(len, |p: &mut [S]| head(g.level, out, q, &k[at..end], &v[at..end], width, p));
        });
        Ok(())
    }
}

simd_fn! {
    /// `out = softmax(q K^T / sqrt(d)) V` for one head; `keys` and `values` are rows of `stride` that start at the head.
    fn head<S>(out: &mut [S], q: &[S], keys: &[S], values: &[S], stride: usize, p: &mut [S]) {
        let d = q.len();
        let scale = S::from_f64(1.0 / (d as f64).sqrt());
        let mut max = S::NEG_INFINITY;
        for (p, k) in p.iter_mut().zip(keys.chunks(stride)) {
            *p = dot(q, &k[..d]) * scale;
            max = if *p > max { *p } else { max };
        }
        let mut sum = S::ZERO;
        out.fill(S::ZERO);
        for (p, v) in p.iter().zip(values.chunks(stride)) {
            let e = (*p - max).exp();
            sum += e;
            out.iter_mut().zip(&v[..d]).for_each(|(o, v)| *o += e * *v);
        }
        out.iter_mut().for_each(|o| *o = *o / sum);
    }
}
