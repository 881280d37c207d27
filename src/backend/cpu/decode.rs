//! Generation: the key/value cache, and attention of one query per sequence.

use super::check;
use super::device::Cpu;
use super::gemm::matrix::{Base, Mat};
use super::gemm::packed::Packed;
use super::linear::base;
use super::real::Real;
use super::scalar::{Scalar, dot};
use super::simd::simd_fn;
use crate::backend::ops::decode::{AttentionDecode, DecodeOps, KvStore, Layout, LinearPacked, LogitsPacked};
use crate::backend::ops::head::Logits;
use crate::backend::ops::linear::LinearFwd;
use crate::error::{Error, Result};
use rayon::prelude::*;

impl<S: Real> DecodeOps for Cpu<S> {
    type Packed = Packed;

    fn packed_room(&self, name: &str, out: usize, inp: usize, layout: Layout) -> Result<Option<Packed>> {
        check::nonzero("packed_room", "out", out)?;
        check::nonzero("packed_room", "inp", inp)?;
        let Some(bytes) = S::packed_bytes(&self.gemm, out, inp, layout) else { return Ok(None) };
        self.record(name, bytes);
        if self.counting {
            return Ok(Some(Packed::counted(out, inp, layout)));
        }
        S::room(&self.gemm, out, inp, layout).map(Some)
    }

    fn pack_weight(&self, to: &mut Packed, w: &[S]) -> Result<bool> {
        let [out, inp] = to.sizes();
        check::len("pack_weight", "w", w.len(), &[("out", out), ("inp", inp)])?;
        Ok(S::fill(&self.gemm, to, Mat::by_line(w, inp)))
    }

    fn linear_few(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        self.linear("linear_few", op, S::gemm_few)
    }

    fn logits_few(&self, op: Logits<'_, Self>) -> Result<()> {
        self.product("logits_few", op, S::gemm_few)
    }

    fn linear_packed(&self, op: LinearPacked<'_, Self>) -> Result<()> {
        const OP: &str = "linear_packed";
        let LinearPacked { y, x, w, write } = op;
        let [out, inp] = w.sizes();
        let n = check::rows(OP, "y", y.len(), "out", out)?;
        check::len(OP, "x", x.len(), &[("rows", n), ("inp", inp)])?;
        let base = base(OP, write, n, out)?;
        S::gemm_packed(&self.gemm, y, base, Mat::by_line(x, inp), w, n);
        Ok(())
    }

    fn logits_packed(&self, op: LogitsPacked<'_, Self>) -> Result<()> {
        const OP: &str = "logits_packed";
        let LogitsPacked { logits, x, w } = op;
        let [vocab, dim] = w.sizes();
        let n = check::rows(OP, "x", x.len(), "dim", dim)?;
        check::at_least(OP, "logits", logits.len(), &[("rows", n), ("vocab", vocab)])?;
        S::gemm_packed(&self.gemm, &mut logits[..n * vocab], Base::Zero, Mat::by_line(x, dim), w, n);
        Ok(())
    }

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
        // Short caches are sooner read than shared out.
        let least = (TASK_ROWS / lens.iter().max().map_or(1, |l| *l as usize)).max(1);
        out.par_chunks_exact_mut(d).enumerate().with_min_len(least).for_each(|(i, out)| {
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

/// Rows of keys and values that a task should read at least.
const TASK_ROWS: usize = 512;
/// Columns of the values that are summed at a time, in registers.
const COLUMNS: usize = 64;

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
        p.iter_mut().for_each(|p| *p = (*p - max).exp());
        let mut sum = S::ZERO;
        p.iter().for_each(|e| sum += *e);
        for (at, out) in (0..d).step_by(COLUMNS).zip(out.chunks_mut(COLUMNS)) {
            let mut acc = [S::ZERO; COLUMNS];
            for (e, v) in p.iter().zip(values.chunks(stride)) {
                let v = &v[at..at + out.len()];
                match v.try_into() {
                    Ok(v) => add_scaled::<S, COLUMNS>(&mut acc, *e, v),
                    Err(_) => acc.iter_mut().zip(v).for_each(|(o, v)| *o += *e * *v),
                }
            }
            out.iter_mut().zip(acc).for_each(|(o, x)| *o = x / sum);
        }
    }
}

#[inline(always)]
fn add_scaled<S: Scalar, const N: usize>(acc: &mut [S; N], e: S, v: &[S; N]) {
    acc.iter_mut().zip(v).for_each(|(o, v)| *o += e * *v);
}
