//! Ops without a batch: SwiGLU, norms, biases, matrix products, the key/value cache.

use crate::{Case, MANY_ROWS, Noise, Outputs, both, buf, compare, compare_under, fetch, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;

struct Swiglu {
    ffn: usize,
    gate_up: Vec<f64>,
    dact: Vec<f64>,
}
impl Case for Swiglu {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let mut gate_up = buf::<B, B::Act>(be, &self.gate_up);
        let mut act = unset::<B, B::Act>(be, self.dact.len());
        be.swiglu_fwd(SwigluFwd { act: v!(be, mut act), gate_up: v!(be, gate_up), ffn: self.ffn }).unwrap();
        let dact = buf::<B, B::Act>(be, &self.dact);
        be.swiglu_bwd(SwigluBwd { gate_up: v!(be, mut gate_up), dact: v!(be, dact), ffn: self.ffn }).unwrap();
        vec![("act", fetch(be, &act), true), ("dgate_up", fetch(be, &gate_up), true)]
    }
}
fn swiglu<A: GpuFloat>() {
    for (rows, ffn) in [(1, 1), (3, 37), (5, 64), (2, 2056), (7, 8)] {
        let mut noise = Noise(rows as u64 * 1000 + ffn as u64);
        let case = Swiglu { ffn, gate_up: noise.vec::<A>(rows * 2 * ffn, 2.0), dact: noise.vec::<A>(rows * ffn, 1.0) };
        compare::<A>(&format!("swiglu {rows} x {ffn}"), &case);
    }
}
both!(swiglu);

struct RmsNorm {
    rows: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    dy: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}
impl Case for RmsNorm {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (x, w, dy) = (buf::<B, B::Act>(be, &self.x), buf(be, &self.w), buf(be, &self.dy));
        let mut y = unset::<B, B::Act>(be, self.x.len());
        let mut rstd = unset::<B, B::Acc>(be, self.rows);
        be.rmsnorm_fwd(RmsNormFwd { y: v!(be, mut y), rstd: v!(be, mut rstd), x: v!(be, x), w: v!(be, w), eps: 1e-5 })
            .unwrap();
        let mut again = unset::<B, B::Act>(be, self.x.len());
        be.rmsnorm_again(RmsNormAgain { y: v!(be, mut again), rstd: v!(be, rstd), x: v!(be, x), w: v!(be, w) })
            .unwrap();
        assert_eq!(fetch(be, &again), fetch(be, &y), "rmsnorm_again gives the same bits");
        let mut set = unset::<B, B::Act>(be, self.x.len());
        let mut added = buf::<B, B::Act>(be, &self.dx);
        let mut dw = buf::<B, B::Acc>(be, &self.dw);
        let inputs = (v!(be, dy), v!(be, x), v!(be, w), v!(be, rstd));
        let (dy, x, w, r) = inputs;
        be.rmsnorm_bwd(RmsNormBwd {
            dx: v!(be, mut set),
            dw: Some(v!(be, mut dw)),
            dy,
            x,
            w,
            rstd: r,
            write: Write::Set,
        })
        .unwrap();
        be.rmsnorm_bwd(RmsNormBwd { dx: v!(be, mut added), dw: None, dy, x, w, rstd: r, write: Write::Add }).unwrap();
        let mut frozen = unset::<B, B::Act>(be, self.x.len());
        be.rmsnorm_bwd(RmsNormBwd { dx: v!(be, mut frozen), dw: None, dy, x, w, rstd: r, write: Write::Set }).unwrap();
        assert_eq!(fetch(be, &frozen), fetch(be, &set), "a frozen weight changes nothing else");
        vec![
            ("y", fetch(be, &y), true),
            ("rstd", fetch(be, &rstd), false),
            ("dx", fetch(be, &set), true),
            ("dx added", fetch(be, &added), true),
            ("dw", fetch(be, &dw), false),
        ]
    }
    /// `w dy` and `x rstd^2 mean(w dy x)` cancel in full where a row has one element.
    fn terms(&self, output: &str) -> f64 {
        if output == "dx" { 4.0 } else { 0.0 }
    }
}
fn rmsnorm<A: GpuFloat>() {
    // The last: more rows than slabs times the rows that a block has in hand, so that its rows go round, through several warps each.
    for (rows, dim) in [(1, 1), (5, 37), (13, 576), (3, 2056), (2, 4104), (1100, 5), (1030, 520)] {
        let mut noise = Noise(rows as u64 * 1000 + dim as u64);
        let case = RmsNorm {
            rows,
            x: noise.vec::<A>(rows * dim, 2.0),
            w: noise.vec::<A>(dim, 1.0),
            dy: noise.vec::<A>(rows * dim, 1.0),
            dx: noise.vec::<A>(rows * dim, 1.0),
            dw: noise.vec::<f32>(dim, 1.0),
        };
        compare::<A>(&format!("rmsnorm {rows} x {dim}"), &case);
    }
}
both!(rmsnorm);

