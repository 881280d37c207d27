//! Where data lie: at odd addresses, and in more rows than a grid has blocks.

use crate::simple::Swiglu;
use crate::{Case, MANY_ROWS, Noise, Outputs, both, buf, compare, compare_under, fetch, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;

/// Every op that takes packs of 16 bytes, on whole packs that lie at no multiple of 16 bytes.
struct Shifted {
    rows: usize,
    dim: usize,
    x: Vec<f64>,
    y: Vec<f64>,
}
impl Shifted {
    /// A buffer that holds `data` from its second element on.
    fn put<B: Backend, T: Float>(be: &B, data: &[f64]) -> B::Buf<T> {
        buf::<B, T>(be, &[&[0.0], data].concat())
    }
}
impl Case for Shifted {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (rows, dim, n) = (self.rows, self.dim, self.x.len());
        let (x, y, wide) = (Self::put(be, &self.x), Self::put(be, &self.y), [&self.x[..], &self.y[..]].concat());
        let w = Self::put::<B, B::Act>(be, &self.y[..dim]);
        let unset = |len: usize| Self::put::<B, B::Act>(be, &vec![f64::NAN; len]);
        let (mut act, mut normed, mut dx) = (unset(n), unset(n), unset(n));
        let (mut dact, mut again) = (Self::put::<B, B::Act>(be, &self.x), Self::put::<B, B::Act>(be, &self.y));
        let mut gate_up = Self::put::<B, B::Act>(be, &wide);
        be.swiglu_fwd(SwigluFwd {
            act: be.view_mut(&mut act, 1..1 + n),
            gate_up: be.view(&gate_up, 1..1 + 2 * n),
            ffn: dim,
        })
        .unwrap();
        be.swiglu_bwd(SwigluBwd {
            gate_up: be.view_mut(&mut gate_up, 1..1 + 2 * n),
            dact: be.view_mut(&mut dact, 1..1 + n),
            ffn: dim,
            again: true,
        })
        .unwrap();
        let mut rstd = Self::put::<B, B::Acc>(be, &vec![f64::NAN; rows]);
        let r = be.view_mut(&mut rstd, 1..1 + rows);
        be.rmsnorm_fwd(RmsNormFwd {
            y: be.view_mut(&mut normed, 1..1 + n),
            rstd: r,
            x: be.view(&x, 1..1 + n),
            w: be.view(&w, 1..1 + dim),
            eps: 1e-5,
        })
        .unwrap();
        let mut dw = Self::put::<B, B::Acc>(be, &self.x[..dim]);
        let add = Some(be.view_mut(&mut dw, 1..1 + dim));
        be.rmsnorm_bwd(RmsNormBwd {
            dx: be.view_mut(&mut dx, 1..1 + n),
            dw: add,
            dy: be.view_mut(&mut again, 1..1 + n),
            x: be.view(&x, 1..1 + n),
            w: be.view(&w, 1..1 + dim),
            rstd: be.view(&rstd, 1..1 + rows),
            write: Write::Set,
            again: true,
        })
        .unwrap();
        let mut biased = Self::put::<B, B::Act>(be, &self.x);
        be.bias_fwd(BiasFwd { y: be.view_mut(&mut biased, 1..1 + n), bias: be.view(&w, 1..1 + dim) }).unwrap();
        let mut dbias = Self::put::<B, B::Acc>(be, &self.y[..dim]);
        be.bias_bwd(BiasBwd { dbias: be.view_mut(&mut dbias, 1..1 + dim), dy: be.view(&y, 1..1 + n) }).unwrap();
        let mut norm = unset_f64(be);
        let sums = Self::put::<B, B::Acc>(be, &self.x);
        be.grad_norm(GradNorm { norm: v!(be, mut norm), g: be.view(&sums, 1..1 + n) }).unwrap();
        let outputs = [("act", act), ("act again", dact), ("dgate_up", gate_up), ("y", normed), ("y again", again)];
        let outputs = outputs.into_iter().chain([("dx", dx), ("y + bias", biased)]);
        let outputs = outputs.map(|(name, b)| (name, fetch::<B, B::Act>(be, &b)[1..].to_vec(), true));
        let sums = [("rstd", rstd), ("dw", dw), ("dbias", dbias)];
        let sums = sums.into_iter().map(|(name, b)| (name, fetch::<B, B::Acc>(be, &b)[1..].to_vec(), false));
        outputs.chain(sums).chain([("norm", fetch::<B, f64>(be, &norm), false)]).collect()
    }
}
fn unset_f64<B: Backend>(be: &B) -> B::Buf<f64> {
    unset::<B, f64>(be, 1)
}
fn shifted<A: GpuFloat>() {
    let (rows, dim) = (5, 64);
    let mut noise = Noise(64);
    let case = Shifted { rows, dim, x: noise.vec::<A>(rows * dim, 1.0), y: noise.vec::<A>(rows * dim, 1.0) };
    compare::<A>("whole packs at odd addresses", &case);
}
both!(shifted);