struct QkNorm {
    shape: AttnShape,
    rows: usize,
    qkv: Vec<f64>,
    w: Vec<f64>,
    dqkv: Vec<f64>,
}
impl Case for QkNorm {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let s = self.shape;
        let w = buf::<B, B::Act>(be, &self.w);
        let mut qkv = buf::<B, B::Act>(be, &self.qkv);
        let mut raw = unset::<B, B::Act>(be, self.rows * (s.q_width() + s.kv_width()));
        let mut rstd = unset::<B, B::Acc>(be, self.rows * (s.heads + s.kv_heads));
        be.qk_norm_fwd(QkNormFwd {
            qkv: v!(be, mut qkv),
            raw: v!(be, mut raw),
            rstd: v!(be, mut rstd),
            w: v!(be, w),
            shape: s,
            eps: 1e-6,
        })
        .unwrap();
        let mut dqkv = buf::<B, B::Act>(be, &self.dqkv);
        let mut dw = buf::<B, B::Acc>(be, &vec![0.5; 2 * s.head_dim]);
        let (kept, stats) = (v!(be, raw), v!(be, rstd));
        be.qk_norm_bwd(QkNormBwd {
            dqkv: v!(be, mut dqkv),
            dw: Some(v!(be, mut dw)),
            raw: kept,
            rstd: stats,
            w: v!(be, w),
            shape: s,
        })
        .unwrap();
        let mut frozen = buf::<B, B::Act>(be, &self.dqkv);
        be.qk_norm_bwd(QkNormBwd {
            dqkv: v!(be, mut frozen),
            dw: None,
            raw: kept,
            rstd: stats,
            w: v!(be, w),
            shape: s,
        })
        .unwrap();
        assert_eq!(fetch(be, &frozen), fetch(be, &dqkv), "a frozen weight changes nothing else");
        vec![
            ("qkv", fetch(be, &qkv), true),
            ("raw", fetch(be, &raw), true),
            ("rstd", fetch(be, &rstd), false),
            ("dqkv", fetch(be, &dqkv), true),
            ("dw", fetch(be, &dw), false),
        ]
    }
}
fn qk_norm<A: GpuFloat>() {
    // The last: more heads than a block has groups of lanes, so that its groups take several in turn.
    for (rows, heads, kv_heads, head_dim) in
        [(1, 1, 1, 5), (7, 6, 2, 64), (3, 3, 1, 96), (520, 2, 1, 16), (2, 4, 4, 128), (3, 18, 18, 128)]
    {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let mut noise = Noise(rows as u64 * 1000 + head_dim as u64);
        let case = QkNorm {
            shape,
            rows,
            qkv: noise.vec::<A>(rows * shape.qkv_width(), 2.0),
            w: noise.vec::<A>(2 * head_dim, 1.0),
            dqkv: noise.vec::<A>(rows * shape.qkv_width(), 1.0),
        };
        compare::<A>(&format!("qk_norm {rows} x {heads}/{kv_heads} x {head_dim}"), &case);
    }
}
both!(qk_norm);