/// More rows than a grid has: blocks take several.
#[test]
fn many_rows() {
    let mut noise = Noise(65);
    let swiglu =
        Swiglu { ffn: 1, gate_up: noise.vec::<f32>(2 * MANY_ROWS, 1.0), dact: noise.vec::<f32>(MANY_ROWS, 1.0) };
    compare_under::<f32>("swiglu of many rows", &swiglu, &[1]);
    let shape = AttnShape { heads: 1, kv_heads: 1, head_dim: 1 };
    let rows = ManyRows {
        shape,
        x: noise.vec::<f32>(MANY_ROWS, 1.0),
        factor: noise.vec::<f32>(MANY_ROWS, 1.0),
        w: vec![1.5],
        qkv: noise.vec::<f32>(MANY_ROWS * shape.qkv_width(), 1.0),
    };
    compare_under::<f32>("many rows", &rows, &[1]);
}

struct ManyRows {
    shape: AttnShape,
    x: Vec<f64>,
    factor: Vec<f64>,
    w: Vec<f64>,
    qkv: Vec<f64>,
}
impl Case for ManyRows {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let n = self.x.len();
        let (x, w, factor) = (buf::<B, B::Act>(be, &self.x), buf(be, &self.w), buf::<B, B::Acc>(be, &self.factor));
        let mut biased = buf::<B, B::Act>(be, &self.x);
        be.bias_fwd(BiasFwd { y: v!(be, mut biased), bias: v!(be, w) }).unwrap();
        let qkv = buf::<B, B::Act>(be, &self.qkv);
        let (mut k, mut value) = (unset::<B, B::Act>(be, n), unset::<B, B::Act>(be, n));
        let dst: Vec<u32> = (0..n as u32).rev().collect();
        be.kv_store(KvStore { k: v!(be, mut k), v: v!(be, mut value), qkv: v!(be, qkv), dst: &dst, shape: self.shape })
            .unwrap();
        // The head's backward scales its rows: here G is one logit a row.
        let mut dx = unset::<B, B::Act>(be, n);
        let mut scratch = unset::<B, B::Act>(be, n);
        let g = buf::<B, B::Acc>(be, &self.x);
        let (dx_out, scaled) = (v!(be, mut dx), v!(be, mut scratch));
        be.head_bwd(HeadBwd::<B, B::Acc> {
            dx: dx_out,
            dw: None,
            scaled,
            logits: v!(be, g),
            x: v!(be, x),
            w: v!(be, w),
            coef: v!(be, factor),
        })
        .unwrap();
        vec![
            ("y + bias", fetch(be, &biased), true),
            ("k", fetch(be, &k), true),
            ("v", fetch(be, &value), true),
            ("dx", fetch(be, &dx), true),
        ]
    }
}