struct Linear {
    out: usize,
    inp: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
    y: Vec<f64>,
    dw: Vec<f64>,
}
impl Case for Linear {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (x, w, bias) = (buf::<B, B::Act>(be, &self.x), buf::<B, B::Act>(be, &self.w), buf(be, &self.bias));
        let (out, inp) = (self.out, self.inp);
        let kept = buf::<B, B::Act>(be, &self.y);
        let mut set = unset::<B, B::Act>(be, self.y.len());
        let mut added = buf::<B, B::Act>(be, &self.y);
        let mut plus = unset::<B, B::Act>(be, self.y.len());
        be.linear_fwd(LinearFwd { y: v!(be, mut set), x: v!(be, x), w: v!(be, w), out, inp, write: Write::Set })
            .unwrap();
        be.linear_fwd(LinearFwd { y: v!(be, mut added), x: v!(be, x), w: v!(be, w), out, inp, write: Write::Add })
            .unwrap();
        be.linear_fwd(LinearFwd {
            y: v!(be, mut plus),
            x: v!(be, x),
            w: v!(be, w),
            out,
            inp,
            write: Write::Plus(v!(be, kept)),
        })
        .unwrap();
        let mut biased = buf::<B, B::Act>(be, &self.y);
        be.bias_fwd(BiasFwd { y: v!(be, mut biased), bias: v!(be, bias) }).unwrap();
        let mut dx = unset::<B, B::Act>(be, self.x.len());
        let mut dx_added = buf::<B, B::Act>(be, &self.x);
        be.linear_bwd_input(LinearBwdInput {
            dx: v!(be, mut dx),
            dy: v!(be, kept),
            w: v!(be, w),
            out,
            inp,
            write: Write::Set,
        })
        .unwrap();
        be.linear_bwd_input(LinearBwdInput {
            dx: v!(be, mut dx_added),
            dy: v!(be, kept),
            w: v!(be, w),
            out,
            inp,
            write: Write::Add,
        })
        .unwrap();
        let mut dw = buf::<B, B::Acc>(be, &self.dw);
        be.linear_bwd_weight(LinearBwdWeight { dw: v!(be, mut dw), dy: v!(be, kept), x: v!(be, x), out, inp }).unwrap();
        let mut dbias = buf::<B, B::Acc>(be, &vec![0.25; out]);
        be.bias_bwd(BiasBwd { dbias: v!(be, mut dbias), dy: v!(be, kept) }).unwrap();
        let mut logits = unset::<B, B::Acc>(be, self.y.len() + 3);
        be.logits(Logits { logits: v!(be, mut logits), x: v!(be, x), w: v!(be, w), dim: inp }).unwrap();
        vec![
            ("y", fetch(be, &set), true),
            ("y added", fetch(be, &added), true),
            ("y plus", fetch(be, &plus), true),
            ("y + bias", fetch(be, &biased), true),
            ("dx", fetch(be, &dx), true),
            ("dx added", fetch(be, &dx_added), true),
            ("dw", fetch(be, &dw), false),
            ("dbias", fetch(be, &dbias), false),
            ("logits", fetch(be, &logits)[..self.y.len()].to_vec(), false),
        ]
    }
    /// The length of the sums: their terms are about 1.
    fn product_terms(&self, output: &str) -> f64 {
        let terms = match output {
            "dw" => self.y.len() / self.out,
            "dx" | "dx added" => self.out,
            "dbias" => 0,
            _ => self.inp,
        };
        terms as f64
    }
}
fn linear<A: GpuFloat>() {
    for (rows, out, inp) in [(1, 1, 1), (5, 37, 8), (530, 13, 7), (3, 2056, 16)] {
        let mut noise = Noise(rows as u64 * 1000 + out as u64);
        let case = Linear {
            out,
            inp,
            x: noise.vec::<A>(rows * inp, 1.0),
            w: noise.vec::<A>(out * inp, 1.0),
            bias: noise.vec::<A>(out, 1.0),
            y: noise.vec::<A>(rows * out, 1.0),
            dw: noise.vec::<f32>(out * inp, 1.0),
        };
        compare::<A>(&format!("linear {rows} x {out} x {inp}"), &case);
    }
}
both!(linear);

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
        let (mut act, mut normed, mut again, mut dx) = (unset(n), unset(n), unset(n), unset(n));
        let mut gate_up = Self::put::<B, B::Act>(be, &wide);
        be.swiglu_fwd(SwigluFwd {
            act: be.view_mut(&mut act, 1..1 + n),
            gate_up: be.view(&gate_up, 1..1 + 2 * n),
            ffn: dim,
        })
        .unwrap();
        be.swiglu_bwd(SwigluBwd {
            gate_up: be.view_mut(&mut gate_up, 1..1 + 2 * n),
            dact: be.view(&x, 1..1 + n),
            ffn: dim,
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
        be.rmsnorm_again(RmsNormAgain {
            y: be.view_mut(&mut again, 1..1 + n),
            rstd: be.view(&rstd, 1..1 + rows),
            x: be.view(&x, 1..1 + n),
            w: be.view(&w, 1..1 + dim),
        })
        .unwrap();
        let mut dw = Self::put::<B, B::Acc>(be, &self.x[..dim]);
        let add = Some(be.view_mut(&mut dw, 1..1 + dim));
        be.rmsnorm_bwd(RmsNormBwd {
            dx: be.view_mut(&mut dx, 1..1 + n),
            dw: add,
            dy: be.view(&y, 1..1 + n),
            x: be.view(&x, 1..1 + n),
            w: be.view(&w, 1..1 + dim),
            rstd: be.view(&rstd, 1..1 + rows),
            write: Write::Set,
        })
        .unwrap();
        let mut biased = Self::put::<B, B::Act>(be, &self.x);
        be.bias_fwd(BiasFwd { y: be.view_mut(&mut biased, 1..1 + n), bias: be.view(&w, 1..1 + dim) }).unwrap();
        let mut dbias = Self::put::<B, B::Acc>(be, &self.y[..dim]);
        be.bias_bwd(BiasBwd { dbias: be.view_mut(&mut dbias, 1..1 + dim), dy: be.view(&y, 1..1 + n) }).unwrap();
        let mut norm = unset_f64(be);
        let sums = Self::put::<B, B::Acc>(be, &self.x);
        be.grad_norm(GradNorm { norm: v!(be, mut norm), g: be.view(&sums, 1..1 + n) }).unwrap();
        let outputs =
            [("act", act), ("dgate_up", gate_up), ("y", normed), ("y again", again), ("dx", dx), ("y + bias", biased)];
        let outputs = outputs.into_iter().map(|(name, b)| (name, fetch::<B, B::Act>(be, &b)[1..].to_vec(), true));
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
        let mut again = unset::<B, B::Act>(be, n);
        be.rmsnorm_again(RmsNormAgain { y: v!(be, mut again), rstd: v!(be, factor), x: v!(be, x), w: v!(be, w) })
            .unwrap();
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
        be.head_bwd(HeadBwd {
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
            ("y again", fetch(be, &again), true),
            ("y + bias", fetch(be, &biased), true),
            ("k", fetch(be, &k), true),
            ("v", fetch(be, &value), true),
            ("dx", fetch(be, &dx), true),
        ]
    }
}
